"""The operations of docs/numerics.md in numpy, used by the numpy backend.

A float32 matrix product of whole numbers is exact while sums stay below 2**24. So BLAS can do the integer arithmetic,
in any order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minicpm.formats.tensor import round_to_bfloat16
from minicpm.sampling.exponential import split_exp

Floats = npt.NDArray[np.float32]

LANES = 16  # virtual lanes of a float sum
LARGEST_CODE = np.float32(127)
# A group of activations below this counts as zero: near 2**-121, 127 / m would overflow, and results be subnormal.
SMALLEST_ACTIVATION = np.float32(2.0**-100)
SMALLEST_NORMAL = np.float32(2.0**-126)
BLOCK_ELEMENTS = 1 << 20  # of temporaries, so that they fit into the cache


def lane_sum(values: Floats) -> Floats:
    """Sums (...) over the last axis of (..., K) by 16 virtual lanes, for any K."""
    K = values.shape[-1]
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -K % LANES)])
    # accumulate, unlike sum, guarantees to add one after the other.
    lanes = np.add.accumulate(padded.reshape(*values.shape[:-1], -1, LANES), axis=-2)[..., -1, :]
    return fold(lanes)


def fold(lanes: Floats) -> Floats:
    """(..., 16) -> (...): halves are added until one lane is left."""
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def exp(x: Floats) -> Floats:
    """exp by single-precision additions and multiplications only: the same bits on every machine."""
    series, n = split_exp(np.clip(np.atleast_1d(x), np.float32(-87), np.float32(88)))
    with np.errstate(invalid="ignore"):  # the exponent of a NaN is arbitrary, but the product stays NaN
        exponents = (n.astype(np.int32) + 127) << 23
    values: Floats = np.where(x < -87, np.float32(0), series * exponents.view(np.float32)).reshape(np.shape(x))
    return values


def silu(x: Floats) -> Floats:
    return x / (np.float32(1) + exp(-x))


def rms_norm(hidden_states: Floats, weight: Floats, eps: float) -> Floats:
    """(T, K) normalised by its root mean square, times weight (K,)."""
    mean = lane_sum(hidden_states * hidden_states) / np.float32(len(weight))
    reciprocal: Floats = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return (hidden_states * reciprocal[:, None]) * weight


def quantize_activations(x: Floats, group_size: int) -> tuple[Floats, Floats]:
    """(T, K) -> integers -127..127 as float32 (K / G, T, G), and scales (K / G, T); K is padded with zeros."""
    T, K = x.shape
    groups = np.pad(x, ((0, 0), (0, -K % group_size))).reshape(T, -1, group_size).transpose(1, 0, 2)
    largest = np.abs(groups).max(axis=2)
    is_finite, is_zero = np.isfinite(largest), largest < SMALLEST_ACTIVATION
    divisor = np.where(is_finite & ~is_zero, largest, LARGEST_CODE)
    factor = np.where(is_zero, np.float32(0), LARGEST_CODE / divisor)
    codes = np.rint(np.where(is_finite[:, :, None], groups, np.float32(0)) * factor[:, :, None])
    scales = np.where(is_zero, np.float32(0), divisor / LARGEST_CODE)
    return codes, np.where(is_finite, scales, np.float32(np.nan))


def as_bfloat16(x: Floats) -> Floats:
    """The nearest bfloat16 of every number, ties to even; subnormal numbers become zero."""
    rounded = (round_to_bfloat16(x).astype(np.uint32) << 16).view(np.float32)
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), rounded)
