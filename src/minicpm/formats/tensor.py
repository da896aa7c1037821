"""TensorView: the one type in which formats hand weights to each other.

A view is a name, a dtype, a shape and little-endian bytes. bfloat16 has no numpy type, so it travels as
16-bit words; torch and numpy arrays are views of the same buffer, nothing is copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# dtype name (torch's and config.json's word) -> numpy storage type.
STORAGE_DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint32": np.dtype("<u4"),  # MLX's packed codes
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
FLOAT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's metadata, known before its bytes are read."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * STORAGE_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class TensorView:
    """A tensor's bytes with their meaning; `buffer` is C-contiguous and little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: memoryview

    def __post_init__(self) -> None:
        if self.dtype not in STORAGE_DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype} is none of {', '.join(STORAGE_DTYPES)}")
        have = self.buffer.nbytes
        if have != self.info.nbytes:
            raise ValueError(f"{self.name}: {self.dtype}{list(self.shape)} takes {self.info.nbytes} bytes, got {have}")

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.name, self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        return self.info.nbytes

    def storage(self) -> npt.NDArray[np.generic]:
        """The values as numpy's storage type, shape `self.shape`; bfloat16 as uint16 words."""
        return np.frombuffer(self.buffer, dtype=STORAGE_DTYPES[self.dtype]).reshape(self.shape)

    def float32(self) -> npt.NDArray[np.float32]:
        """The values widened (or narrowed, from float64) to float32, shape `self.shape`."""
        words = self.storage()
        if self.dtype == "bfloat16":
            return (words.astype(np.uint32) << 16).view(np.float32)
        return words.astype(np.float32)

    def cast(self, dtype: str) -> TensorView:
        """The same values rounded to nearest-even in another float dtype; itself if the dtype is equal."""
        if dtype == self.dtype:
            return self
        return TensorView.from_float32(self.name, self.float32(), dtype)

    def renamed(self, name: str) -> TensorView:
        return TensorView(name, self.dtype, self.shape, self.buffer)

    @classmethod
    def from_float32(cls, name: str, values: npt.NDArray[np.float32], dtype: str) -> TensorView:
        """Round float32 `values` of any shape to a float dtype; float16 overflow becomes infinity, as in torch."""
        if dtype == "bfloat16":
            words = round_to_bfloat16(values)
        elif dtype in ("float16", "float32"):
            with np.errstate(over="ignore"):
                words = np.ascontiguousarray(values, dtype=STORAGE_DTYPES[dtype])
        else:
            raise ValueError(f"{name}: cannot round to {dtype}; choose one of {', '.join(FLOAT_DTYPES)}")
        return cls(name, dtype, values.shape, words.reshape(-1).view(np.uint8).data)


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16 words, to nearest and ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, np.uint16(0x7FC0), rounded)
