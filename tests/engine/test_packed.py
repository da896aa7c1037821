"""The packed file: made once, mapped ever after, never believed when anything differs."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicpm.engine import packed
from minicpm.engine.packed import packed_weights
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.quant.folder import quantize_folder
from tiny_models import ODD, write_model

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


def test_after_a_kill_while_packing_the_next_start_packs(checkpoint, tmp_path: Path):
    code = (
        "import os, signal, sys\n"
        "from minicpm.engine import packed\n"
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
