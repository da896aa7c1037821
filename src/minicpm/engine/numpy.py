"""The INT4/INT8 engine written to be read: docs/numerics.md in numpy, oracle of every faster engine, and the fallback
where there is no compiler and no torch. It also runs unquantized checkpoints in float32.

All shapes are per call: T new tokens of the whole ragged batch, S tokens of one sequence. A float32 matrix product of
whole numbers is exact as long as sums stay below 2**24, so BLAS does the integer arithmetic whatever its order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import KVSequence, Row
from minicpm.engine.kv_cache import SequenceCache
from minicpm.engine.memory import free_memory_bytes
from minicpm.engine.window import MOST_POSITIONS, SlidingWindow
from minicpm.errors import ModelError
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.tensor import TensorView, round_to_bfloat16
from minicpm.quant.format import IntWeight, read_weight

Floats = npt.NDArray[np.float32]

LANES = 16  # virtual lanes of a float sum, and tokens of a block of keys and values
KV_BLOCK = 32  # numbers of a head that share a scale
LARGEST_CODE = np.float32(127)
# Below this a group of activations counts as zero: 127 / m would overflow near 2**-121, results would be subnormal.
SMALLEST_ACTIVATION = np.float32(2.0**-100)
SMALLEST_NORMAL = np.float32(2.0**-126)
# Expanded codes (float32) of small models are kept between calls; those of larger ones would not fit beside the model.
MAX_KEPT_BYTES = 1 << 29
BLOCK_ELEMENTS = 1 << 20  # of temporaries: they stay in the cache


# --- arithmetic --------------------------------------------------------------------------------------------------


def lane_sum(values: Floats) -> Floats:
    """Sums over the last axis (..., K) by 16 virtual lanes, whatever K: (...)."""
    K = values.shape[-1]
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -K % LANES)])
    # accumulate, unlike sum, promises to add one after the other.
    lanes = np.add.accumulate(padded.reshape(*values.shape[:-1], -1, LANES), axis=-2)[..., -1, :]
    return _fold(lanes)


def _fold(lanes: Floats) -> Floats:
    """(..., 16) -> (...): halves are added until one lane is left."""
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_POLYNOMIAL = tuple(  # Cephes expf
    map(np.float32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
)


def exp(x: Floats) -> Floats:
    """exp by single-precision additions and multiplications alone: the same bits on every machine."""
    bounded = np.clip(x, np.float32(-87), np.float32(88))
    n = np.rint(bounded * _LOG2_E)
    r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
    series = np.full_like(r, _EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        series = series * r + coefficient
    series = series * (r * r) + r + np.float32(1)
    with np.errstate(invalid="ignore"):  # a NaN has no exponent, and stays NaN whatever it is multiplied by
        exponents = (n.astype(np.int32) + 127) << 23
    return np.where(x < -87, np.float32(0), series * exponents.view(np.float32))


def silu(x: Floats) -> Floats:
    return x / (np.float32(1) + exp(-x))


def rms_norm(hidden_states: Floats, weight: Floats, eps: float) -> Floats:
    """(T, K) normalised by its root mean square, times weight (K,)."""
    mean = lane_sum(hidden_states * hidden_states) / np.float32(len(weight))
    reciprocal: Floats = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return (hidden_states * reciprocal[:, None]) * weight


def quantize_activations(x: Floats, group_size: int) -> tuple[Floats, Floats]:
    """(T, K) -> whole numbers -127..127 as float32 (K / G, T, G), and scales (K / G, T); K is padded with zeros."""
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


# pi / 2 in three parts of 33 bits, so that n times a part is exact for n up to 2**20.
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
    """cos and sin of every position a model's sequences have reached, per rotary base."""

    def __init__(self, config: DecoderConfig, window: SlidingWindow | None = None):
        self._config = config
        self._window = window
        self._tables: dict[float, tuple[Floats, Floats]] = {}

    def base(self, rope_length: int) -> float:
        """Of a text planned for `rope_length`; under a sliding window no distance is longer than its reach."""
        return self._config.rope_base(rope_length if self._window is None else min(rope_length, self._window.reach))

    def of(self, rows: Sequence[Row]) -> tuple[Floats, Floats]:
        """cos and sin (T, D / 2) of all rows' new tokens."""
        return self._chosen(
            rows, [slice(row.sequence.length, row.sequence.length + len(row.token_ids)) for row in rows]
        )

    def of_sinks(self, rows: Sequence[Row]) -> tuple[Floats, Floats] | None:
        """The same as the attention sinks see the new tokens; None without a sliding window."""
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
    """Rotary embedding of (T, H, D) by cos and sin (T, D / 2)."""
    first, second = np.split(x, 2, axis=2)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=2)


# --- layers ------------------------------------------------------------------------------------------------------


class Linear(Protocol):
    def __call__(self, x: Floats) -> Floats:
        """(T, K) -> (T, N)."""


class IntLinear:
    """Whole-number sums inside a group, groups added in order; several weights of one input stacked along N."""

    def __init__(self, weights: Sequence[IntWeight], keep: bool):
        self._weights = weights
        self._group_size = weights[0].group_size
        self._kept = [self._expanded(weight) for weight in weights] if keep else None

    def __call__(self, x: Floats) -> Floats:
        codes, scales = quantize_activations(x, self._group_size)
        parts = []
        if self._kept is not None:
            parts = [_grouped_product(codes, scales, *expanded) for expanded in self._kept]
        else:
            for weight in self._weights:
                step = max(1, BLOCK_ELEMENTS // weight.in_features)
                for start in range(0, weight.out_features, step):
                    block = self._expanded(weight.rows(slice(start, start + step)))
                    parts.append(_grouped_product(codes, scales, *block))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    @staticmethod
    def _expanded(weight: IntWeight) -> tuple[Floats, Floats]:
        """Codes (K / G, G, N) and scales (K / G, N), float32."""
        codes = weight.grouped_codes().transpose(1, 2, 0).astype(np.float32, order="C")
        return codes, weight.scales.T.astype(np.float32, order="C")


def _grouped_product(codes: Floats, scales: Floats, weight_codes: Floats, weight_scales: Floats) -> Floats:
    """(T, N) of activations (K / G, T, G) with scales (K / G, T), and weights (K / G, G, N) with scales (K / G, N)."""
    total = np.zeros((codes.shape[1], weight_codes.shape[2]), np.float32)
    for a, d, w, s in zip(codes, scales, weight_codes, weight_scales):
        sums = a @ w
        sums *= s
        sums *= d[:, None]
        total += sums
    return total


class LaneLinear:
    """A weight that is not quantized: float sums by 16 virtual lanes, of bfloat16 pair by pair."""

    def __init__(self, view: TensorView):
        self._view = view

    def __call__(self, x: Floats) -> Floats:
        weight = self._view.storage()
        step = max(1, BLOCK_ELEMENTS // (LANES * len(x)))
        parts = [self._lanes(x, start, start + step) for start in range(0, len(weight), step)]
        return np.concatenate(parts, axis=1)

    def _lanes(self, x: Floats, start: int, stop: int) -> Floats:
        weight = _rows(self._view, slice(start, stop))
        if self._view.dtype == "bfloat16":
            x = as_bfloat16(x)
            # The second numbers of all pairs are added before the first ones.
            x, weight = (self._steps(part, 2)[:, :, ::-1] for part in (x, weight))
        else:
            x, weight = (self._steps(part, 1) for part in (x, weight))
        lanes: Floats = np.zeros((len(x), len(weight), LANES), np.float32)
        for i in range(x.shape[1]):
            for which in range(x.shape[2]):
                lanes += x[:, None, i, which] * weight[None, :, i, which]
        return _fold(lanes)

    @staticmethod
    def _steps(values: Floats, numbers: int) -> Floats:
        """(n, K) -> (n, steps, numbers, 16): a step gives every lane so many neighbours, zeros behind the end."""
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % (LANES * numbers))))
        return padded.reshape(len(values), -1, LANES, numbers).swapaxes(2, 3)


class FloatLinear:
    """fp32 mode: BLAS on the weights as float32, over the file's own pages where they are stored so."""

    def __init__(self, views: Sequence[TensorView], keep: bool):
        self._views = views
        self._kept = [view.storage() if view.dtype == "float32" else None for view in views]
        if keep:
            self._kept = [view.float32() if kept is None else kept for view, kept in zip(views, self._kept)]

    def __call__(self, x: Floats) -> Floats:
        parts = []
        for view, kept in zip(self._views, self._kept):
            parts.append(x @ (view.float32() if kept is None else cast(Floats, kept)).T)
        return np.concatenate(parts, axis=1)


def _rows(view: TensorView, chosen: slice | npt.NDArray[np.int64]) -> Floats:
    """Some rows of a stored (N, K) float tensor as float32."""
    part = np.ascontiguousarray(view.storage()[chosen])
    return TensorView(view.name, view.dtype, part.shape, part.reshape(-1).view(np.uint8).data).float32()


class _Layer:
    """One decoder block's weights."""

    def __init__(self, model: NumpyBackend, index: int):
        name = f"model.layers.{index}"
        self.attention_norm = model.vector(f"{name}.input_layernorm.weight")
        self.mlp_norm = model.vector(f"{name}.post_attention_layernorm.weight")
        self.qkv = model.linear(*(f"{name}.self_attn.{part}_proj.weight" for part in "qkv"))
        self.o = model.linear(f"{name}.self_attn.o_proj.weight")
        self.gate_up = model.linear(f"{name}.mlp.gate_proj.weight", f"{name}.mlp.up_proj.weight")
        self.down = model.linear(f"{name}.mlp.down_proj.weight")


# --- keys, values, attention -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionKind:
    """How keys and values are kept, and what is done with them: docs/numerics.md, sections 7 and 8."""

    width: int  # numbers of a head that share a scale
    dtype: type[np.generic]
    file: Callable[[Floats], tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]]
    score: Callable[[Floats, Floats, Floats], Floats]
    sum_values: Callable[[Floats, Floats], Floats]


class NumpySequence(KVSequence):
    """Keys and values of one text in blocks of 16 tokens: codes with scales, or numbers with scales of 1.

    A forward pass writes behind `length` and extends it when all layers are done, so an interrupted pass leaves the
    sequence as it was.
    """

    def __init__(self, config: DecoderConfig, rope_length: int, kind: AttentionKind):
        super().__init__(rope_length)
        self._kind = kind
        shape = (config.num_hidden_layers, 2, 0, config.num_key_value_heads, -(-config.head_dim // kind.width))
        self._codes = np.zeros((*shape, kind.width), kind.dtype)
        self._scales = np.ones(shape, np.float16)

    def append(self, layer: int, keys: Floats, values: Floats) -> None:
        """Write (T, H_kv, D) keys and values of a layer behind the held ones."""
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
        """Keys (`which` 0) or values (1) before token `end`, up to whole blocks of 16 tokens, as float32.

        Codes (H_kv, E, S, width) and scales (H_kv, E, S); what is not written yet is zero.
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
    """Attention of the T newest tokens, already appended: queries (T, H, D), rotated and scaled -> (T, H, D).

    With a `window`, `sink_queries` are the same, rotated as the attention sinks see them.
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
        # Queries that share a head of keys and values lie behind each other: (H_kv, T R, D) -> (H_kv, T R, S).
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
    # A token that is not seen may hold anything, even NaN: nothing of it reaches the query.
    visible = seen.reshape(1, -1, S // LANES, 1, LANES)
    scales = scales.reshape(H_kv, 1, E, S // LANES, LANES).swapaxes(2, 3)
    weights = np.where(visible, p[:, :, :, None] * scales, np.float32(0))  # (H_kv, T R, blocks, E, 16)
    weights = weights.transpose(0, 2, 3, 1, 4)
    codes = codes.reshape(H_kv, E, S // LANES, LANES, width).swapaxes(1, 2)
    weighted = kind.sum_values(weights, codes)  # (H_kv, blocks, E, T R, width)
    weighted = weighted.transpose(0, 3, 1, 2, 4)
    sums = _fold(p)
    total, norm = weighted[:, :, 0], sums[:, :, 0]
    for b in range(1, S // LANES):
        total = total * alpha[:, :, b - 1, None, None] + weighted[:, :, b]
        norm = norm * alpha[:, :, b - 1] + sums[:, :, b]
    out = (total / norm[..., None, None]).reshape(H_kv, T, H // H_kv, -1)[..., :D]
    return out.transpose(1, 0, 2, 3).reshape(T, H, D)


def _quantized_scores(queries: Floats, codes: Floats, scales: Floats) -> Floats:
    """(H_kv, n, S) of queries (H_kv, n, D): whole-number sums inside a block of 32, blocks added in order."""
    H_kv, n, D = queries.shape
    query_codes, query_scales = quantize_activations(queries.reshape(-1, D), KV_BLOCK)
    scores = np.zeros((H_kv, n, codes.shape[2]), np.float32)
    for j, (a, d) in enumerate(zip(query_codes, query_scales)):
        sums = a.reshape(H_kv, n, KV_BLOCK) @ codes[:, j].swapaxes(1, 2)
        scores += (sums * scales[:, j, None]) * d.reshape(H_kv, n, 1)
    return scores


def _quantized_sums(weights: Floats, codes: Floats) -> Floats:
    """(..., n, width) of weights (..., n, 16) and codes (..., 16, width): whole-number sums over a block's tokens.

    The scale is the weights' sum over that of their codes, so that rounding takes nothing from a block as a whole.
    """
    (rounded,), (steps,) = quantize_activations(weights.reshape(-1, LANES), LANES)
    count = rounded.sum(axis=1)
    has_codes = count > 0
    scales = np.where(has_codes, _fold(weights.reshape(-1, LANES)) / np.where(has_codes, count, np.float32(1)), steps)
    sums = rounded.reshape(weights.shape) @ codes
    return cast(Floats, sums * scales.reshape(*weights.shape[:-1], 1))


def _file_bfloat16(x: Floats) -> tuple[Floats, None]:
    return as_bfloat16(x)[:, :, None], None


def _ordered_scores(queries: Floats, keys: Floats, scales: Floats) -> Floats:
    """(H_kv, n, S) of queries (H_kv, n, D): the products of a head's numbers added one after the other."""
    H_kv, n, D = queries.shape
    scores = np.zeros((H_kv, n, keys.shape[2]), np.float32)
    for k in range(D):
        scores += queries[:, :, k, None] * keys[:, 0, None, :, k]
    return scores


def _ordered_sums(weights: Floats, values: Floats) -> Floats:
    """(..., n, width) of weights (..., n, 16) and values (..., 16, width), token after token; of weight 0 nothing."""
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


def cache_bytes_per_token(config: DecoderConfig, dtype: str) -> int:
    """Bytes of the keys and values of a token, all layers, kept as int8 with scales, bfloat16 or float32."""
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    if dtype == "int8":
        return heads * -(-config.head_dim // KV_BLOCK) * (KV_BLOCK + 2)
    return heads * config.head_dim * {"bfloat16": 2, "float32": 4}[dtype]


# --- the backend -------------------------------------------------------------------------------------------------


class NumpyBackend:
    """Runs an opened checkpoint with numpy on the CPU, and bit by bit as docs/numerics.md says where `is_exact`.

    None: quantized weights are computed exactly, others in float32 by BLAS, which is faster and closer to the model.
    """

    name = "numpy"

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: DecoderConfig | None = None,
        *,
        is_exact: bool | None = None,
        kv_dtype: str = "auto",
        window: SlidingWindow | None = None,
    ):
        """`config`: compute as if the checkpoint had this one, of the same shape."""
        if checkpoint.folded_scales is not None:
            raise ModelError(
                f"{checkpoint.path}: a llama-format model; convert it --to hf, the numpy backend reads that"
            )
        self.config = config = config or checkpoint.config
        self.is_exact = bool(checkpoint.packings) if is_exact is None else is_exact
        self._checkpoint = checkpoint
        self._keeps_expanded = 4 * config.num_parameters() <= MAX_KEPT_BYTES
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length if window is None else MOST_POSITIONS
        self.trained_length = config.max_position_embeddings
        self.kv_dtype = ("int8" if self.is_exact else "float32") if kv_dtype == "auto" else kv_dtype
        self.window = window
        self._kind = attention_kind(self.kv_dtype, config.head_dim)
        self.cache_bytes_per_token = cache_bytes_per_token(config, self.kv_dtype)
        self._embedding = self.weight(EMBEDDING)
        self._layers = [_Layer(self, index) for index in range(config.num_hidden_layers)]
        self._norm = self.vector("model.norm.weight")
        self._head = self.linear(EMBEDDING if config.tie_word_embeddings else HEAD)
        self._rotary = RotaryTables(config, window)

    def new_cache(self, tokens: int) -> SequenceCache:
        return SequenceCache(self.new_sequence, self.rope_key, tokens)

    def new_sequence(self, rope_length: int) -> NumpySequence:
        return NumpySequence(self.config, rope_length, self._kind)

    def held_tokens(self, planned_tokens: int) -> int:
        return planned_tokens

    def rope_key(self, length: int) -> float:
        return self._rotary.base(length)

    def free_cache_bytes(self) -> int | None:
        free = free_memory_bytes()
        # The system counts the mapped weights' pages as free, since it could drop them, but every token needs them.
        return None if free is None else max(0, free - self._checkpoint.nbytes)

    def vector(self, name: str) -> Floats:
        """A norm's weight (K,) as float32."""
        return self._checkpoint.read(name).float32()

    def linear(self, *names: str) -> Linear:
        """The layer of one or several weights (N, K) that share their input, stacked along N."""
        weights = [self.weight(name) for name in names]
        packed = [weight for weight in weights if isinstance(weight, IntWeight)]
        views = [weight for weight in weights if isinstance(weight, TensorView)]
        if packed and not views and len({weight.group_size for weight in packed}) == 1:
            return IntLinear(packed, self._keeps_expanded)
        if packed:
            return _Stacked([self.linear(name) for name in names])
        if self.is_exact:
            return _Stacked([LaneLinear(view) for view in views])
        return FloatLinear(views, self._keeps_expanded)

    def forward(self, rows: Sequence[Row]) -> list[Floats]:
        # Infinities and NaN travel to the logits, where sampling refuses them by name.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return self._logits(self._hidden(rows), rows)

    def hidden_states(self, rows: Sequence[Row]) -> list[Floats]:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            h = rms_norm(self._hidden(rows), self._norm, self.config.rms_norm_eps)
        return np.split(h, np.cumsum([len(row.token_ids) for row in rows])[:-1])

    def _hidden(self, rows: Sequence[Row]) -> Floats:
        """(T, hidden) of all rows' tokens behind the last decoder block."""
        config = self.config
        scale = np.float32(config.residual_scale)
        lengths = [len(row.token_ids) for row in rows]
        rotations = self._rotary.of(rows), self._rotary.of_sinks(rows)
        h = self._embed(np.array([token for row in rows for token in row.token_ids], np.int64))
        for index, layer in enumerate(self._layers):
            x = rms_norm(h, layer.attention_norm, config.rms_norm_eps)
            h = h + layer.o(self._attention(layer.qkv(x), rows, lengths, index, *rotations)) * scale
            x = rms_norm(h, layer.mlp_norm, config.rms_norm_eps)
            gate, up = np.split(layer.gate_up(x), 2, axis=1)
            h = h + layer.down(silu(gate) * up) * scale
        for row in rows:
            row.sequence.extend(row.token_ids)
        return h

    def _embed(self, token_ids: npt.NDArray[np.int64]) -> Floats:
        """(T,) ids -> (T, hidden)."""
        table = self._embedding
        rows = table.rows(token_ids).dequantize() if isinstance(table, IntWeight) else _rows(table, token_ids)
        return rows * np.float32(self.config.scale_emb)

    def _attention(
        self,
        qkv: Floats,
        rows: Sequence[Row],
        lengths: list[int],
        layer: int,
        rotation: tuple[Floats, Floats],
        sink_rotation: tuple[Floats, Floats] | None,
    ) -> Floats:
        """(T, q + k + v features) of all rows -> (T, hidden); keys and values are filed on the way."""
        config = self.config
        heads = qkv.reshape(len(qkv), -1, config.head_dim)
        H, H_kv = config.num_attention_heads, config.num_key_value_heads
        scale = np.float32(1 / math.sqrt(config.head_dim))
        queries = rotate(heads[:, :H], *rotation) * scale
        sink_queries = None if sink_rotation is None else rotate(heads[:, :H], *sink_rotation) * scale
        keys, values = rotate(heads[:, H : H + H_kv], *rotation), heads[:, H + H_kv :]
        outputs, start = [], 0
        for row, n in zip(rows, lengths):
            part, sequence = slice(start, start + n), cast(NumpySequence, row.sequence)
            sequence.append(layer, keys[part], values[part])
            sinks = None if sink_queries is None else sink_queries[part]
            outputs.append(attend(queries[part], sequence, layer, self._kind, self.window, sinks))
            start += n
        return np.concatenate(outputs).reshape(len(qkv), -1)

    def _logits(self, h: Floats, rows: Sequence[Row]) -> list[Floats]:
        """Per row (n, vocab): the head runs over the wanted positions only."""
        lengths = [len(row.token_ids) for row in rows]
        counts = [{"last": 1, "all": n, "none": 0}[row.logits] for row, n in zip(rows, lengths)]
        wanted = [np.arange(end - count, end) for end, count in zip(np.cumsum(lengths), counts)]
        logits: Floats = np.zeros((0, self.vocab_size), np.float32)
        if any(counts):
            x = rms_norm(h[np.concatenate(wanted)], self._norm, self.config.rms_norm_eps)
            logits = self._head(x * np.float32(self.config.logit_scale))
        return np.split(logits, np.cumsum(counts)[:-1])

    def weight(self, name: str) -> IntWeight | TensorView:
        """The weight (N, K) of a published name that is computed with."""
        return read_weight(self._checkpoint, name)


class _Stacked:
    """Layers of one input, their outputs behind each other."""

    def __init__(self, layers: Sequence[Linear]):
        self._layers = layers

    def __call__(self, x: Floats) -> Floats:
        return np.concatenate([layer(x) for layer in self._layers], axis=1)
