"""How a tensor of one form comes from a tensor of another: another name, a factor, a rounding.

Works in blocks, so that a gigabyte of embeddings needs a few megabytes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm.errors import ModelError
from minicpm.formats.tensor import STORAGE_DTYPES, TensorView

BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Derived:
    """The tensor `name` is the tensor `source` times `factor`."""

    name: str
    source: str
    factor: float = 1.0


def unchanged(names: list[str] | dict[str, tuple[int, ...]]) -> list[Derived]:
    return [Derived(name, name) for name in names]


def chain(first: list[Derived], second: list[Derived]) -> list[Derived]:
    """Derive by `first`, then by `second`, in one step."""
    made = {derived.name: derived for derived in first}
    return [
        Derived(derived.name, made[derived.source].source, made[derived.source].factor * derived.factor)
        for derived in second
    ]


def stream(view: TensorView, factor: float, dtype: str) -> Iterator[memoryview]:
    """The bytes of view * factor rounded to `dtype`, block by block.

    The product is formed in float64 and rounded through float32. Raises ModelError when a finite value
    would become infinite.
    """
    data = view.buffer.cast("B")
    step = BLOCK_ELEMENTS * STORAGE_DTYPES[view.dtype].itemsize
    for start in range(0, data.nbytes, step):
        block = data[start : start + step]
        if factor == 1.0 and dtype == view.dtype:
            yield block
        else:
            yield _converted(view.name, view.dtype, block, factor, dtype)


def _converted(name: str, from_dtype: str, block: memoryview, factor: float, dtype: str) -> memoryview:
    count = block.nbytes // STORAGE_DTYPES[from_dtype].itemsize
    values = TensorView(name, from_dtype, (count,), block).float32()
    scaled = values
    if factor != 1.0:
        with np.errstate(over="ignore"):
            scaled = (values.astype(np.float64) * factor).astype(np.float32)
    rounded = TensorView.from_float32(name, scaled, dtype)
    if np.count_nonzero(np.isinf(rounded.float32())) != np.count_nonzero(np.isinf(values)):
        largest = float(np.max(np.abs(scaled), where=np.isfinite(scaled), initial=0.0))
        raise ModelError(f"{name}: values up to {largest:.3g} do not fit {dtype}; use bfloat16 or float32")
    return rounded.buffer
