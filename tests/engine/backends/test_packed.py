"""The packed file: written once, then mapped, and refused if anything differs."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from minicpm.engine.backends import packed
from minicpm.engine.backends.packed import packed_weights
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.hub import packed_files
from small_models import ODD, write_model

NBYTES = 10_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    quantize_folder(write_model(root / "source", ODD), root / "int4")
    return root / "int4"


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path, monkeypatch) -> Checkpoint:
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(packed, "SMALLEST_FILE_BYTES", 0)
    shutil.copytree(model, tmp_path / "model")
    return open_checkpoint(tmp_path / "model", allow_quantized=True)


class Filler:
    """Writes bytes that follow from `seed`, and counts how often it was asked to."""

    def __init__(self, seed: int = 0):
        self.calls = 0
        self.expected = np.random.default_rng(seed).integers(0, 256, NBYTES).astype(np.uint8)

    def __call__(self, out: np.ndarray) -> None:
        self.calls += 1
        out[:] = self.expected


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "packed").iterdir())


def test_the_second_start_maps_what_the_first_has_made(checkpoint, tmp_path: Path):
    fill = Filler()
    for _ in range(2):
        found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, fill)
        assert is_mapped and np.array_equal(found, fill.expected)
        assert not found.flags.writeable and found.ctypes.data % 64 == 0
    assert fill.calls == 1
    assert [path.suffix for path in files(tmp_path)] == [".bin"]


def test_where_room_cannot_be_reserved_it_is_written(checkpoint, tmp_path: Path, monkeypatch):
    """macOS has no posix_fallocate."""
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(packed, "ROOM_STEP_BYTES", 999)
    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, fill := Filler())
    assert is_mapped and np.array_equal(found, fill.expected)
    assert files(tmp_path)[0].stat().st_blocks * 512 >= NBYTES


@pytest.mark.parametrize("change", ["plan", "layout", "weights", "time", "short", "long", "header", "empty"])
def test_a_file_of_anything_else_is_made_again(checkpoint, tmp_path: Path, monkeypatch, change: str):
    packed_weights(checkpoint, "plan", NBYTES, Filler(1))
    (path,), weights = files(tmp_path), checkpoint.weight_files[0]
    content, plan = path.read_bytes(), "plan"
    if change == "plan":
        plan = "another plan"
    elif change == "layout":
        monkeypatch.setattr(packed, "LAYOUT_VERSION", packed.LAYOUT_VERSION + 1)
    elif change == "weights":
        weights.write_bytes(weights.read_bytes())
    elif change == "time":
        os.utime(weights, ns=(1, 1))
    else:
        damaged = {"short": content[:-1], "long": content + b"x", "header": b"M" + content[1:], "empty": b""}
        path.write_bytes(damaged[change])
    fill = Filler(2)
    for _ in range(2):
        found, is_mapped = packed_weights(checkpoint, plan, NBYTES, fill)
        assert is_mapped and np.array_equal(found, fill.expected)
    assert fill.calls == 1 and len(files(tmp_path)) == 1


def test_what_was_mapped_stays_while_the_file_is_made_again(checkpoint):
    first, second = Filler(1), Filler(2)
    held, _ = packed_weights(checkpoint, "one", NBYTES, first)
    packed_weights(checkpoint, "two", NBYTES, second)
    assert np.array_equal(held, first.expected)


def test_a_full_disk_is_said_and_the_weights_lie_in_memory(checkpoint, tmp_path: Path, monkeypatch, caplog):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    fill = Filler()
    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, fill)
    assert not is_mapped and np.array_equal(found, fill.expected)
    assert "cannot be kept (No space left on device)" in caplog.text
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_said(checkpoint, tmp_path: Path, monkeypatch, caplog):
    (tmp_path / "home").write_text("a file")
    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, Filler())
    assert not is_mapped and found.any()
    assert "every start packs the weights again" in caplog.text


def test_an_error_while_packing_leaves_nothing(checkpoint, tmp_path: Path):
    def failing(out: np.ndarray) -> None:
        raise RuntimeError("a bad weight")

    with pytest.raises(RuntimeError, match="a bad weight"):
        packed_weights(checkpoint, "plan", NBYTES, failing)
    assert files(tmp_path) == []


def test_two_that_pack_at_once_both_have_the_weights(checkpoint, tmp_path: Path):
    inner, outer = Filler(1), Filler(1)
    seen = []

    def slow(out: np.ndarray) -> None:
        seen.append(packed_weights(checkpoint, "plan", NBYTES, inner))
        outer(out)

    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, slow)
    assert is_mapped and np.array_equal(found, outer.expected)
    assert not seen[0][1] and np.array_equal(seen[0][0], inner.expected)
    assert [path.suffix for path in files(tmp_path)] == [".bin"]


def overtaken(monkeypatch: pytest.MonkeyPatch, module: ModuleType, meanwhile: Callable[[], None]) -> None:
    """Call `meanwhile` once, after `module` has opened a file and before it locks it."""
    lock = module.lock

    def late(descriptor: int, **options: bool) -> None:
        monkeypatch.setattr(module, "lock", lock)
        meanwhile()
        lock(descriptor, **options)

    monkeypatch.setattr(module, "lock", late)


def test_one_that_gets_the_lock_after_the_rename_does_not_touch_the_finished_file(
    checkpoint, tmp_path: Path, monkeypatch, caplog
):
    def finish() -> None:
        assert packed_weights(checkpoint, "plan", NBYTES, Filler(1))[1]
        gc.collect()  # and nobody maps it
        (path,) = files(tmp_path)
        finished.append(path.stat())

    finished: list[os.stat_result] = []
    overtaken(monkeypatch, packed, finish)
    found, _ = packed_weights(checkpoint, "plan", NBYTES, fill := Filler(1))
    assert np.array_equal(found, fill.expected)
    (path,) = files(tmp_path)
    status = path.stat()
    assert (status.st_ino, status.st_mtime_ns) == (finished[0].st_ino, finished[0].st_mtime_ns)
    assert caplog.text == ""
    assert packed_weights(checkpoint, "plan", NBYTES, never := Filler(1))[1] and never.calls == 0


def test_a_file_that_took_the_place_of_a_dead_one_is_not_removed_for_it(bounded: Path, tmp_path: Path, monkeypatch):
    """Between opening the dead file and locking it, a start has packed its model again."""
    dead = keep(tmp_path, bounded, "a", 20)
    (tmp_path / "a" / "model.safetensors").touch()
    held = []

    def pack_again() -> None:
        with open_checkpoint(tmp_path / "a", allow_quantized=True) as opened:
            held.append(packed_weights(opened, "plan", NBYTES, Filler(2)))

    overtaken(monkeypatch, packed_files, pack_again)
    packed_files.make_room(0, packed.LAYOUT_VERSION)
    assert held[0][1] and dead.exists()


def test_a_file_is_flushed_whole_before_its_rename_and_its_folder_after(checkpoint, tmp_path: Path, monkeypatch):
    events: list[tuple[str, list[str]]] = []

    def suffixes() -> list[str]:
        return [path.suffix for path in files(tmp_path)]

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        if kind == "file":
            with (tmp_path / "home" / "packed").joinpath(files(tmp_path)[0]).open("rb") as file:
                assert file.read(10) == b"minicpm pa"
        events.append((kind, suffixes()))

    monkeypatch.setattr(os, "fsync", fsync)
    packed_weights(checkpoint, "plan", NBYTES, Filler())
    assert events == [("file", [".partial"]), ("folder", [".bin"])]


def test_after_a_kill_while_packing_the_next_start_packs(checkpoint, tmp_path: Path):
    code = (
        "import os, signal, sys\n"
        "from minicpm.engine.backends import packed\n"
        "from minicpm.formats.checkpoint import open_checkpoint\n"
        "packed.SMALLEST_FILE_BYTES = 0\n"
        "def dying(out):\n"
        "    out[:100] = 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"checkpoint = open_checkpoint({str(checkpoint.path)!r}, allow_quantized=True)\n"
        f"packed.packed_weights(checkpoint, 'plan', {NBYTES}, dying)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert [path.suffix for path in files(tmp_path)] == [".partial"]
    fill = Filler()
    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, fill)
    assert is_mapped and np.array_equal(found, fill.expected)
    assert [path.suffix for path in files(tmp_path)] == [".bin"]


def test_small_models_keep_no_file(model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path / "home"))
    found, is_mapped = packed_weights(open_checkpoint(model, allow_quantized=True), "plan", NBYTES, Filler())
    assert not is_mapped and len(found) == NBYTES
    assert not (tmp_path / "home").exists()


# --- which files are kept ----------------------------------------------------------------------------------------


def keep(tmp_path: Path, model: Path, name: str, age_s: int) -> Path:
    """The packed file of a copy of the model, used last `age_s` seconds before the others."""
    folder = Path(shutil.copytree(model, tmp_path / name))
    before = set(packed_files.folder().glob("*")) if packed_files.folder().is_dir() else set()
    with open_checkpoint(folder, allow_quantized=True) as opened:
        assert packed_weights(opened, "plan", NBYTES, Filler())[1]
    (path,) = set(packed_files.folder().iterdir()) - before
    os.utime(path, (1_600_000_000 - age_s,) * 2)
    return path


@pytest.fixture
def bounded(model: Path, tmp_path: Path, monkeypatch) -> Path:
    """A cache that has room for three files. Gives the model to be copied."""
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(packed, "SMALLEST_FILE_BYTES", 0)
    monkeypatch.setattr(packed_files, "MAX_TOTAL_BYTES", 50_000)
    return model


def test_the_least_recently_used_goes_when_there_is_no_room(bounded: Path, tmp_path: Path):
    old, older, young = (keep(tmp_path, bounded, name, age) for name, age in (("a", 20), ("b", 30), ("c", 10)))
    with open_checkpoint(tmp_path / "b", allow_quantized=True) as opened:
        assert packed_weights(opened, "plan", NBYTES, Filler())[1]  # mapping it is use
    new = keep(tmp_path, bounded, "d", 0)
    assert set(files(tmp_path)) == {older, young, new} and not old.exists()


@pytest.mark.parametrize("change", ["gone", "weights", "layout", "unreadable", "partial"])
def test_what_no_start_can_map_goes_first(bounded: Path, tmp_path: Path, monkeypatch, change: str):
    old, dead = keep(tmp_path, bounded, "a", 20), keep(tmp_path, bounded, "b", 1)
    if change == "gone":
        shutil.rmtree(tmp_path / "b")
    elif change == "weights":
        (tmp_path / "b" / "model.safetensors").touch()
    elif change == "layout":
        dead.write_bytes(dead.read_bytes().replace(b'"layout": 1', b'"layout": 0', 1))
    elif change == "unreadable":
        dead.write_bytes(b"\xff" * 9000)
    else:
        dead = dead.rename(dead.with_suffix(".partial"))
    assert [file.path for file in packed_files.list_files(packed.LAYOUT_VERSION) if file.is_dead] == [dead]
    new = keep(tmp_path, bounded, "c", 0)
    assert set(files(tmp_path)) == {old, new}


def test_a_file_that_is_mapped_stays_whatever_it_costs(bounded: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(packed_files, "MAX_TOTAL_BYTES", 0)
    keep(tmp_path, bounded, "a", 0)
    with open_checkpoint(tmp_path / "a", allow_quantized=True) as opened:
        held, _ = packed_weights(opened, "plan", NBYTES, Filler())
    shutil.rmtree(tmp_path / "a")
    keep(tmp_path, bounded, "b", 0)
    assert len(files(tmp_path)) == 2 and held.any()
    del held
    gc.collect()
    keep(tmp_path, bounded, "c", 0)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_made_again(checkpoint, tmp_path: Path, mode: int):
    packed_weights(checkpoint, "plan", NBYTES, Filler(1))
    (path,) = files(tmp_path)
    path.chmod(mode)
    fill = Filler(2)
    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, fill)
    assert is_mapped and fill.calls == 1 and np.array_equal(found, fill.expected)
    assert not path.stat().st_mode & 0o022


def test_a_link_in_the_place_of_the_file_is_refused(checkpoint, tmp_path: Path, caplog):
    packed_weights(checkpoint, "plan", NBYTES, Filler(1))
    (path,) = files(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    fill = Filler(2)
    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, fill)
    assert not is_mapped and np.array_equal(found, fill.expected)
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_what_is_no_file_stands_in_nobodys_way(checkpoint, tmp_path: Path, what: str):
    path = packed_files.path_of(checkpoint.path)
    path.parent.mkdir(parents=True)
    path.mkdir() if what == "folder" else os.mkfifo(path)
    fill = Filler()
    found, is_mapped = packed_weights(checkpoint, "plan", NBYTES, fill)
    assert np.array_equal(found, fill.expected)
    assert is_mapped == (what == "pipe")


def test_a_copied_machine_packs_again(checkpoint, tmp_path: Path):
    """Equal paths, contents and times, as after a backup or in a home that two machines share."""
    packed_weights(checkpoint, "plan", NBYTES, Filler(1))
    original = (tmp_path / "model").rename(tmp_path / "original")
    shutil.copytree(original, tmp_path / "model")
    shutil.copystat(original / "model.safetensors", tmp_path / "model" / "model.safetensors")
    fill = Filler(2)
    with open_checkpoint(tmp_path / "model", allow_quantized=True) as copy:
        found, is_mapped = packed_weights(copy, "plan", NBYTES, fill)
    assert is_mapped and fill.calls == 1 and np.array_equal(found, fill.expected)


def test_the_key_tells_the_byte_order(checkpoint, monkeypatch):
    packed_weights(checkpoint, "plan", NBYTES, Filler(1))
    monkeypatch.setattr(packed.sys, "byteorder", "big")
    fill = Filler(2)
    found, _ = packed_weights(checkpoint, "plan", NBYTES, fill)
    assert fill.calls == 1 and np.array_equal(found, fill.expected)


def test_only_the_packed_files_of_models_that_are_gone_are_removed(bounded: Path, tmp_path: Path):
    gone, kept = keep(tmp_path, bounded, "a", 20), keep(tmp_path, bounded, "b", 10)
    nbytes = gone.stat().st_size
    shutil.rmtree(tmp_path / "a")
    assert packed_files.remove_of(tmp_path / "b") == 0
    assert packed_files.remove_of(tmp_path) == nbytes
    assert files(tmp_path) == [kept]
