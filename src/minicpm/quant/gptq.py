"""GPTQ: round column by column, and let the columns that are not rounded yet make up for the error.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022). For a weight W (N, K) and the second moments H = X^T X of its inputs (K, K) it looks for the codes
Q with the least squared error of the outputs, trace((W - Q) H (W - Q)^T). With U the upper Cholesky factor of H^-1 in
the order of rounding, rounding column k by an error of e costs (e / U[k, k])^2 and moves the columns behind it by
-e U[k, k+1:] / U[k, k].

Here the groups that matter most are rounded first, while there are columns left to make up for them. Within a group
columns are ordered by the same rule. Codes and scales are stored in the order of the weight, so the file needs no
permutation (no "act-order"). The scale of a group is searched when its turn comes, for the least cost as above.

What GPTQ decides early it decides without knowing the rest. So scales and codes are then improved in turn for the same
error: all scales of a row at once by least squares, codes one column at a time (coordinate descent; Behdin et al.,
"QuantEase", 2023). Neither can make it larger; on inputs of a model three rounds save another quarter of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minicpm.errors import ModelError
from minicpm.formats.compressed_tensors import Packing
from minicpm.quant import rtn
from minicpm.quant.format import WEIGHT_TYPES, Codes, Floats, IntWeight, round_scales

# A hundredth of the mean of H's diagonal is added to the diagonal, as in the paper's code: inputs that hardly vary
# would otherwise let errors grow without bound.
DAMPING = 0.01
MOST_DAMPING = 10.0  # what is tried, times ten each, before a matrix is called unusable

ROUNDS = 3  # of fitting scales and descending; more gain next to nothing
ROW_ELEMENTS = 1 << 24  # of the systems of some rows at a time

Halves = npt.NDArray[np.float16]
Moments = npt.NDArray[np.float64] | Floats


def quantize(
    weight: Floats, packing: Packing, moments: Moments, damping: float = DAMPING, rounds: int = ROUNDS
) -> IntWeight:
    """Codes and scales of a float32 weight (N, K) whose inputs have the second moments (K, K), X^T X of any scale.

    An input that is always 0 is rounded to nearest. After GPTQ scales and codes are improved in turn, `rounds` times.
    Raises ModelError for a weight or moments that are not finite.
    """
    N, K = weight.shape
    if moments.shape != (K, K):
        raise ValueError(f"moments {moments.shape} do not match {K} input features")
    if not np.isfinite(moments).all():
        raise ModelError("the second moments of its inputs are not finite; the model computes no numbers on this text")
    kind = WEIGHT_TYPES[packing.bits]
    rtn.check_range(weight, packing)
    G, count = packing.group_size, -(-K // packing.group_size)
    order = rounding_order(np.ascontiguousarray(np.diagonal(moments)), G)
    factor, damping = _inverse_factor(moments[np.ix_(order, order)], damping)
    costs = (1.0 / np.square(np.diagonal(factor))).astype(np.float32)
    left = np.ascontiguousarray(weight[:, order])
    codes = np.empty((N, K), np.int8)
    scales = np.empty((N, count), np.float16)
    start = 0
    while start < K:
        group = int(order[start]) // G
        stop = start + min(G, K - group * G)
        scales[:, group] = rtn.searched_scales(left[:, None, start:stop], packing.bits, costs[None, start:stop])[:, 0]
        step = scales[:, group].astype(np.float32)
        errors = np.empty((N, stop - start), np.float32)
        for column in range(start, stop):
            code = np.clip(np.rint(left[:, column] / step), kind.low, kind.high)
            codes[:, order[column]] = code
            error = (left[:, column] - code * step) / factor[column, column]
            left[:, column + 1 : stop] -= np.outer(error, factor[column, column + 1 : stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
        start = stop
    if rounds:
        damped = _damped(moments, damping).astype(np.float32)
        for _ in range(rounds):
            scales = fitted_scales(weight, damped, codes, scales, G)
            codes = descended(weight, damped, codes, scales, G, kind.low, kind.high)
    return kind.pack(codes, scales, G)


def fitted_scales(weight: Floats, moments: Floats, codes: Codes, scales: Halves, group_size: int) -> Halves:
    """The scales (N, K / G) of least error of the outputs for given codes (N, K): a linear system for every row.

    With C the codes of a row, one column for each group, its scales solve (C^T H C) s = C^T H w. A row keeps those it
    had where the solution, rounded to what a file holds, is not better.
    """
    N, K = weight.shape
    G, count = group_size, scales.shape[1]
    starts = np.arange(0, K, G)
    found = np.empty_like(scales)
    step = max(1, ROW_ELEMENTS // (K * count))
    for first in range(0, N, step):
        part = slice(first, first + step)
        pulled = np.empty((len(codes[part]), count, K), np.float32)  # C^T H
        for group, start in enumerate(starts):
            pulled[:, group] = codes[part, start : start + G].astype(np.float32) @ moments[start : start + G]
        system = np.add.reduceat(pulled * codes[part, None, :], starts, axis=2)
        target = np.einsum("ngk,nk->ng", pulled, weight[part])
        ridge = 1e-6 * np.maximum(np.einsum("ngg->n", system), 1e-20) / count
        system[:, np.arange(count), np.arange(count)] += ridge[:, None]
        solved = np.linalg.solve(system.astype(np.float64), target.astype(np.float64)[:, :, None])[:, :, 0]
        old = scales[part].astype(np.float32)
        sound = np.isfinite(solved) & (solved > 0.5 * old) & (solved < 2 * old)
        new = round_scales(np.where(sound, solved, old).astype(np.float32)).astype(np.float32)
        is_better = _cost(new, system, target) < _cost(old, system, target)
        found[part] = np.where(is_better[:, None], new, old)
    return found


def _cost(scales: Floats, system: Floats, target: Floats) -> Floats:
    """The squared error of the outputs of each row (N,), less what does not depend on the scales."""
    quadratic = np.einsum("ng,ngh,nh->n", scales, system, scales)
    total: Floats = quadratic - 2 * np.einsum("ng,ng->n", scales, target)
    return total


def descended(
    weight: Floats, moments: Floats, codes: Codes, scales: Halves, group_size: int, low: int, high: int
) -> Codes:
    """Codes after one pass of coordinate descent: each column takes its best codes while all others stay.

    With E = W - Q the error of the outputs trace(E H E^T) is least in column k where E[:, k] moves by
    -(E H)[:, k] / H[k, k]. No pass makes it larger.
    """
    K, G = weight.shape[1], group_size
    codes = codes.copy()
    error = weight - codes * np.repeat(scales.astype(np.float32), G, axis=1)[:, :K]
    pull = error @ moments
    for start in range(0, K, G):
        stop = min(K, start + G)
        step = scales[:, start // G].astype(np.float32)
        moved = np.empty((len(weight), stop - start), np.float32)
        for column in range(start, stop):
            before = codes[:, column].astype(np.float32)
            best = before + pull[:, column] / (moments[column, column] * step)
            after = np.clip(np.rint(best), low, high)
            codes[:, column] = after
            change = (before - after) * step  # of the error
            moved[:, column - start] = change
            pull[:, column:stop] += np.outer(change, moments[column, column:stop])
        pull[:, stop:] += moved @ moments[start:stop, stop:]
    return codes


def rounding_order(importance: npt.NDArray[np.floating], group_size: int) -> npt.NDArray[np.int64]:
    """The order (K,) in which columns are rounded: groups by their sum of `importance` (K,), then columns by their own.

    Columns of one group stay together, since they share a scale.
    """
    K = len(importance)
    groups = np.arange(K) // group_size
    sums = np.bincount(groups, weights=importance)
    return np.lexsort((-importance, groups, -sums[groups]))


def _damped(moments: Moments, damping: float) -> npt.NDArray[np.float64]:
    """The moments with `damping` times the mean of the diagonal added to it."""
    values = moments.astype(np.float64)
    diagonal = np.diagonal(values).copy()
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean  # never read: whatever its column rounds to costs nothing
    np.fill_diagonal(values, diagonal + damping * mean)
    return values


def _inverse_factor(moments: Moments, damping: float) -> tuple[Floats, float]:
    """U (K, K) float32, upper triangular, with U^T U the inverse of the damped moments; and the damping it took."""
    while True:
        try:
            lower = np.linalg.cholesky(_damped(moments, damping))
        except np.linalg.LinAlgError:
            damping *= 10
            if damping > MOST_DAMPING:
                raise ModelError("the second moments of its inputs are not positive; use a longer text") from None
            continue
        break
    inverse_lower = np.linalg.inv(lower)
    inverse = inverse_lower.T @ inverse_lower
    return np.ascontiguousarray(np.linalg.cholesky(inverse).T.astype(np.float32)), damping
