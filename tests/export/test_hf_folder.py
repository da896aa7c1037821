"""The one writer of model folders: what it writes, what it refuses, and what it leaves behind (nothing)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minicpm.errors import FormatError, ModelError
from minicpm.export import hf_folder
from minicpm.export.destination import new_folder, report_full_disk
from minicpm.export.hf_folder import FolderPlan, plan_floats, write_files, write_folder
from minicpm.formats import hf
from minicpm.formats.config import DecoderConfig
from minicpm.formats.tensor import TensorInfo


@pytest.fixture
def plan(tiny: DecoderConfig, tmp_path: Path) -> FolderPlan:
    """TINY in three shards, with a licence and a text beside it."""
    (tmp_path / "LICENSE").write_text("free")
    whole = plan_floats(tiny, [tmp_path / "LICENSE"], {"generation_config.json": "{}\n"})
    shards = hf.plan_files(whole.infos, -(-whole.weight_bytes // 3))
    return replace(whole, files=shards)


def values(info: TensorInfo) -> np.ndarray:
    return np.arange(np.prod(info.shape), dtype=np.float32).reshape(info.shape) + len(info.name)


def content(info: TensorInfo) -> Iterable[memoryview]:
    """Two chunks a tensor."""
    data = values(info).reshape(-1).data.cast("B")
    yield data[:8]
    yield data[8:]


class Watching:
    """Progress that notes what it is told."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[int]] = {}
        self.open: str | None = None

    def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        assert self.open is None
        self.open, self.tasks[label] = label, [total_bytes, 0]

    def advance(self, nbytes: int) -> None:
        assert self.open is not None
        self.tasks[self.open][1] += nbytes

    def end(self) -> None:
        self.open = None


def test_the_folder_holds_what_was_planned(plan: FolderPlan, tmp_path: Path):
    watching = Watching()
    written = write_folder(tmp_path / "out", plan, content, label="trying", progress=watching)
    out = tmp_path / "out"
    assert written.files == tuple(sorted(path.name for path in out.iterdir()))
    assert written.nbytes == sum(path.stat().st_size for path in out.iterdir())
    assert (out / "LICENSE").read_text() == "free" and (out / "generation_config.json").read_text() == "{}\n"
    assert json.loads((out / "config.json").read_text()) == plan.config.to_dict()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(plan.files) == len(set(index["weight_map"].values())) > 1
    stored = {name: array for file in plan.files for name, array in load_file(out / file.name).items()}
    assert stored.keys() == index["weight_map"].keys() == plan.config.parameter_shapes().keys()
    assert all(np.array_equal(stored[info.name], values(info)) for info in plan.infos)
    assert watching.tasks == {task: [plan.weight_bytes] * 2 for task in ("trying", "checking")}
    assert watching.open is None


def fails_with(error: BaseException) -> Callable[[TensorInfo], Iterable[memoryview]]:
    def failing(info: TensorInfo) -> Iterable[memoryview]:
        if info.name == "model.layers.1.mlp.up_proj.weight":
            raise error
        return content(info)

    return failing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_a_model_error_and_leaves_nothing(plan: FolderPlan, tmp_path: Path, number: int):
    with pytest.raises(ModelError, match=f"the disk is full; the model needs {plan.weight_bytes} bytes"):
        write_folder(tmp_path / "out", plan, fails_with(OSError(number, os.strerror(number))), label="trying")
    assert [path.name for path in tmp_path.iterdir()] == ["LICENSE"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken disk"), KeyboardInterrupt()])
def test_what_else_goes_wrong_comes_through_and_leaves_nothing(plan: FolderPlan, tmp_path: Path, error: BaseException):
    watching = Watching()
    with pytest.raises(type(error)) as raised:
        write_folder(tmp_path / "out", plan, fails_with(error), label="trying", progress=watching)
    assert raised.value is error and watching.open is None
    assert [path.name for path in tmp_path.iterdir()] == ["LICENSE"]


def test_a_failed_run_keeps_the_folder_that_was_there(plan: FolderPlan, tmp_path: Path):
    write_folder(tmp_path / "out", plan, content, label="trying")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", plan, fails_with(KeyboardInterrupt()), label="again", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_no_room_is_said_before_a_tensor_is_asked_for(
    plan: FolderPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("minicpm.export.destination.DISK_RESERVE_BYTES", 1 << 60)
    with pytest.raises(ModelError, match="make room or choose another disk"):
        write_folder(tmp_path / "out", plan, fails_with(AssertionError()), label="trying")


def test_a_configuration_that_reads_back_differently_is_refused(plan: FolderPlan, tmp_path: Path):
    other = replace(plan, config=replace(plan.config, scale_emb=13))
    with pytest.raises(FormatError, match=r"config\.json: reads back as another model"):
        write_folder(tmp_path / "out", other, content, label="trying")
    with pytest.raises(FormatError, match="reads back as another model"):
        write_folder(tmp_path / "out", replace(plan, form="llama"), content, label="trying")


@pytest.mark.parametrize("file", [0, -1])
def test_a_bit_that_flips_on_the_disk_is_found_in_any_shard(
    plan: FolderPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int
):
    def flip(path: Path) -> None:
        if path.name == plan.files[file].name:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)

    monkeypatch.setattr(hf_folder, "forget_cached_pages", flip)
    with pytest.raises(FormatError, match="other bytes than were written"):
        write_folder(tmp_path / "out", plan, content, label="trying")
    assert [path.name for path in tmp_path.iterdir()] == ["LICENSE"]


def test_files_in_a_folder_of_the_callers_have_their_checksums(plan: FolderPlan, tmp_path: Path):
    with new_folder(tmp_path / "mine") as folder:
        checksums = write_files(folder, plan, content, label="trying")
        again = write_files(_fresh(tmp_path), plan, content, label="trying")
    assert checksums == again and checksums.keys() == plan.config.parameter_shapes().keys()


def _fresh(tmp_path: Path) -> Path:
    (tmp_path / "fresh").mkdir()
    return tmp_path / "fresh"


def test_only_a_full_disk_is_reported_as_one():
    with pytest.raises(OSError, match="broken") as raised, report_full_disk(Path("x"), 1):
        raise OSError(errno.EIO, "broken")
    assert not isinstance(raised.value, ModelError)
