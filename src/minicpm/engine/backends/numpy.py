"""The readable INT4/INT8 engine: docs/numerics.md in numpy. It is the oracle of every faster engine, and the fallback
without a compiler and torch. It also runs unquantized checkpoints in float32.

All shapes are per call: T new tokens of the whole ragged batch, S tokens of one sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import Row, cache_bytes_per_token, flat_ids, wanted_places
from minicpm.engine.backends.arithmetic import (
    BLOCK_ELEMENTS,
    LANES,
    Floats,
    as_bfloat16,
    fold,
    quantize_activations,
    rms_norm,
    silu,
)
from minicpm.engine.backends.numpy_attention import (
    NumpySequence,
    RotaryTables,
    attend,
    attention_kind,
    rotate,
)
from minicpm.engine.cache.blocks import SequenceCache
from minicpm.engine.cache.sliding_window import MOST_POSITIONS, SlidingWindow
from minicpm.engine.memory import free_memory_bytes
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.tensor import TensorView
from minicpm.quant.format import IntWeight, read_weight

# The expanded codes (float32) of small models are kept between calls; those of larger models need too much memory.
MAX_KEPT_BYTES = 1 << 29


# --- layers ------------------------------------------------------------------------------------------------------


class Linear(Protocol):
    def __call__(self, x: Floats) -> Floats:
        """(T, K) -> (T, N)."""


class IntLinear:
    """Integer sums inside a group, groups added in order. Several weights of one input are stacked along N."""

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
    """The product (T, N) of activations (K / G, T, G) with scales (K / G, T) and weights (K / G, G, N) with scales
    (K / G, N).
    """
    total = np.zeros((codes.shape[1], weight_codes.shape[2]), np.float32)
    for a, d, w, s in zip(codes, scales, weight_codes, weight_scales):
        sums = a @ w
        sums *= s
        sums *= d[:, None]
        total += sums
    return total


class LaneLinear:
    """An unquantized weight: float sums by 16 virtual lanes; bfloat16 is summed in pairs."""

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
            # The second number of each pair is added before the first.
            x, weight = (self._steps(part, 2)[:, :, ::-1] for part in (x, weight))
        else:
            x, weight = (self._steps(part, 1) for part in (x, weight))
        lanes: Floats = np.zeros((len(x), len(weight), LANES), np.float32)
        for i in range(x.shape[1]):
            for which in range(x.shape[2]):
                lanes += x[:, None, i, which] * weight[None, :, i, which]
        return fold(lanes)

    @staticmethod
    def _steps(values: Floats, numbers: int) -> Floats:
        """(n, K) -> (n, steps, numbers, 16): each step has `numbers` adjacent inputs per lane, zero-padded."""
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % (LANES * numbers))))
        return padded.reshape(len(values), -1, LANES, numbers).swapaxes(2, 3)


class FloatLinear:
    """fp32 mode: BLAS on the weights as float32. Weights stored as float32 are views of the file's pages."""

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


# --- the backend -------------------------------------------------------------------------------------------------


class NumpyBackend:
    """Runs an opened checkpoint with numpy on the CPU. If `is_exact`, it has the bits that docs/numerics.md defines.

    None: quantized weights are computed exactly, others in float32 by BLAS, which is faster and more accurate.
    """

    name = "numpy"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        is_exact: bool | None = None,
        kv_dtype: str = "auto",
        window: SlidingWindow | None = None,
    ):
        self.config = config = checkpoint.config
        self.is_exact = bool(checkpoint.packings) if is_exact is None else is_exact
        self._checkpoint = checkpoint
        self._keeps_expanded = 4 * config.num_parameters() <= MAX_KEPT_BYTES
        self.vocab_size = config.vocab_size
        self.embedding_size = config.hidden_size
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
        # The system counts the mapped weights' pages as free, because it could drop them. But every token needs them.
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
        # Infinities and NaN propagate to the logits, where sampling raises an error.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return self._logits(self._hidden(rows), rows)

    def hidden_states(self, rows: Sequence[Row]) -> list[Floats]:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            h = rms_norm(self._hidden(rows), self._norm, self.config.rms_norm_eps)
        return np.split(h, np.cumsum([len(row.token_ids) for row in rows])[:-1])

    def _hidden(self, rows: Sequence[Row]) -> Floats:
        """(T, hidden) of all rows' tokens after the last decoder block."""
        config = self.config
        scale = np.float32(config.residual_scale)
        lengths = [len(row.token_ids) for row in rows]
        rotations = self._rotary.of(rows), self._rotary.of_sinks(rows)
        h = self._embed(*flat_ids(rows))
        for index, layer in enumerate(self._layers):
            x = rms_norm(h, layer.attention_norm, config.rms_norm_eps)
            h = h + layer.o(self._attention(layer.qkv(x), rows, lengths, index, *rotations)) * scale
            x = rms_norm(h, layer.mlp_norm, config.rms_norm_eps)
            gate, up = np.split(layer.gate_up(x), 2, axis=1)
            h = h + layer.down(silu(gate) * up) * scale
        for row in rows:
            row.sequence.extend(row.token_ids)
        return h

    def _embed(self, ids: list[int], embeddings: Floats | None) -> Floats:
        """(T, hidden) of T ids from flat_ids: scaled rows of tokens, and unscaled embeddings of spans."""
        table, wanted = self._embedding, np.array(ids, np.int64)
        is_content = wanted < 0
        wanted[is_content] = 0
        rows = table.rows(wanted).dequantize() if isinstance(table, IntWeight) else _rows(table, wanted)
        h: Floats = rows * np.float32(self.config.scale_emb)
        if embeddings is not None:
            h[is_content] = embeddings
        return h

    def _attention(
        self,
        qkv: Floats,
        rows: Sequence[Row],
        lengths: list[int],
        layer: int,
        rotation: tuple[Floats, Floats],
        sink_rotation: tuple[Floats, Floats] | None,
    ) -> Floats:
        """(T, q + k + v features) of all rows -> (T, hidden); also stores the new keys and values."""
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
        """Per row the logits (n, vocab) of the wanted positions; the head computes no others."""
        wanted, counts = wanted_places(rows)
        logits: Floats = np.zeros((0, self.vocab_size), np.float32)
        if wanted:
            x = rms_norm(h[wanted], self._norm, self.config.rms_norm_eps)
            logits = self._head(x * np.float32(self.config.logit_scale))
        return np.split(logits, np.cumsum(counts)[:-1])

    def weight(self, name: str) -> IntWeight | TensorView:
        """The weight (N, K) of a published name."""
        return read_weight(self._checkpoint, name)


class _Stacked:
    """Layers of one input, with concatenated outputs."""

    def __init__(self, layers: Sequence[Linear]):
        self._layers = layers

    def __call__(self, x: Floats) -> Floats:
        return np.concatenate([layer(x) for layer in self._layers], axis=1)
