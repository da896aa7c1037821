"""The torch backend: transformers' model classes driven by one flattened ragged batch.

All rows' tokens lie behind each other in a batch of one, so every projection is one matrix product over all of
them and nothing is padded. Each row keeps its own keys and values; the cache object below files them per row
and the attention function below attends per row. Floating point: the same request may differ in the last bits
with what it shares a batch with; the integer backends are the ones that promise equal bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, Cache

from minicpm.engine.backend import KVSequence, Row
from minicpm.engine.kv_cache import SequenceCache
from minicpm.engine.memory import free_memory_bytes
from minicpm.errors import GenerationError, ModelError
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.models import MiniCPMForCausalLM, load_model

ATTENTION = "minicpm_ragged"
_INITIAL_CAPACITY = 256


class TorchSequence(KVSequence):
    """Keys and values of one text: per layer (2, H_kv, capacity, D), grown by doubling.

    A forward pass writes behind `length` and extends it only when all layers are done, so an interrupted
    pass leaves the sequence as it was.
    """

    def __init__(self, config: DecoderConfig, rope_length: int, dtype: torch.dtype, device: torch.device):
        super().__init__(rope_length)
        self._shape = (2, config.num_key_value_heads, config.head_dim)
        self._layers: list[torch.Tensor | None] = [None] * config.num_hidden_layers
        self._dtype, self._device = dtype, device
        self._limit = config.context_length

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (H_kv, T, D) keys and values behind the held ones; return all of them, (H_kv, length + T, D)."""
        end = self.length + keys.shape[1]
        store = self._layers[layer]
        if store is None or store.shape[2] < end:
            store = self._grow(layer, store, end)
        store[0, :, self.length : end] = keys
        store[1, :, self.length : end] = values
        return store[0, :, :end], store[1, :, :end]

    def _grow(self, layer: int, store: torch.Tensor | None, end: int) -> torch.Tensor:
        two, heads, dim = self._shape
        capacity = max(_INITIAL_CAPACITY, end) if store is None else max(end, min(2 * store.shape[2], self._limit))
        grown = torch.empty((two, heads, capacity, dim), dtype=self._dtype, device=self._device)
        if store is not None:
            grown[:, :, : self.length] = store[:, :, : self.length]
        self._layers[layer] = grown
        return grown


class _RaggedCache(Cache):
    """Hands the model's new keys and values to the rows' sequences; attention reads them from there."""

    def __init__(self, sequences: list[TorchSequence], lengths: list[int]):
        super().__init__(layers=[])
        self.sequences = sequences
        self.lengths = lengths
        self.rows: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):  # (1, H_kv, total_T, D)
        keys = key_states[0].split(self.lengths, dim=1)
        values = value_states[0].split(self.lengths, dim=1)
        self.rows = [s.append(layer_idx, k, v) for s, k, v in zip(self.sequences, keys, values)]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    @property
    def is_compileable(self) -> bool:
        return False


def _ragged_attention(module, query, key, value, attention_mask, *, scaling, ragged, **kwargs):
    """Attend row by row; query (1, H, total_T, D) gives (1, total_T, H, D)."""
    cache, masks = ragged
    outputs = []
    for row_query, (keys, values), mask in zip(query[0].split(cache.lengths, dim=1), cache.rows, masks):
        T, S = row_query.shape[1], keys.shape[1]
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                row_query[None],
                keys[None],
                values[None],
                attn_mask=mask,
                is_causal=mask is None and T > 1 and T == S,
                scale=scaling,
                enable_gqa=keys.shape[0] != row_query.shape[0],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _ragged_attention)


class TorchBackend:
    """Runs an opened checkpoint with torch on a CPU or GPU, in its own dtype or another."""

    name = "torch"
    is_exact = False

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "auto", threads: int | None = None
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(_choose_device(device))
        self._model: MiniCPMForCausalLM = load_model(checkpoint, dtype=dtype, device=str(self._device))
        self._model.set_attn_implementation(ATTENTION)
        self._model.eval()
        self.config: DecoderConfig = self._model.config.to_decoder_config()
        self._dtype = next(self._model.parameters()).dtype
        is_mapped = self._device.type == "cpu" and str(self._dtype) == f"torch.{checkpoint.config.dtype}"
        self._mapped_bytes = checkpoint.nbytes if is_mapped else 0
        self.vocab_size = self.config.vocab_size
        self.context_length = self.config.context_length
        self.trained_length = self.config.max_position_embeddings
        kv_values = 2 * self.config.num_hidden_layers * self.config.num_key_value_heads * self.config.head_dim
        self.cache_bytes_per_token = kv_values * self._dtype.itemsize

    @property
    def device(self) -> str:
        return str(self._device)

    def new_cache(self, tokens: int) -> SequenceCache:
        return SequenceCache(self.new_sequence, self.rope_key, tokens)

    def new_sequence(self, rope_length: int) -> TorchSequence:
        return TorchSequence(self.config, rope_length, self._dtype, self._device)

    def held_tokens(self, planned_tokens: int) -> int:
        return planned_tokens

    def rope_key(self, length: int) -> float:
        return self.config.rope_base(length)

    def free_cache_bytes(self) -> int | None:
        if self._device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._device)[0])
        free = free_memory_bytes() if self._device.type == "cpu" else None
        # The system counts the weights' pages as free, since it could drop them, but every token needs them.
        return None if free is None else max(0, free - self._mapped_bytes)

    def forward(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        return self._compute(rows, is_hidden=False)

    def hidden_states(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        return self._compute([Row(row.sequence, row.token_ids, "all") for row in rows], is_hidden=True)

    def _compute(self, rows: Sequence[Row], *, is_hidden: bool) -> list[npt.NDArray[np.float32]]:
        try:
            return self._forward(rows, is_hidden)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            tokens = sum(len(row.token_ids) + row.sequence.length for row in rows)
            raise GenerationError(
                f"out of memory on {self._device} with {tokens} tokens in {len(rows)} sequences; "
                "lower the context, the batch or the prompt's length"
            ) from error

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _forward(self, rows: Sequence[Row], is_hidden: bool) -> list[npt.NDArray[np.float32]]:
        sequences = [row.sequence for row in rows]
        lengths = [len(row.token_ids) for row in rows]
        token_ids = torch.tensor([t for row in rows for t in row.token_ids], device=self._device)
        positions = torch.cat([torch.arange(s.length, s.length + n) for s, n in zip(sequences, lengths)])
        cache = _RaggedCache(sequences, lengths)
        masks = [_chunk_mask(s.length, n, self._device) for s, n in zip(sequences, lengths)]
        wanted, counts = _wanted_positions(rows)
        with _fastest_matmul(len(token_ids), self._dtype, self._device):
            inputs = {
                "input_ids": token_ids[None],
                "position_ids": positions[None].to(self._device),
                "past_key_values": cache,
                "rope_length": torch.tensor([[s.rope_length for s, n in zip(sequences, lengths) for _ in range(n)]]),
                "ragged": (cache, masks),
            }
            if is_hidden:
                out = self._model.model(**inputs).last_hidden_state[0]
            else:
                keep = torch.tensor(wanted, dtype=torch.long, device=self._device)
                out = self._model(**inputs, logits_to_keep=keep).logits[0]
        for row in rows:
            row.sequence.extend(row.token_ids)
        values = out.float().cpu().numpy()
        return np.split(values, np.cumsum(counts)[:-1])


@contextmanager
def _fastest_matmul(token_count: int, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Keep oneDNN away from a single token in bfloat16 on the CPU: torch's own product decodes twice as fast
    (benchmarks/results/decode_onednn.json), sums in float32 as well, and is the slower one from two tokens on.
    """
    if token_count != 1 or dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkldnn.enabled:
        yield
        return
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def _wanted_positions(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Flat indices whose logits are wanted, and how many of them each row has."""
    wanted: list[int] = []
    counts: list[int] = []
    start = 0
    for row in rows:
        end = start + len(row.token_ids)
        chosen = {"last": range(end - 1, end), "all": range(start, end), "none": range(0)}[row.logits]
        wanted += chosen
        counts.append(len(chosen))
        start = end
    return wanted, counts


def _chunk_mask(past: int, T: int, device: torch.device) -> torch.Tensor | None:
    """(T, past + T) booleans for a chunk behind held tokens; None where the plain causal rule says it all."""
    if T == 1 or past == 0:
        return None
    return torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past)


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", device) is None:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    kind, _, index = device.partition(":")
    count = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[kind]
    if int(index or 0) >= count:
        raise ModelError(f"device {device} was asked for, but torch sees {count} {kind} devices here; try device cpu")
    return device


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
