"""Keys, values and attention of the numpy engine: docs/numerics.md, sections 6 to 8.

Shapes are those of one sequence: T new tokens of S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import KV_BLOCK, KVSequence, Row
from minicpm.engine.backends.arithmetic import (
    BLOCK_ELEMENTS,
    LANES,
    LARGEST_CODE,
    Floats,
    as_bfloat16,
    exp,
    fold,
    quantize_activations,
)
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.formats.config import DecoderConfig

# --- rotation ----------------------------------------------------------------------------------------------------


# pi / 2 in three parts of 33 bits: n times a part is exact for n up to 2**20.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21)


def rope_table(base: float, head_dim: int, factor: float, length: int) -> tuple[Floats, Floats]:
    """cos and sin of positions 0 .. length - 1, each (length, D / 2), computed in float64 and rounded once."""
    decimal = Context(prec=40)
    exponents = [decimal.divide(Decimal(-2 * i), Decimal(head_dim)) for i in range(head_dim // 2)]
    frequencies = np.array([float(decimal.power(Decimal(base), exponent)) for exponent in exponents])
    angles = (np.arange(length) / factor)[:, None] * frequencies
    n = np.rint(angles * (2 / math.pi))
    r = ((angles - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    square = r * r
    sine, cosine = np.zeros_like(r), np.zeros_like(r)
    for k in range(8, -1, -1):
        sine = sine * square + (-1) ** k / math.factorial(2 * k + 1)
    for k in range(9, -1, -1):
        cosine = cosine * square + (-1) ** k / math.factorial(2 * k)
    sine *= r
    quadrant = n.astype(np.int64) & 3
    cos = np.choose(quadrant, (cosine, -sine, -cosine, sine))
    sin = np.choose(quadrant, (sine, cosine, -sine, -cosine))
    return cos.astype(np.float32), sin.astype(np.float32)


class RotaryTables:
    """cos and sin of all positions that a model's sequences have reached, per rotary base."""

    def __init__(self, config: DecoderConfig, window: SlidingWindow | None = None):
        self._config = config
        self._window = window
        self._tables: dict[float, tuple[Floats, Floats]] = {}

    def base(self, rope_length: int) -> float:
        """The rotary base of a text of planned `rope_length`; a sliding window limits distances to its reach."""
        return self._config.rope_base(rope_length if self._window is None else min(rope_length, self._window.reach))

    def of(self, rows: Sequence[Row]) -> tuple[Floats, Floats]:
        """cos and sin (T, D / 2) of all rows' new tokens."""
        return self._chosen(
            rows, [slice(row.sequence.length, row.sequence.length + len(row.token_ids)) for row in rows]
        )

    def of_sinks(self, rows: Sequence[Row]) -> tuple[Floats, Floats] | None:
        """cos and sin of the new tokens' positions relative to the attention sinks; None without a sliding window."""
        if self._window is None:
            return None
        return self._chosen(rows, [self._window.sink_positions(_positions(row)) for row in rows])

    def _chosen(self, rows: Sequence[Row], positions: Sequence[npt.NDArray[np.int64] | slice]) -> tuple[Floats, Floats]:
        parts = []
        for row, chosen in zip(rows, positions):
            end = row.sequence.length + len(row.token_ids)
            cos, sin = self._table(self.base(row.sequence.rope_length), end)
            parts.append((cos[chosen], sin[chosen]))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([cos for cos, _ in parts]), np.concatenate([sin for _, sin in parts])

    def _table(self, base: float, length: int) -> tuple[Floats, Floats]:
        scaling = self._config.rope_scaling
        factor = scaling.factor if scaling is not None and scaling.type == "linear" else 1.0
        if base not in self._tables or len(self._tables[base][0]) < length:
            self._tables[base] = rope_table(base, self._config.head_dim, factor, max(256, 2 * length))
        return self._tables[base]


def _positions(row: Row) -> npt.NDArray[np.int64]:
    return np.arange(row.sequence.length, row.sequence.length + len(row.token_ids))


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Apply the rotary embedding cos and sin (T, D / 2) to x (T, H, D)."""
    first, second = np.split(x, 2, axis=2)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=2)


# --- keys and values ---------------------------------------------------------------------------------------------


def quantize_heads(x: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Keys or values (T, H, D) -> codes (T, H, E, 32) and scales (T, H, E), in E = ceil(D / 32) blocks."""
    T, H, D = x.shape
    blocks = np.pad(x, ((0, 0), (0, 0), (0, -D % KV_BLOCK))).reshape(T, H, -1, KV_BLOCK)
    largest = np.abs(blocks).max(axis=3)
    is_finite = np.isfinite(largest)
    wanted = np.where(is_finite, largest, np.float32(0)) / LARGEST_CODE
    scales = np.minimum(wanted, np.float32(65504)).astype(np.float16)
    wide = scales.astype(np.float32)
    factor = np.where(wide > 0, np.float32(1) / np.where(wide > 0, wide, np.float32(1)), np.float32(0))
    codes = np.rint(np.where(is_finite[..., None], blocks, np.float32(0)) * factor[..., None])
    codes = np.clip(codes, -LARGEST_CODE, LARGEST_CODE).astype(np.int8)
    return codes, np.where(is_finite, scales, np.float16(np.nan))


@dataclass(frozen=True)
class AttentionKind:
    """The storage of keys and values, and the operations on them: docs/numerics.md, sections 7 and 8."""

    width: int  # numbers of a head that share a scale
    dtype: type[np.generic]
    file: Callable[[Floats], tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]]
    score: Callable[[Floats, Floats, Floats], Floats]
    sum_values: Callable[[Floats, Floats], Floats]


class NumpySequence(KVSequence):
    """Keys and values of one text in blocks of 16 tokens: codes with scales, or numbers with scales of 1.

    A forward pass writes after `length`, and extends it when all layers are done. So an interrupted pass leaves the
    sequence unchanged.
    """

    def __init__(self, config: DecoderConfig, rope_length: int, kind: AttentionKind):
        super().__init__(rope_length)
        self._kind = kind
        shape = (config.num_hidden_layers, 2, 0, config.num_key_value_heads, -(-config.head_dim // kind.width))
        self._codes = np.zeros((*shape, kind.width), kind.dtype)
        self._scales = np.ones(shape, np.float16)

    def append(self, layer: int, keys: Floats, values: Floats) -> None:
        """Write a layer's new keys and values (T, H_kv, D) after the held ones."""
        end = self.length + len(keys)
        if self._codes.shape[2] < end:
            self._grow(max(end, 2 * self._codes.shape[2]))
        for which, states in enumerate((keys, values)):
            part = np.s_[layer, which, self.length : end]
            codes, scales = self._kind.file(states)
            self._codes[part] = codes
            if scales is not None:
                self._scales[part] = scales

    def read(self, layer: int, which: int, end: int) -> tuple[Floats, Floats]:
        """Keys (`which` 0) or values (1) before token `end`, padded to whole blocks of 16 tokens, as float32.

        Returns codes (H_kv, E, S, width) and scales (H_kv, E, S). From `end` on they are zero.
        """
        S = -(-end // LANES) * LANES
        codes = self._codes[layer, which, :S].transpose(1, 2, 0, 3).astype(np.float32)
        scales = self._scales[layer, which, :S].transpose(1, 2, 0).astype(np.float32)
        codes[:, :, end:] = 0
        scales[:, :, end:] = 0
        return codes, scales

    def _grow(self, tokens: int) -> None:
        added = -(-tokens // LANES) * LANES - self._codes.shape[2]
        self._codes = np.pad(self._codes, [(0, added if axis == 2 else 0) for axis in range(6)])
        self._scales = np.pad(self._scales, [(0, added if axis == 2 else 0) for axis in range(5)], constant_values=1)


def attend(
    queries: Floats,
    sequence: NumpySequence,
    layer: int,
    kind: AttentionKind,
    window: SlidingWindow | None = None,
    sink_queries: Floats | None = None,
) -> Floats:
    """Attention of the T newest tokens, which are already appended: rotated, scaled queries (T, H, D) -> (T, H, D).

    With a `window`, `sink_queries` are the same queries, rotated by their positions relative to the attention sinks.
    """
    T, H, _ = queries.shape
    step = max(1, BLOCK_ELEMENTS // (H * 4 * (sequence.length + T)))
    parts = []
    for start in range(0, T, step):
        chosen = slice(start, start + step)
        sinks = None if sink_queries is None else sink_queries[chosen]
        end = sequence.length + min(start + step, T)
        keys, values = sequence.read(layer, 0, end), sequence.read(layer, 1, end)
        parts.append(_attend_chunk(queries[chosen], sinks, sequence.length + start, keys, values, kind, window))
    return np.concatenate(parts)


def _attend_chunk(
    queries: Floats,
    sink_queries: Floats | None,
    first: int,
    keys: tuple[Floats, Floats],
    values: tuple[Floats, Floats],
    kind: AttentionKind,
    window: SlidingWindow | None,
) -> Floats:
    """Online softmax over blocks of 16 tokens; queries (T, H, D) at positions first, first + 1, ..."""
    T, H, D = queries.shape
    codes, scales = values
    H_kv, E, S, width = codes.shape

    def scores_of(queries: Floats) -> Floats:
        # Queries that share a key-value head are grouped: (H_kv, T R, D) -> (H_kv, T R, S).
        grouped = queries.reshape(T, H_kv, -1, D).transpose(1, 0, 2, 3).reshape(H_kv, -1, D)
        return kind.score(grouped, *keys)

    positions, tokens = np.repeat(np.arange(first, first + T), H // H_kv)[:, None], np.arange(S)
    seen, scores = tokens <= positions, scores_of(queries)
    if window is not None and sink_queries is not None:
        is_sink = tokens < window.sinks
        seen &= is_sink | (tokens // LANES >= positions // LANES - window.blocks)
        scores = np.where(is_sink, scores_of(sink_queries), scores)
    scores = np.where(seen, scores, np.float32(-np.inf))
    blocks = scores.reshape(H_kv, -1, S // LANES, LANES)
    running = np.maximum.accumulate(blocks.max(axis=3), axis=2)
    p = exp(blocks - running[..., None])
    alpha = exp(running[:, :, :-1] - running[:, :, 1:])
    # A masked token may hold anything, even NaN, and must not affect the query.
    visible = seen.reshape(1, -1, S // LANES, 1, LANES)
    scales = scales.reshape(H_kv, 1, E, S // LANES, LANES).swapaxes(2, 3)
    weights = np.where(visible, p[:, :, :, None] * scales, np.float32(0))  # (H_kv, T R, blocks, E, 16)
    weights = weights.transpose(0, 2, 3, 1, 4)
    codes = codes.reshape(H_kv, E, S // LANES, LANES, width).swapaxes(1, 2)
    weighted = kind.sum_values(weights, codes)  # (H_kv, blocks, E, T R, width)
    weighted = weighted.transpose(0, 3, 1, 2, 4)
    sums = fold(p)
    total, norm = weighted[:, :, 0], sums[:, :, 0]
    for b in range(1, S // LANES):
        total = total * alpha[:, :, b - 1, None, None] + weighted[:, :, b]
        norm = norm * alpha[:, :, b - 1] + sums[:, :, b]
    out = (total / norm[..., None, None]).reshape(H_kv, T, H // H_kv, -1)[..., :D]
    return out.transpose(1, 0, 2, 3).reshape(T, H, D)


def _quantized_scores(queries: Floats, codes: Floats, scales: Floats) -> Floats:
    """Scores (H_kv, n, S) of queries (H_kv, n, D): integer sums inside a block of 32, blocks added in order."""
    H_kv, n, D = queries.shape
    query_codes, query_scales = quantize_activations(queries.reshape(-1, D), KV_BLOCK)
    scores = np.zeros((H_kv, n, codes.shape[2]), np.float32)
    for j, (a, d) in enumerate(zip(query_codes, query_scales)):
        sums = a.reshape(H_kv, n, KV_BLOCK) @ codes[:, j].swapaxes(1, 2)
        scores += (sums * scales[:, j, None]) * d.reshape(H_kv, n, 1)
    return scores


def _quantized_sums(weights: Floats, codes: Floats) -> Floats:
    """(..., n, width) of weights (..., n, 16) and codes (..., 16, width): integer sums over a block's tokens.

    The scale is the weights' sum divided by the sum of their codes, so that rounding keeps a block's total weight.
    """
    (rounded,), (steps,) = quantize_activations(weights.reshape(-1, LANES), LANES)
    count = rounded.sum(axis=1)
    has_codes = count > 0
    scales = np.where(has_codes, fold(weights.reshape(-1, LANES)) / np.where(has_codes, count, np.float32(1)), steps)
    sums = rounded.reshape(weights.shape) @ codes
    return cast(Floats, sums * scales.reshape(*weights.shape[:-1], 1))


def _file_bfloat16(x: Floats) -> tuple[Floats, None]:
    return as_bfloat16(x)[:, :, None], None


def _ordered_scores(queries: Floats, keys: Floats, scales: Floats) -> Floats:
    """Scores (H_kv, n, S) of queries (H_kv, n, D): the products of a head are added one after the other."""
    H_kv, n, D = queries.shape
    scores = np.zeros((H_kv, n, keys.shape[2]), np.float32)
    for k in range(D):
        scores += queries[:, :, k, None] * keys[:, 0, None, :, k]
    return scores


def _ordered_sums(weights: Floats, values: Floats) -> Floats:
    """(..., n, width) of weights (..., n, 16) and values (..., 16, width), token by token; weight 0 adds nothing."""
    total = np.zeros((*weights.shape[:-1], values.shape[-1]), np.float32)
    for t in range(LANES):
        weight = weights[..., t, None]
        total += np.where(weight == 0, np.float32(0), weight * values[..., t, None, :])
    return total


def _file_float(x: Floats) -> tuple[Floats, None]:
    return x[:, :, None], None


def _float_scores(queries: Floats, keys: Floats, scales: Floats) -> Floats:
    return cast(Floats, queries @ keys[:, 0].swapaxes(1, 2))


def attention_kind(dtype: str, head_dim: int) -> AttentionKind:
    if dtype == "int8":
        return AttentionKind(KV_BLOCK, np.int8, quantize_heads, _quantized_scores, _quantized_sums)
    if dtype == "bfloat16":
        return AttentionKind(head_dim, np.float32, _file_bfloat16, _ordered_scores, _ordered_sums)
    return AttentionKind(head_dim, np.float32, _file_float, _float_scores, np.matmul)
