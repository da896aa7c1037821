"""Blocks of the two GGUF types that this package's engines run as they are, both ways: Q4_0 and Q8_0.

They hold 32 numbers of a row: a float16 scale, then 16 bytes (number j in the low nibble of byte j, number
16 + j in the high one, code + 8) or 32 signed codes. They are exactly this package's INT4 and INT8 in groups of 32, in
another order of bytes, so nothing is requantized between the two. Scales may be negative: ggml gives the largest
number of a Q4_0 block the side with 8 steps. The other types are gguf_widening.py's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from minicpm.errors import ModelError
from minicpm.formats.compressed_tensors import Packing
from minicpm.formats.gguf import Q4_0, Q8_0, BlockType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]

GROUP_SIZE = 32
PACKINGS = {Q4_0.id: Packing(4, GROUP_SIZE), Q8_0.id: Packing(8, GROUP_SIZE)}
BLOCK_TYPES_OF_BITS = {4: Q4_0, 8: Q8_0}
LARGEST_SCALE = np.float32(65504)  # float16's
ROWS_ELEMENTS = 1 << 20  # numbers worked on at a time


# --- rounding ----------------------------------------------------------------------------------------------------


def quantize(values: Floats, kind: BlockType) -> Bytes:
    """Rows (N, K) to blocks (N, bytes) by rounding to nearest, with the very bytes of ggml's reference.

    Raises ModelError for numbers that are not finite or too large for a float16 scale.
    """
    blocks = values.reshape(-1, GROUP_SIZE)
    made = (_quantize_q4_0 if kind is Q4_0 else _quantize_q8_0)(blocks)
    return made.reshape(len(values), -1)


def _quantize_q4_0(blocks: Floats) -> Bytes:
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scales = largest / np.float32(-8)
    scale_bytes = _half_bytes(scales)
    codes = np.trunc(blocks * _reciprocals(scales) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    nibbles = codes[:, :16] | codes[:, 16:] << np.uint8(4)
    return np.concatenate([scale_bytes, nibbles], axis=1)


def _quantize_q8_0(blocks: Floats) -> Bytes:
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scale_bytes = _half_bytes(scales)
    wanted = blocks * _reciprocals(scales)
    magnitude = np.abs(wanted)
    whole = np.floor(magnitude)
    whole += np.floor(2 * (magnitude - whole))  # C's roundf: halves go away from zero
    codes = np.copysign(whole, wanted).astype(np.int8)
    return np.concatenate([scale_bytes, codes.view(np.uint8)], axis=1)


def _reciprocals(scales: Floats) -> Floats:
    """1 / scale; 0 where a block is all zeros, or so small that float16 makes its scale zero anyway."""
    with np.errstate(divide="ignore", over="ignore"):
        reciprocals = np.float32(1) / scales
    return np.where(np.isfinite(reciprocals), reciprocals, np.float32(0))


def _half_bytes(scales: Floats) -> Bytes:
    """Scales (B, 1) as float16's bytes (B, 2); ModelError where they are too large, or not finite."""
    if not (np.abs(scales) <= LARGEST_SCALE).all():
        raise ModelError("it holds numbers that are not finite or too large for a float16 scale")
    halves: Halves = scales.astype("<f2")
    return halves.view(np.uint8)


# --- codes and scales, unchanged ---------------------------------------------------------------------------------


def packed_codes(blocks: Bytes, kind: BlockType) -> Bytes:
    """Blocks (N, bytes) to the packed codes of compressed-tensors (N, K bits / 8): code + 8, or code + 128."""
    N = len(blocks)
    codes = blocks.reshape(N, -1, kind.nbytes)[:, :, 2:]
    if kind is Q8_0:
        return (codes ^ np.uint8(0x80)).reshape(N, -1)
    numbers = np.concatenate([codes & np.uint8(15), codes >> np.uint8(4)], axis=2)
    packed: Bytes = numbers[:, :, 0::2] | numbers[:, :, 1::2] << np.uint8(4)
    return packed.reshape(N, -1)


def scales_of(blocks: Bytes, kind: BlockType) -> Halves:
    """The scales (N, K / 32) of blocks (N, bytes)."""
    N = len(blocks)
    scales = np.ascontiguousarray(blocks.reshape(N, -1, kind.nbytes)[:, :, :2])
    return scales.view("<f2").reshape(N, -1)


def from_packed(packed: Bytes, scales: Halves, kind: BlockType) -> Bytes:
    """Packed codes (N, K bits / 8) and scales (N, K / 32) to blocks (N, bytes): the inverse of the two above."""
    N, blocks = scales.shape
    groups = packed.reshape(N, blocks, -1)
    if kind is Q8_0:
        codes = groups ^ np.uint8(0x80)
    else:
        numbers = np.empty((N, blocks, GROUP_SIZE), np.uint8)
        numbers[:, :, 0::2], numbers[:, :, 1::2] = groups & np.uint8(15), groups >> np.uint8(4)
        codes = numbers[:, :, :16] | numbers[:, :, 16:] << np.uint8(4)
    scale_bytes = np.ascontiguousarray(scales, "<f2").view(np.uint8).reshape(N, blocks, 2)
    return np.concatenate([scale_bytes, codes], axis=2).reshape(N, -1)


# --- some rows at a time --------------------------------------------------------------------------------------------


def by_rows(
    blocks: Bytes, made: npt.NDArray[np.generic], function: Callable[[Bytes], npt.NDArray[np.generic]]
) -> npt.NDArray[np.generic]:
    """Fill `made` (N, ...) with `function` of `blocks` (N, bytes), some rows at a time: temporaries stay small."""
    step = max(1, ROWS_ELEMENTS // blocks.shape[1])
    for start in range(0, len(blocks), step):
        made[start : start + step] = function(blocks[start : start + step])
    return made
