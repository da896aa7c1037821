"""A new model folder appears at once and durably, and never replaces something that appeared meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minicpm.export import destination as destinations
from minicpm.export.destination import copy_file, new_file, new_folder

needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no fsync of folders")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_appears_at_the_destination_meanwhile_is_not_replaced(tmp_path: Path):
    destination = tmp_path / "out"
    with pytest.raises(ValueError, match="already exists"), new_folder(destination) as partial:
        (partial / "config.json").write_text("{}")
        destination.mkdir()
        (destination / "thesis.tex").write_text("years of work")
    assert (destination / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == ["out"] and names(destination) == ["thesis.tex"]


def test_with_force_only_a_model_folder_that_appears_meanwhile_is_replaced(tmp_path: Path):
    destination = tmp_path / "out"
    with pytest.raises(ValueError, match="model folders only"), new_folder(destination, overwrite=True) as partial:
        (partial / "config.json").write_text("{}")
        destination.mkdir()
        (destination / "thesis.tex").write_text("years of work")
    assert names(tmp_path) == ["out"] and names(destination) == ["thesis.tex"]
    (destination / "thesis.tex").rename(destination / "config.json")
    with new_folder(destination, overwrite=True) as partial:
        (partial / "new").write_text("model")
    assert names(destination) == ["new"]


def test_an_empty_folder_that_appears_meanwhile_is_filled(tmp_path: Path):
    with new_folder(tmp_path / "out") as partial:
        (partial / "config.json").write_text("{}")
        (tmp_path / "out").mkdir()
    assert names(tmp_path / "out") == ["config.json"]


@needs_posix
def test_a_folder_is_flushed_before_its_rename_and_its_parent_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[tuple[str, bool]] = []
    sync = destinations.sync_folder

    def watched(path: Path) -> None:
        events.append((path.name, (tmp_path / "parent" / "out").exists()))
        sync(path)

    monkeypatch.setattr(destinations, "sync_folder", watched)
    with new_folder(tmp_path / "parent" / "out") as partial:
        (partial / "config.json").write_text("{}")
    assert events == [(".out.partial", False), ("parent", True)]


@needs_posix
def test_a_file_is_renamed_before_its_folder_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        destinations, "sync_folder", lambda path: events.append((path.name, (tmp_path / "parent" / "out").exists()))
    )
    with new_file(tmp_path / "parent" / "out") as partial:
        partial.write_text("a model in one file")
    assert events == [("parent", True)]


def test_a_copy_is_flushed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed: dict[int, int] = {}

    def fsync(handle: int) -> None:
        flushed[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "a").write_bytes(b"x" * 70_000)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert flushed == {(tmp_path / "b").stat().st_ino: 70_000}


def test_a_copy_is_no_hard_link(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").stat().st_ino != (tmp_path / "b").stat().st_ino


@pytest.mark.parametrize("way", ["unsupported", "short"])
def test_where_the_kernel_cannot_copy_the_content_is_copied_all_the_same(tmp_path: Path, monkeypatch, way: str):
    if not hasattr(os, "copy_file_range"):
        pytest.skip("this system copies no file ranges")

    def refused(*arguments: object) -> int:
        if way == "short":
            return 0  # as of some file systems of the kernel's own
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "copy_file_range", refused)
    (tmp_path / "a").write_bytes(b"content")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"


def test_links_and_folders_that_a_killed_run_left_are_cleared_without_following_them(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "summer.jpg").write_text("x")
    left = tmp_path / ".out.partial"
    (left / "shards").mkdir(parents=True)
    (left / "link").symlink_to(tmp_path / "photos")
    with new_folder(tmp_path / "out") as partial:
        assert names(partial) == []
    assert names(tmp_path / "photos") == ["summer.jpg"]


def test_a_link_in_the_place_of_the_hidden_folder_is_refused(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "summer.jpg").write_text("x")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "photos")
    with pytest.raises(ValueError, match="in the way"), new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path / "photos") == ["summer.jpg"]


@needs_posix
def test_a_run_that_waited_for_a_folder_that_was_moved_into_place_begins_a_new_one(tmp_path: Path, monkeypatch):
    """Between opening the hidden folder and locking it, the run that held the lock finishes."""
    lock, destination, other = destinations.lock, tmp_path / "out", tmp_path / "other"

    def late(descriptor: int, **options: bool) -> None:
        monkeypatch.setattr(destinations, "lock", lock)
        (tmp_path / ".out.partial").rename(other)
        lock(descriptor, **options)

    monkeypatch.setattr(destinations, "lock", late)
    with new_folder(destination) as partial:
        (partial / "config.json").write_text("{}")
    assert names(destination) == ["config.json"] and names(other) == []
