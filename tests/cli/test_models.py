"""The model of -m: its public name, and its name in requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm.cli.models import served_name, shown_name
from minicpm.hub import embedded


def test_a_model_is_called_by_its_folder_or_as_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "MiniCPM-2.4B").mkdir()
    monkeypatch.chdir(tmp_path / "MiniCPM-2.4B")
    assert shown_name(str(tmp_path / "MiniCPM-2.4B"), tmp_path / "MiniCPM-2.4B") == "MiniCPM-2.4B"
    assert shown_name(".", Path()) == "MiniCPM-2.4B"
    assert shown_name(None, embedded.FOLDER) == "MiniCPM-nano"
    assert shown_name("minicpm-2b-dpo", tmp_path / "snapshots" / "0a1b2c") == "minicpm-2b-dpo"


def test_requests_call_a_model_by_its_name_or_its_files_without_their_suffix(tmp_path: Path):
    folder = tmp_path / "MiniCPM-2.4B"
    assert served_name(None, embedded.FOLDER) == "minicpm-nano"
    assert served_name("org/model@main", tmp_path / "snapshots" / "0a1b2c") == "org/model@main"
    assert served_name(str(folder), folder) == "MiniCPM-2.4B"
    assert served_name(str(folder / "q4.gguf"), folder / "q4.gguf") == "q4"


def test_a_path_in_the_users_home_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert shown_name("~/models/mine", tmp_path / "models" / "mine") == "mine"
