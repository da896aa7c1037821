"""`minicpm rm`: asks, deletes, says what it freed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fake_hub import FakeHub, isolate


@pytest.fixture
def model(minicpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(monkeypatch, tmp_path, FakeHub())
    folder = tmp_path / "hf/hub/models--openbmb--MiniCPM-2B-dpo-bf16"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return folder


def test_with_yes_the_model_goes_and_the_bytes_are_told(minicpm, model):
    done = minicpm("rm", "minicpm-2b-dpo", "--yes")
    assert (done.code, done.out) == (0, "")
    assert done.err == "removed minicpm-2b-dpo, 2 B freed\n"
    assert not model.exists()


def test_packed_weights_go_with_their_model(minicpm, model, tmp_path):
    from minicpm.hub import packed_files

    (snapshot,) = (model / "snapshots").iterdir()
    (tmp_path / "other").mkdir()
    for folder in (snapshot, tmp_path / "other"):
        path = packed_files.path_of(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed_files.header(folder, []).ljust(5000, b"w"))
    done = minicpm("rm", "minicpm-2b-dpo", "--yes")
    assert done.err == "removed minicpm-2b-dpo, 5.0 kB freed\n"
    assert list(packed_files.folder().iterdir()) == [packed_files.path_of(tmp_path / "other")]


def test_json_tells_the_bytes(minicpm, model):
    done = minicpm("rm", "openbmb/MiniCPM-2B-dpo-bf16", "-y", "--json")
    assert json.loads(done.out) == {"name": "openbmb/MiniCPM-2B-dpo-bf16", "freed_bytes": 2}


def test_without_a_terminal_and_without_yes_nothing_goes(minicpm, model):
    done = minicpm("rm", "minicpm-2b-dpo", stdin="y\n")
    assert done.code == 1 and "pass --yes" in done.err
    assert model.exists()


@pytest.mark.parametrize("answer, goes", [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_on_a_terminal_it_asks(model, monkeypatch, capsys, answer, goes):
    import io

    from minicpm.cli.main import main

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert main(["rm", "minicpm-2b-dpo"]) == (0 if goes else 1)
    assert "Remove minicpm-2b-dpo from this machine? [y/N]" in capsys.readouterr().err
    assert model.exists() != goes


def test_a_question_is_only_asked_about_what_is_here(minicpm, model):
    done = minicpm("rm", "minicpm-1b", "--yes")
    assert done.code == 1 and "is not on this machine" in done.err


@pytest.mark.parametrize("name", ["/", "..", "./models", "../../etc/x"])
def test_folders_are_refused(minicpm, model, name):
    done = minicpm("rm", name, "--yes")
    assert done.code == 1 and done.err.startswith("minicpm: ")
    assert model.exists()
