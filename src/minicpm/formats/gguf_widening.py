"""Blocks of the GGUF types that no engine here runs: widened to float32 exactly, then rounded once to INT8.

`widen` gives ggml's own numbers, to the last bit. `int8_of` gives codes and scales in groups of 32: Q5_0 and IQ4_NL
are whole numbers times one scale already and lose nothing; of every other number at most half a step is lost, and the
step is the 127th part of its group's largest (docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from minicpm.errors import ModelError
from minicpm.formats.compressed_tensors import Packing
from minicpm.formats.gguf import (
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    BlockType,
)
from minicpm.formats.gguf_blocks import GROUP_SIZE, LARGEST_SCALE, ROWS_ELEMENTS, Bytes, Floats, Halves

INT8_PACKING = Packing(8, GROUP_SIZE)
HIGHEST_CODE = np.float32(127)
# The 16 numbers that a code of the IQ4 types chooses from (ggml's kvalues_iq4nl).
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def widen(blocks: Bytes, kind: BlockType) -> Floats:
    """Blocks (N, bytes) of one of the types here to float32 (N, K); what a damaged scale gives is not finite."""
    rows = blocks.reshape(-1, kind.nbytes)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.ascontiguousarray(_WIDENERS[kind.id](rows).reshape(len(blocks), -1), np.float32)


def int8_of(blocks: Bytes, kind: BlockType) -> tuple[Bytes, Halves]:
    """Blocks (N, bytes) as packed codes + 128 (N, K) and scales (N, K / 32), some rows at a time.

    Raises ModelError for numbers that are not finite or too large for a float16 scale.
    """
    N, K = len(blocks), blocks.shape[1] // kind.nbytes * kind.elements
    codes, scales = np.empty((N, K), np.uint8), np.empty((N, K // GROUP_SIZE), "<f2")
    step = max(1, ROWS_ELEMENTS // K)
    for start in range(0, N, step):
        part = slice(start, start + step)
        made, scales[part] = _exact(blocks[part], kind) if kind in _EXACT else _rounded(widen(blocks[part], kind))
        codes[part] = (made.reshape(len(made), -1) ^ np.int8(-128)).view(np.uint8)
    return codes, scales


def _exact(blocks: Bytes, kind: BlockType) -> tuple[npt.NDArray[np.int8], Halves]:
    rows = blocks.reshape(-1, kind.nbytes)
    scales = _halves(rows[:, :2]).reshape(len(blocks), -1)
    if not np.isfinite(scales).all():
        raise ModelError("it holds a scale that is not finite")
    return _EXACT[kind](rows).reshape(len(blocks), -1), scales


def _rounded(values: Floats) -> tuple[npt.NDArray[np.int8], Halves]:
    """The nearest codes (N, K) and the least scales (N, K / 32) that reach every number; an all-zero group has 0."""
    groups = values.reshape(len(values), -1, GROUP_SIZE)
    largest = np.abs(groups).max(axis=2)
    if not (largest <= LARGEST_SCALE * HIGHEST_CODE).all():
        raise ModelError("it holds numbers that are not finite or too large for a float16 scale")
    scales = (largest / HIGHEST_CODE).astype("<f2")
    # float16 has few bits near zero: rounded down, a scale would clip its largest numbers, or be zero.
    scales = np.where(scales * HIGHEST_CODE < largest, np.nextafter(scales, np.float16(np.inf)), scales)
    steps = np.where(scales == 0, np.float16(1), scales).astype(np.float32)
    return np.rint(groups / steps[:, :, None]).astype(np.int8), scales


# --- one function a type: blocks (B, bytes) to float32 (B, ...) in the order of the row ---------------------------


def _halves(pairs: Bytes) -> Halves:
    return np.ascontiguousarray(pairs).view("<f2")


def _numbers(pairs: Bytes) -> Floats:
    """float16 bytes (B, 2) as float32 (B, 1)."""
    return _halves(pairs).astype(np.float32)


def _bits(data: Bytes, width: int, run: int) -> Bytes:
    """Bytes (B, n) cut into `run`s, of each first the lowest `width` bits, then the next ones: (B, 8 n / width)."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    parts = data.reshape(len(data), -1, 1, run) >> shifts & np.uint8((1 << width) - 1)
    return parts.reshape(len(data), -1)


def _fifth_bits(words: Bytes) -> Bytes:
    """Four bytes (B, 4) to 32 bits (B, 32), each worth 16."""
    return np.unpackbits(words, axis=1, bitorder="little") << np.uint8(4)


def _floats(codes: Bytes | npt.NDArray[np.int8]) -> Floats:
    return codes.astype(np.float32)


def _times(steps: Floats, codes: Bytes | npt.NDArray[np.int8]) -> Floats:
    """Steps (B, n) of sub-blocks times their codes (B, 256): (B, n, 256 / n)."""
    return steps[:, :, None] * _floats(codes).reshape(*steps.shape, -1)


def _q4_1(rows: Bytes) -> Floats:
    scale, least, codes = np.split(rows, (2, 4), axis=1)
    return _numbers(scale) * _floats(_bits(codes, 4, 16)) + _numbers(least)


def _q5_0_codes(rows: Bytes) -> npt.NDArray[np.int8]:
    _, high, low = np.split(rows, (2, 6), axis=1)
    return (_bits(low, 4, 16) | _fifth_bits(high)).view(np.int8) - np.int8(16)


def _q5_0(rows: Bytes) -> Floats:
    return _numbers(rows[:, :2]) * _floats(_q5_0_codes(rows))


def _q5_1(rows: Bytes) -> Floats:
    scale, least, high, low = np.split(rows, (2, 4, 8), axis=1)
    return _numbers(scale) * _floats(_bits(low, 4, 16) | _fifth_bits(high)) + _numbers(least)


def _iq4_nl_codes(rows: Bytes) -> npt.NDArray[np.int8]:
    return IQ4_VALUES[_bits(rows[:, 2:], 4, 16)]


def _iq4_nl(rows: Bytes) -> Floats:
    return _numbers(rows[:, :2]) * _floats(_iq4_nl_codes(rows))


def _iq4_xs(rows: Bytes) -> Floats:
    """A block of 256: float16 scale, 8 sub-scales' high 2 bits, their low 4, the codes."""
    scale, high, low, codes = np.split(rows, (2, 4, 8), axis=1)
    sub_scales = (_bits(low, 4, 1) | _bits(high, 2, 1) << np.uint8(4)).view(np.int8) - np.int8(32)
    return _times(_numbers(scale) * _floats(sub_scales), IQ4_VALUES[_bits(codes, 4, 16)])


def _q2_k(rows: Bytes) -> Floats:
    """A block of 256: 16 pairs of 4-bit sub-scale and sub-minimum, the codes, float16 scale and minimum."""
    pairs, codes, scale, least = np.split(rows, (16, 80, 82), axis=1)
    steps = _numbers(scale) * _floats(pairs & np.uint8(15))
    lows = _numbers(least) * _floats(pairs >> np.uint8(4))
    return _times(steps, _bits(codes, 2, 32)) - lows[:, :, None]


def _q3_k(rows: Bytes) -> Floats:
    """A block of 256: the codes' third bits, the codes' low 2 bits, 16 sub-scales of 6 bits, the float16 scale."""
    third, low, packed, scale = np.split(rows, (32, 96, 108), axis=1)
    sub_scales = _bits(packed[:, :8], 4, 8) | _bits(packed[:, 8:], 2, 4) << np.uint8(4)
    steps = _numbers(scale) * _floats(sub_scales.view(np.int8) - np.int8(32))
    # A third bit that is not set takes 4 away.
    codes = (_bits(low, 2, 32) | _bits(third, 1, 32) << np.uint8(2)).view(np.int8) - np.int8(4)
    return _times(steps, codes)


def _steps_and_lows(rows: Bytes) -> tuple[Floats, Floats]:
    """8 steps and 8 minimums (B, 8) of Q4_K or Q5_K, each of 6 bits, in 12 bytes after the two float16 numbers."""
    scale, least, packed = np.split(rows[:, :16], (2, 4), axis=1)
    first, second, last = np.split(packed, 3, axis=1)
    sub_scales = np.concatenate([first & np.uint8(63), last & np.uint8(15) | first >> np.uint8(2) & np.uint8(48)], 1)
    sub_lows = np.concatenate([second & np.uint8(63), last >> np.uint8(4) | second >> np.uint8(2) & np.uint8(48)], 1)
    return _numbers(scale) * _floats(sub_scales), _numbers(least) * _floats(sub_lows)


def _q4_k(rows: Bytes) -> Floats:
    steps, lows = _steps_and_lows(rows)
    return _times(steps, _bits(rows[:, 16:], 4, 32)) - lows[:, :, None]


def _q5_k(rows: Bytes) -> Floats:
    steps, lows = _steps_and_lows(rows)
    codes = _bits(rows[:, 48:], 4, 32) | _bits(rows[:, 16:48], 1, 32) << np.uint8(4)
    return _times(steps, codes) - lows[:, :, None]


def _q6_k(rows: Bytes) -> Floats:
    """A block of 256: the codes' low 4 bits, their high 2 bits, 16 int8 sub-scales, the float16 scale."""
    low, high, sub_scales, scale = np.split(rows, (128, 192, 208), axis=1)
    codes = (_bits(low, 4, 64) | _bits(high, 2, 32) << np.uint8(4)).view(np.int8) - np.int8(32)
    return _times(_numbers(scale) * _floats(sub_scales.view(np.int8)), codes)


_WIDENERS: dict[int, Callable[[Bytes], Floats]] = {
    Q4_1.id: _q4_1,
    Q5_0.id: _q5_0,
    Q5_1.id: _q5_1,
    IQ4_NL.id: _iq4_nl,
    IQ4_XS.id: _iq4_xs,
    Q2_K.id: _q2_k,
    Q3_K.id: _q3_k,
    Q4_K.id: _q4_k,
    Q5_K.id: _q5_k,
    Q6_K.id: _q6_k,
}
# Whole numbers times one scale in every block of 32.
_EXACT: dict[BlockType, Callable[[Bytes], npt.NDArray[np.int8]]] = {Q5_0: _q5_0_codes, IQ4_NL: _iq4_nl_codes}
