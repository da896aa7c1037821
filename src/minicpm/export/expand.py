"""Expand a model, quantized or in a format of 2024, to a plain Hugging Face folder in floating point.

Engines that cannot compute with our codes read it. The weights are the same numbers: a code times its scale has at most
19 significant bits, so float32 holds it exactly and 16-bit types round once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minicpm.export.destination import require_disk
from minicpm.export.hf_folder import companion_files, plan_floats, write_files
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.quant.format import IntWeight, read_weight


def expanded_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Bytes of all weights in `dtype`."""
    return plan_floats(checkpoint.config.with_dtype(dtype)).weight_bytes


def expand(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Write the model into the empty folder `folder` with all weights in `dtype`, float32, float16 or bfloat16.

    The folder is meant to be used and deleted, so it is not read back. Raises ModelError if the disk is too full,
    FormatError for a damaged source.
    """
    copies = companion_files(checkpoint.path) if checkpoint.path.is_dir() else []
    plan = plan_floats(checkpoint.config.with_dtype(dtype), copies)
    require_disk(folder, plan.weight_bytes, copies)

    def content(info: TensorInfo) -> Iterable[memoryview]:
        yield _expanded(checkpoint, info.name, info.dtype).buffer.cast("B")

    write_files(folder, plan, content, label="expanding")


def _expanded(checkpoint: Checkpoint, name: str, dtype: str) -> TensorView:
    weight = read_weight(checkpoint, name)
    if isinstance(weight, IntWeight):
        return TensorView.from_float32(name, weight.dequantize(), dtype)
    view = weight.cast(dtype)
    checkpoint.release(name)
    return view
