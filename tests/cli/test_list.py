"""`minicpm list`: a short table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_hub import FakeHub, isolate
from minicpm.hub.cache import huggingface_root


@pytest.fixture
def cached(minicpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete model and the beginning of another, as a hub's library leaves them; never used."""
    isolate(monkeypatch, tmp_path, FakeHub())
    root = tmp_path / "hf" / "hub"
    for name, commit in (("MiniCPM-2B-dpo-bf16", "a" * 40), ("MiniCPM-V", "b" * 40)):
        snapshot = root / f"models--openbmb--{name}" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    (root / "models--openbmb--MiniCPM-2B-dpo-bf16/snapshots" / ("a" * 40) / "model.safetensors").write_bytes(
        b"w" * 2998
    )
    (root / "models--openbmb--MiniCPM-2B-dpo-bf16/refs").mkdir()
    (root / "models--openbmb--MiniCPM-2B-dpo-bf16/refs/main").write_text("a" * 40)
    return root


def test_a_piped_list_is_aligned_rows_without_a_header(minicpm, cached):
    done = minicpm("list")
    assert done.code == 0 and done.err == ""
    assert done.out.splitlines() == [
        "openbmb/MiniCPM-2B-dpo-bf16  huggingface  main          3.0 kB  complete    never",
        "openbmb/MiniCPM-V            huggingface  bbbbbbbbbbbb  2 B     incomplete  never",
    ]


def test_use_is_remembered(minicpm, cached, tmp_path):
    assert minicpm("pull", "--offline", "minicpm-2b-dpo").code == 0
    marker = tmp_path / "home/used"
    assert not marker.exists()  # looking is no use
    from minicpm import hub

    hub.resolve("minicpm-2b-dpo", tell=lambda text: None)
    assert "just now" in minicpm("list").out
    (file,) = marker.iterdir()
    os.utime(file, (time.time() - 7300, time.time() - 7300))
    assert "2 hours ago" in minicpm("list").out


def test_json_holds_what_the_table_shows_and_the_path(minicpm, cached):
    first, second = json.loads(minicpm("list", "--json").out)
    assert first == {
        "name": "openbmb/MiniCPM-2B-dpo-bf16",
        "source": "huggingface",
        "revision": "main",
        "path": str(cached / "models--openbmb--MiniCPM-2B-dpo-bf16/snapshots" / ("a" * 40)),
        "bytes": 3000,
        "packed_bytes": 0,
        "complete": True,
        "last_used": None,
    }
    assert second["complete"] is False


def test_packed_weights_are_counted_beside_their_model(minicpm, cached, tmp_path):
    from minicpm.hub import packed_files

    (model,) = (cached / "models--openbmb--MiniCPM-2B-dpo-bf16/snapshots").iterdir()
    path = packed_files.path_of(model)
    path.parent.mkdir(parents=True)
    path.write_bytes(packed_files.header(model, [model / "model.safetensors"]).ljust(5000, b"w"))
    first, second = json.loads(minicpm("list", "--json").out)
    assert (first["bytes"], first["packed_bytes"], second["packed_bytes"]) == (3000, 5000, 0)
    done = minicpm("list")
    assert "3.0 kB + 5.0 kB packed  complete" in done.out and done.err == ""
    packed_files.path_of(tmp_path / "own").write_bytes(packed_files.header(tmp_path / "own", []).ljust(4500, b"w"))
    assert minicpm("list").err == f"and 4.5 kB of packed weights of other models, in {packed_files.folder()}\n"


def test_names_on_the_disk_cannot_drive_the_terminal(minicpm, tmp_path, monkeypatch):
    isolate(monkeypatch, tmp_path, FakeHub())
    root = huggingface_root()
    (root / "models--openbmb--a\x1b[2J\x9b31m" / "snapshots" / ("a" * 40)).mkdir(parents=True)
    for arguments in (["list"], ["list", "--json"]):
        out = minicpm(*arguments).out
        assert "openbmb/a" in out
        assert out.replace("\n", "").replace("\ufffd", "").isprintable()


def test_an_empty_machine_is_told_how_to_begin(minicpm, tmp_path, monkeypatch):
    isolate(monkeypatch, tmp_path, FakeHub())
    done = minicpm("list")
    assert (done.code, done.out) == (0, "")
    assert "minicpm pull minicpm-2b-dpo" in done.err
    assert json.loads(minicpm("list", "--json").out) == []


@pytest.mark.parametrize("verb", ["pull", "list", "rm"])
def test_asking_for_help_loads_no_hub_library(verb: str):
    code = (
        "import sys\nfrom minicpm.cli.main import main\n"
        f"try: main(['{verb}', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'huggingface_hub', 'torch', 'transformers', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
