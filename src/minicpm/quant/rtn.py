"""Round to nearest, with a search for each group's scale: needs the weights alone, no data.

For every group the scale is chosen among candidates for the smallest squared error, weighted per input feature where
the caller knows which ones matter. Clipping the largest weight a little often pays, because all others get finer steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minicpm.errors import ModelError
from minicpm.formats.compressed_tensors import Packing
from minicpm.quant.format import LARGEST_SCALE, SMALLEST_SCALE, WEIGHT_TYPES, Floats, IntWeight, round_scales

# Steps that the group's largest magnitude is divided into: from 7 on an int4 group is clipped more and more. In 8 bits
# rounding is so fine that clipping does not pay.
CANDIDATE_STEPS = {4: tuple(np.arange(6.5, 9.01, 0.25).tolist()), 8: (127.0,)}
BLOCK_ELEMENTS = 1 << 18  # of weights at a time: the search's temporaries stay in the cache


def quantize(weight: Floats, packing: Packing, importance: Floats | None = None) -> IntWeight:
    """Codes and scales of a float32 weight (N, K); `importance` (K,) >= 0 weighs the squared errors of input features.

    Raises ModelError for weights that are not finite or too large for a float16 scale.
    """
    N, K = weight.shape
    G = packing.group_size
    kind = WEIGHT_TYPES[packing.bits]
    check_range(weight, packing)
    weighing = None if importance is None else np.pad(importance, (0, -K % G)).reshape(-1, G)
    codes = np.empty((N, -(-K // G), G), np.int8)
    scales = np.empty(codes.shape[:2], np.float16)
    step = max(1, BLOCK_ELEMENTS // K)
    for start in range(0, N, step):
        groups = np.pad(weight[start : start + step], ((0, 0), (0, -K % G))).reshape(-1, *codes.shape[1:])
        best = searched_scales(groups, packing.bits, weighing)
        scales[start : start + step] = best
        codes[start : start + step] = _codes(groups, best, kind.low, kind.high)
    return kind.pack(codes.reshape(N, -1)[:, :K], scales, G)


def check_range(weight: Floats, packing: Packing) -> None:
    """Raise ModelError if a weight is not finite, or too large for a float16 scale."""
    largest = float(np.abs(weight).max(initial=0.0))
    if not largest <= LARGEST_SCALE * WEIGHT_TYPES[packing.bits].high:
        raise ModelError(f"its largest weight is {largest:.3g}; {packing.bits}-bit codes reach finite values only")


def searched_scales(groups: Floats, bits: int, weighing: Floats | None) -> npt.NDArray[np.float16]:
    """The candidate of least error per group: (N, K / G) for groups (N, K / G, G).

    `weighing` (K / G, G) >= 0 weighs the squared errors of input features.
    """
    kind = WEIGHT_TYPES[bits]
    largest = np.abs(groups).max(axis=2)
    best = round_scales(largest / np.float32(kind.high))
    if len(CANDIDATE_STEPS[bits]) == 1:
        return best
    least = np.full(largest.shape, np.inf, np.float32)
    for steps in CANDIDATE_STEPS[bits]:
        scales = round_scales(largest / np.float32(steps))
        for _ in range(2):
            codes = _codes(groups, scales, kind.low, kind.high)
            error = _error(groups, codes, scales, weighing)
            is_better = error < least
            least = np.where(is_better, error, least)
            best = np.where(is_better, scales, best)
            scales = _fitted_scales(groups, codes, weighing)
    return best


def _error(groups: Floats, codes: Floats, scales: npt.NDArray[np.float16], weighing: Floats | None) -> Floats:
    """Squared error of every group, weighted: (N, K / G)."""
    errors = codes * scales.astype(np.float32)[:, :, None]
    errors -= groups
    errors *= errors
    if weighing is not None:
        errors *= weighing
    total: Floats = errors.sum(axis=2)
    return total


def _fitted_scales(groups: Floats, codes: Floats, weighing: Floats | None) -> npt.NDArray[np.float16]:
    """The scales of least error for given codes: sum(w c) / sum(c c)."""
    weighted = codes if weighing is None else codes * weighing
    return round_scales(np.vecdot(groups, weighted) / np.maximum(np.vecdot(codes, weighted), SMALLEST_SCALE))


def _codes(groups: Floats, scales: npt.NDArray[np.float16], low: int, high: int) -> Floats:
    """The nearest codes of groups (N, K / G, G), as float32."""
    codes = groups / scales.astype(np.float32)[:, :, None]
    np.rint(codes, out=codes)
    return np.clip(codes, low, high, out=codes)
