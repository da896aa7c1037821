"""The native backend: runs the stored weights on the CPU, with one call of the C++ engine per step.

This module packs weights into the kernels' layout and turns the rows of a batch into arrays. csrc/ does all the
computation, as docs/numerics.md defines it, with the same bits as the numpy backend.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from minicpm import native
from minicpm.engine.backend import Row, cache_bytes_per_token, flat_ids, wanted_places
from minicpm.engine.backends.numpy_attention import RotaryTables
from minicpm.engine.backends.packed import packed_weights
from minicpm.engine.cache.blocks import BlockCache, BlockSequence, blocks_of
from minicpm.engine.cache.sliding_window import MOST_POSITIONS, SlidingWindow
from minicpm.engine.cache.window import WindowCache
from minicpm.engine.memory import free_memory_bytes
from minicpm.errors import ModelError
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.compressed_tensors import PACKED, SCALE, Packing
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.tensor import TensorView
from minicpm.quant.format import IntWeight, read_weight

if TYPE_CHECKING:
    from minicpm._native import Weight

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Most tokens of one call, because the engine's memory for a step grows with them. The scheduler stays far below.
MAX_STEP_TOKENS = 1024
_ALIGNMENT = 64


@dataclass(frozen=True)
class _Part:
    """Weights that are packed together: they share input, bits, group size and dtype of scales."""

    names: tuple[str, ...]
    rows: int
    columns: int
    packing: Packing
    has_half_scales: bool

    @property
    def kind(self) -> str:
        return f"int{self.packing.bits}"

    @property
    def shape(self) -> tuple[str, int, int, bool]:
        """The common properties of one part's weights: kind, columns, group size, and whether scales are binary16."""
        return self.kind, self.columns, self.packing.group_size, self.has_half_scales

    @property
    def nbytes(self) -> int:
        kind, columns, group_size, has_half_scales = self.shape
        nbytes: int = native.extension().packed_bytes(kind, self.rows, columns, group_size, has_half_scales)
        return nbytes

    def with_more(self, other: _Part) -> _Part:
        return replace(self, names=self.names + other.names, rows=self.rows + other.rows)

    def pack(self, checkpoint: Checkpoint, out: Bytes) -> None:
        """Read the weights, check them (FormatError) and pack them."""
        kind, columns, group_size, has_half_scales = self.shape
        sources = []
        for name in self.names:
            weight = read_weight(checkpoint, name)
            assert isinstance(weight, IntWeight)
            scales = np.ascontiguousarray(weight.scales).view(np.uint8)
            sources.append((np.ascontiguousarray(weight.packed), scales))
        native.extension().pack(kind, columns, group_size, has_half_scales, sources, out)

    def weight(self, packed: Bytes) -> Weight:
        kind, columns, group_size, has_half_scales = self.shape
        weight = native.extension().Weight(kind, packed, self.rows, columns, group_size, has_half_scales)
        return cast("Weight", weight)


class _Weights:
    """All matrices of a model, by the names that share an input, packed into one piece of memory.

    The headers of the model's files determine the offsets. Codes and scales are read and checked when they are packed.
    The key of a packed file identifies the files that were checked.
    """

    def __init__(self, checkpoint: Checkpoint, keeps_file: bool):
        self._checkpoint = checkpoint
        self._keeps_file = keeps_file
        self._shapes = checkpoint.config.parameter_shapes()
        self._parts: dict[tuple[str, ...], list[_Part | TensorView]] = {}
        self._bytes: Bytes = np.zeros(0, np.uint8)
        self.file_bytes = 0  # of weights in mapped files, which every token reads

    def add(self, *names: str) -> None:
        """Plan the layer of one or several weights (N, K) that share their input, stacked along N."""
        if names in self._parts:  # a tied head
            return
        parts: list[_Part | TensorView] = []
        for name in names:
            if name not in self._checkpoint.packings:
                parts.append(self._checkpoint.read(name))
                self.file_bytes += self._checkpoint.tensors[name].nbytes
                continue
            has_half_scales = self._checkpoint.tensors[name + SCALE].dtype == "float16"
            rows, columns = self._shapes[name]
            part = _Part((name,), rows, columns, self._checkpoint.packings[name], has_half_scales)
            last = parts[-1] if parts else None
            if isinstance(last, _Part) and last.shape == part.shape:
                parts[-1] = last.with_more(part)
            else:
                parts.append(part)
        self._parts[names] = parts

    def pack(self) -> None:
        """Pack the weights, or map them if they were packed before."""
        plan = json.dumps([[*part.shape, part.rows, part.nbytes] for part in self._packed_parts()])
        nbytes = sum(_aligned(part.nbytes) for part in self._packed_parts())
        self._bytes, is_mapped = packed_weights(self._checkpoint, plan, nbytes, self._fill, keeps_file=self._keeps_file)
        self.file_bytes += nbytes if is_mapped else 0
        self._layers: dict[tuple[str, ...], list[Weight]] = {}
        start = 0
        for names, parts in self._parts.items():
            self._layers[names] = made = []
            for part in parts:
                if isinstance(part, TensorView):
                    made.append(_float_weight(part))
                else:
                    made.append(part.weight(self._bytes[start : start + part.nbytes]))
                    start += _aligned(part.nbytes)
        self._parts.clear()

    def __getitem__(self, names: tuple[str, ...]) -> list[Weight]:
        return self._layers[names]

    def _packed_parts(self) -> list[_Part]:
        return [part for parts in self._parts.values() for part in parts if isinstance(part, _Part)]

    def _fill(self, out: Bytes) -> None:
        """Pack all weights; the pages of the model's own files are released layer by layer."""
        start = 0
        for names, parts in self._parts.items():
            for part in parts:
                if isinstance(part, _Part):
                    part.pack(self._checkpoint, out[start : start + part.nbytes])
                    start += _aligned(part.nbytes)
            for name in names:
                self._release(name)

    def _release(self, name: str) -> None:
        if name in self._checkpoint.packings:
            self._checkpoint.release(name + PACKED)
            self._checkpoint.release(name + SCALE)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _float_weight(view: TensorView) -> Weight:
    """A weight in floating point, as a view of the file's pages."""
    rows, columns = view.shape
    weight = native.extension().Weight(view.dtype, np.frombuffer(view.buffer, np.uint8), rows, columns)
    return cast("Weight", weight)


class NativeBackend:
    """Runs an opened checkpoint with the native engine on its stored weights.

    Raises ImportError if the extension is not built.
    """

    name = "native"
    is_exact = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int | None = None,
        *,
        kv_dtype: str = "auto",
        window: SlidingWindow | None = None,
        keeps_packed_file: bool = True,
    ):
        """Without `keeps_packed_file` the packed weights are held in memory, and no packed file is read or written."""
        self.config = config = checkpoint.config
        self.isa = native.isa()
        self.vocab_size = config.vocab_size
        self.embedding_size = config.hidden_size
        self.context_length = config.context_length if window is None else MOST_POSITIONS
        self.trained_length = config.max_position_embeddings
        self.kv_dtype = "int8" if kv_dtype == "auto" else kv_dtype
        self.window = window
        self.cache_bytes_per_token = cache_bytes_per_token(config, self.kv_dtype)
        self._rotary = RotaryTables(config, window)
        self._most_row_tokens = MAX_STEP_TOKENS if window is None else window.step_tokens
        self._model = native.extension().Model(
            isa=self.isa,
            threads=native.thread_count(threads),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            eps=config.rms_norm_eps,
            embedding_scale=config.scale_emb,
            residual_scale=config.residual_scale,
            logit_scale=config.logit_scale,
            query_scale=1 / math.sqrt(config.head_dim),
            sink_blocks=0 if window is None else window.sink_blocks,
            window_blocks=0 if window is None else window.blocks,
        )
        self._file_bytes = self._load(checkpoint, keeps_packed_file)

    @property
    def threads(self) -> int:
        return cast(int, self._model.threads)

    def new_cache(self, tokens: int) -> BlockCache:
        config = self.config
        try:
            pool = native.extension().KvPool(
                config.num_hidden_layers,
                config.num_key_value_heads,
                config.head_dim,
                blocks_of(tokens),
                self.kv_dtype,
            )
        except MemoryError:
            raise ModelError(
                f"the system does not give {tokens * self.cache_bytes_per_token / 1e9:.1f} GB of address space for the "
                f"keys and values of {tokens} tokens; lower the context, max_batch or kv_cache_bytes"
            ) from None
        return BlockCache(pool, self.rope_key) if self.window is None else WindowCache(pool, self.rope_key, self.window)

    def new_sequence(self, rope_length: int) -> BlockSequence:
        sequence = self.new_cache(rope_length).open((), rope_length, rope_length, keeps_all=True)
        assert sequence is not None
        return sequence

    def held_tokens(self, planned_tokens: int) -> int:
        return planned_tokens if self.window is None else min(planned_tokens, self.window.held_tokens)

    def rope_key(self, length: int) -> float:
        return self._rotary.base(length)

    def free_cache_bytes(self) -> int | None:
        free = free_memory_bytes()
        # The system counts mapped pages of a file as free, because it could drop them. But every token needs them.
        return None if free is None else max(0, free - self._file_bytes)

    def forward(self, rows: Sequence[Row]) -> list[Floats]:
        return self._in_steps(rows, is_hidden=False)

    def hidden_states(self, rows: Sequence[Row]) -> list[Floats]:
        return self._in_steps([Row(row.sequence, row.token_ids, "all") for row in rows], is_hidden=True)

    def _in_steps(self, rows: Sequence[Row], *, is_hidden: bool) -> list[Floats]:
        counts = [len(row.token_ids) for row in rows]
        if sum(counts) <= MAX_STEP_TOKENS and max(counts) <= self._most_row_tokens:
            return self._step(rows, is_hidden)
        lengths = [row.sequence.length for row in rows]
        try:
            return [self._row_in_steps(row, is_hidden) for row in rows]
        except BaseException:
            for row, length in zip(rows, lengths):
                row.sequence.truncate(length)
            raise

    def _row_in_steps(self, row: Row, is_hidden: bool) -> Floats:
        """(n, vocab or hidden) of a single row, computed in several steps."""
        return np.concatenate([self._step([part], is_hidden)[0] for part in row.chunks(self._most_row_tokens)])

    def _step(self, rows: Sequence[Row], is_hidden: bool) -> list[Floats]:
        sequences = [cast(BlockSequence, row.sequence) for row in rows]
        counts = [len(row.token_ids) for row in rows]
        lengths = [sequence.length for sequence in sequences]
        for sequence, length, count in zip(sequences, lengths, counts):
            sequence.reserve(length + count)
        wanted, wanted_counts = wanted_places(rows)
        ids, embeddings = flat_ids(rows)
        cos, sin = self._rotary.of(rows)
        sink_cos, sink_sin = self._rotary.of_sinks(rows) or (None, None)
        width = self.config.hidden_size if is_hidden else self.vocab_size
        out = np.empty((len(wanted), width), np.float32)
        batch = native.extension().Batch(
            pools=[sequence.pool for sequence in sequences],
            tables=[sequence.table for sequence in sequences],
            lengths=lengths,
            counts=counts,
            token_ids=np.array(ids, np.int32),
            embeddings=embeddings,
            cos=cos,
            sin=sin,
            wanted=np.array(wanted, np.int32),
            out=out,
            is_hidden=is_hidden,
            sink_cos=sink_cos,
            sink_sin=sink_sin,
        )
        self._model.forward(batch)
        for sequence, row in zip(sequences, rows):
            sequence.extend(row.token_ids)
        return [out[end - n : end] for end, n in zip(accumulate(wanted_counts), wanted_counts)]

    def _load(self, checkpoint: Checkpoint, keeps_packed_file: bool) -> int:
        """Give the weights to the model; return how many of their bytes are in mapped files."""
        weights = _Weights(checkpoint, keeps_packed_file)
        head = EMBEDDING if self.config.tie_word_embeddings else HEAD
        layers = [_layer_names(index) for index in range(self.config.num_hidden_layers)]
        for names in ((EMBEDDING,), *(names for layer in layers for names in layer), (head,)):
            weights.add(*names)
        weights.pack()

        def norm(name: str) -> Floats:
            return checkpoint.read(name).float32()

        self._model.set_embedding(weights[(EMBEDDING,)][0])
        for index, (qkv, o, gate_up, down) in enumerate(layers):
            name = f"model.layers.{index}"
            self._model.add_layer(
                norm(f"{name}.input_layernorm.weight"),
                weights[qkv],
                weights[o],
                norm(f"{name}.post_attention_layernorm.weight"),
                weights[gate_up],
                weights[down],
            )
        self._model.set_head(norm("model.norm.weight"), weights[(head,)])
        return weights.file_bytes


def _layer_names(index: int) -> tuple[tuple[str, ...], ...]:
    """Published names of one decoder block's weights, grouped by input: qkv, o, gate and up, down."""
    name = f"model.layers.{index}"
    return (
        tuple(f"{name}.self_attn.{part}_proj.weight" for part in "qkv"),
        (f"{name}.self_attn.o_proj.weight",),
        (f"{name}.mlp.gate_proj.weight", f"{name}.mlp.up_proj.weight"),
        (f"{name}.mlp.down_proj.weight",),
    )
