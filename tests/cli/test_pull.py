"""`minicpm pull`: the folder on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import FakeHub, isolate

FILES = {"config.json": b'{"architectures": ["MiniCPMForCausalLM"]}', "model.safetensors": b"w" * 5000, "x.py": b""}


@pytest.fixture
def server(minicpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        isolate(monkeypatch, tmp_path, fake)
        fake.add("openbmb/MiniCPM-2B-dpo-bf16", FILES)
        fake.add("OpenBMB/MiniCPM-2B-dpo-bf16", FILES)
        yield fake


def test_a_pull_prints_the_folder_alone_on_stdout(minicpm, server):
    done = minicpm("pull", "minicpm-2b-dpo")
    assert done.code == 0
    assert sorted(path.name for path in Path(done.out.strip()).iterdir()) == ["config.json", "model.safetensors"]
    assert "General Model License" in done.err
    assert "openbmb/MiniCPM-2B-dpo-bf16: done, 5.0 kB in " in done.err


def test_a_second_pull_says_nothing_but_the_folder(minicpm, server):
    first = minicpm("pull", "minicpm-2b-dpo")
    again = minicpm("pull", "minicpm-2b-dpo")
    assert (again.out, again.err) == (first.out, "")


def test_json_describes_what_came(minicpm, server):
    done = minicpm("pull", "minicpm-2b-dpo", "--source", "ms", "--json")
    record = json.loads(done.out)
    assert record["name"] == "OpenBMB/MiniCPM-2B-dpo-bf16" and record["source"] == "modelscope"
    assert (Path(record["path"]) / "config.json").exists()
    assert record["bytes"] == sum(map(len, FILES.values())) and record["complete"] is True


def test_all_brings_every_file(minicpm, server):
    done = minicpm("pull", "minicpm-2b-dpo", "--all")
    assert sorted(path.name for path in Path(done.out.strip()).iterdir()) == sorted(FILES)


def test_offline_finds_what_is_here_and_names_what_is_not(minicpm, server):
    missing = minicpm("pull", "minicpm-2b-dpo", "--offline")
    assert (missing.code, missing.out) == (1, "")
    assert "is not on this machine, and nothing is downloaded because --offline was given" in missing.err
    here = minicpm("pull", "minicpm-2b-dpo")
    asked = len(server.requests)
    assert minicpm("pull", "minicpm-2b-dpo", "--offline").out == here.out
    assert len(server.requests) == asked


def test_offline_finds_the_other_hubs_copy_and_json_says_whose(minicpm, server):
    minicpm("pull", "ms:minicpm-2b-dpo")
    record = json.loads(minicpm("pull", "minicpm-2b-dpo", "--offline", "--json").out)
    assert record["source"] == "modelscope" and record["name"] == "OpenBMB/MiniCPM-2B-dpo-bf16"


@pytest.mark.parametrize(
    "name, words",
    [
        ("minicpm-2b-dop", "did you mean minicpm-2b-dpo"),
        ("openbmb/MiniCPM-2B-nope", "there is no model 'openbmb/MiniCPM-2B-nope'"),
        (
            "https://wisemodel.cn/models/OpenBMB/miniCPM-bf16",
            "git clone https://www.wisemodel.cn/OpenBMB/miniCPM-bf16.git",
        ),
        ("minicpm-2b-dpo@nope", "has no revision 'nope'"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_exit_code_one(minicpm, server, name, words):
    done = minicpm("pull", name)
    assert done.code == 1 and done.out == ""
    assert words in done.err
    assert sum(line.startswith("minicpm: ") for line in done.err.splitlines()) == 1


def test_a_source_that_is_none_is_wrong_usage(minicpm, server):
    assert minicpm("pull", "minicpm-2b-dpo", "--source", "gitee").code == 2
