"""The draw of a token in numpy: the oracle of csrc/sampling.cc, and the fallback without it.

Its exact definition (docs/chat-and-sampling.md) lets any language give the same token: weights are whole numbers, so
sums do not depend on their order, and a token's random number depends only on (seed, choice, position).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from minicpm.errors import GenerationError
from minicpm.sampling.exponential import split_exp
from minicpm.sampling.params import SamplingParams

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

TOO_LARGE = "the model's logits are too large for this temperature; try a higher one"

# A token's weight is exp(score - best score) in units of 2**-35, rounded down (0 below: one in 3e10). float64 holds
# sums of such whole numbers exactly, whatever their order, for every vocabulary of up to 2**18.
_ONE = 1 << 35
_BUCKETS_PER_NAT = 64
_BUCKETS = 25 * _BUCKETS_PER_NAT  # exp(-24.3) is the smallest weight of 1

_CHUNK = 1 << 14


def draw_reference(scores: Floats, params: SamplingParams, seed: int, choice: int, position: int) -> int:
    """The id drawn from penalized scores (V,), which are divided by the temperature in place."""
    scores /= np.float32(params.temperature)
    return Ranking(scores, params).draw(uniform53(seed, choice, position))


def uniform53(seed: int, choice: int, position: int) -> int:
    """The random number of one token: a whole number below 2**53; divided by 2**53 it is uniform in [0, 1).

    Philox 4x64 with 10 rounds, key (seed, choice), counter (position, 0, 0, 0): the first of its four words,
    without the low 11 bits.
    """
    # numpy increments the counter before it generates, so start one block earlier.
    counter = (position - 1) & ((1 << 256) - 1)
    word = np.random.Philox(key=seed | choice << 64, counter=counter).random_raw()
    return int(word) >> 11


class Ranking:
    """Scores (V,) as if sorted by (-score, id), cut by top_k, top_p and min_p, without sorting them all.

    Weights are summed in buckets of equal width in score; only a bucket that contains a wanted rank is sorted.
    """

    def __init__(self, scores: Floats, params: SamplingParams):
        self._ids = top_k_ids(scores, params.top_k) if 0 < params.top_k < len(scores) else None
        self._scores = scores if self._ids is None else scores[self._ids]
        self._best = self._scores.max()
        if np.isinf(self._best):
            raise GenerationError(TOO_LARGE)
        sums = np.zeros(_BUCKETS)
        for _, chunk in chunks(self._scores):
            sums += np.bincount(_buckets(chunk, self._best), _weights(chunk, self._best), _BUCKETS)
        self._weight_up_to = np.cumsum(sums)
        self._is_cut = params.top_p < 1.0 or params.min_p > 0.0
        self._kept_weight = self._cut(params)

    def draw(self, uniform: int) -> int:
        """The id at the fraction `uniform` / 2**53 of the kept weight."""
        rank = self._at((uniform * self._kept_weight) >> 53)[0]
        return rank if self._ids is None else int(self._ids[rank])

    def kept_ids(self) -> Integers:
        """Ids (n,) that `draw` may return. Ids of weight 0 are included unless top_p or min_p removes them."""
        kept = self._scores > -np.inf
        if self._is_cut:
            last, _ = self._at(self._kept_weight - 1)
            kept = self._scores > self._scores[last]
            kept[: last + 1] |= self._scores[: last + 1] == self._scores[last]
        indices = np.flatnonzero(kept)
        return indices if self._ids is None else self._ids[indices]

    def _cut(self, params: SamplingParams) -> int:
        """The weight that top_p and min_p keep: each keeps the first part of the ranking; the shorter one counts."""
        kept = int(self._weight_up_to[-1])
        if params.top_p < 1.0:
            kept = self._at(max(0, math.ceil(params.top_p * kept) - 1))[1]
        if params.min_p > 0.0:
            near = [
                chunk[chunk >= self._best + np.float32(math.log(params.min_p) - 0.01)]
                for _, chunk in chunks(self._scores)
            ]
            weights = _weights(np.concatenate(near), self._best)
            kept = min(kept, int(weights[weights >= params.min_p * _ONE].sum()))
        return kept

    def _at(self, weight: int) -> tuple[int, int]:
        """The index of the first score whose cumulative weight is above `weight`, and that cumulative weight."""
        bucket = int(np.searchsorted(self._weight_up_to, weight, side="right"))
        indices = _ids_in_bucket(self._scores, self._best, bucket)
        # The indices ascend already, so a stable sort leaves ties in the order of their ids.
        indices = indices[np.argsort(-self._scores[indices], kind="stable")]
        before = self._weight_up_to[bucket - 1] if bucket else 0.0
        weight_up_to = before + np.cumsum(_weights(self._scores[indices], self._best))
        rank = int(np.searchsorted(weight_up_to, weight, side="right"))
        return int(indices[rank]), int(weight_up_to[rank])


def _weights(scores: Floats, best: np.float32) -> Doubles:
    """exp(score - best) in units of 2**-35, rounded down, for scores (V,) <= best."""
    depth = scores - best
    np.maximum(depth, np.float32(-30.0), out=depth)
    series, n = split_exp(depth)
    exponents = n.astype(np.int32)
    exponents += 127 + 35
    exponents <<= 23
    series *= exponents.view(np.float32)
    np.floor(series, out=series)
    return series.astype(np.float64)


def _buckets(scores: Floats, best: np.float32) -> Integers:
    """Each score's distance below the best, in 64ths of a nat, from 0 to the last bucket."""
    depth = best - scores
    depth *= np.float32(_BUCKETS_PER_NAT)
    np.minimum(depth, np.float32(_BUCKETS - 1), out=depth)
    return depth.astype(np.int64)


def chunks(scores: Floats) -> Iterator[tuple[int, Floats]]:
    """(first id, scores) of parts that fit into the cache; temporaries of the vocabulary's size cost page faults."""
    for start in range(0, len(scores), _CHUNK):
        yield start, scores[start : start + _CHUNK]


def _ids_in_bucket(scores: Floats, best: np.float32, bucket: int) -> Integers:
    return np.concatenate([start + np.flatnonzero(_buckets(chunk, best) == bucket) for start, chunk in chunks(scores)])


def top_k_ids(scores: Floats, k: int) -> Integers:
    """Ids of the k best scores (V,), ascending. Ties with the k-th are included, as in Hugging Face's warper."""
    best = scores.max()
    counts = sum(np.bincount(_buckets(chunk, best), minlength=_BUCKETS) for _, chunk in chunks(scores))
    up_to = np.cumsum(counts)
    bucket = int(np.searchsorted(up_to, k))
    of_bucket = scores[_ids_in_bucket(scores, best, bucket)]
    worse = int(up_to[bucket]) - k
    kth = np.partition(of_bucket, worse)[worse]
    return np.concatenate([start + np.flatnonzero(chunk >= kth) for start, chunk in chunks(scores)])
