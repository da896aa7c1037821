"""A quantized model as a model of floats: the source of conversions, of another quantization, and of training.

    with open_dequantized("MiniCPM-2B-q4_0.gguf") as checkpoint:
        checkpoint.read("model.layers.0.mlp.up_proj.weight")  # float32

A code times its scale has at most 19 significant bits, so float32 holds every weight of a folder exactly. Of a GGUF
file the weights are ggml's own numbers (formats/gguf_widening.py), not the INT8 codes that the engines run. What the
quantization lost before is not restored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.compressed_tensors import PACKED, SCALE, SHAPE
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.quant.format import read_weight


def open_dequantized(path: str | Path) -> Checkpoint:
    """Open a model of any format; quantized weights are read as float32. `dequantized` of the result names their kinds.

    Raises what open_checkpoint raises. Reading a quantized weight holds it in memory as float32.
    """
    checkpoint = open_checkpoint(path, allow_quantized=True)
    exact = checkpoint.exact_floats
    if not checkpoint.packings and not (exact and exact.quantized_types):
        return checkpoint
    try:
        return checkpoint.with_tensors(_Dequantized(checkpoint), kinds_of(checkpoint))
    except BaseException:
        checkpoint.close()
        raise


def kinds_of(checkpoint: Checkpoint) -> str:
    """The kinds of a model's quantized weights in words: "INT4 and INT8", or the block types of a GGUF file."""
    exact = checkpoint.exact_floats
    kinds = exact.quantized_types if exact else sorted({f"INT{p.bits}" for p in checkpoint.packings.values()})
    return " and ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))


class _Dequantized:
    """The tensors of a quantized checkpoint by their published names, as a `TensorFile`."""

    def __init__(self, checkpoint: Checkpoint):
        self.path = checkpoint.path
        self._checkpoint = checkpoint
        exact = checkpoint.exact_floats
        self._exact = exact
        self._widened = {name for name in checkpoint.config.parameter_shapes() if exact and exact.is_widened(name)}
        quantized = {*checkpoint.packings, *self._widened}
        self.tensors = {
            name: TensorInfo(name, "float32", shape) if name in quantized else checkpoint.tensors[name]
            for name, shape in checkpoint.config.parameter_shapes().items()
        }

    def read(self, name: str) -> TensorView:
        if self._exact is not None and name in self._widened:
            values = self._exact.float32(name)
            if not np.isfinite(values).all():
                raise self._checkpoint.damaged(f"{name} holds numbers that are not finite")
        else:
            weight = read_weight(self._checkpoint, name)
            if isinstance(weight, TensorView):
                return weight
            values = weight.dequantize()
        self.release(name)
        return TensorView.from_float32(name, values, "float32")

    def release(self, name: str) -> None:
        for suffix in (PACKED, SCALE, SHAPE) if name in self._checkpoint.packings else ("",):
            self._checkpoint.release(name + suffix)

    def close(self) -> None:
        self._checkpoint.close()
