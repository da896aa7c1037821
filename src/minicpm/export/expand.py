"""Expand a model, quantized or in a form of 2024, to a plain Hugging Face folder in floating point.

For engines that do not compute with our codes. The weights are the same numbers: a code times its scale has at most 19
significant bits, so float32 holds them exactly and 16 bits round once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from minicpm.export.convert import companion_files, require_disk
from minicpm.files import write_text
from minicpm.formats import hf
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.folder import copy_file
from minicpm.formats.hf import DEFAULT_SHARD_BYTES
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.quant.format import IntWeight, read_weight


def expanded_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Bytes of all weights in `dtype`."""
    return sum(info.nbytes for info in _infos(checkpoint, dtype))


def expand(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Write the model into the empty folder `folder` with all weights in `dtype`, float32, float16 or bfloat16.

    Meant for a folder that is used and deleted: nothing is synced, and it is not read back. ModelError where the disk
    is too full, FormatError for a source that is damaged.
    """
    infos = _infos(checkpoint, dtype)
    copies = companion_files(checkpoint, "hf") if checkpoint.path.is_dir() else []
    require_disk(folder, expanded_bytes(checkpoint, dtype), copies)
    files = hf.plan_files(infos, DEFAULT_SHARD_BYTES)

    def content(name: str) -> Iterable[memoryview]:
        yield _expanded(checkpoint, name, dtype).buffer.cast("B")

    for _ in hf.write_weights(folder, files, content):
        pass
    if (index := hf.index_of(files)) is not None:
        write_text(folder / index[0], json.dumps(index[1]))
    write_text(folder / "config.json", json.dumps(hf.write_config(checkpoint.config.with_dtype(dtype))))
    for path in copies:
        copy_file(path, folder / path.name)


def _infos(checkpoint: Checkpoint, dtype: str) -> list[TensorInfo]:
    return [TensorInfo(name, dtype, shape) for name, shape in checkpoint.config.parameter_shapes().items()]


def _expanded(checkpoint: Checkpoint, name: str, dtype: str) -> TensorView:
    weight = read_weight(checkpoint, name)
    if isinstance(weight, IntWeight):
        return TensorView.from_float32(name, weight.dequantize(), dtype)
    view = weight.cast(dtype)
    checkpoint.release(name)
    return view
