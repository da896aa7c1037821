"""Computes any mix of prompts and answers with transformers' model classes, as one flattened row of tokens.

All rows' tokens are concatenated in a batch of one. So every projection is one matrix product over all of them, without
padding. Each row has its own keys and values, a `TorchSequence`, and attends only to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, Cache

from minicpm.engine.backend import KVSequence, Row
from minicpm.formats.config import DecoderConfig

ATTENTION = "minicpm_ragged"
_INITIAL_CAPACITY = 256


class TorchSequence(KVSequence):
    """Keys and values of one text in one piece of memory, (layers, 2, H_kv, capacity, D), grown by doubling.

    A step reserves memory, writes after `length` in every layer, and extends the sequence when all layers are done. So
    an interrupted step leaves it unchanged.
    """

    def __init__(self, config: DecoderConfig, rope_length: int, dtype: torch.dtype, device: torch.device):
        super().__init__(rope_length)
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        self.memory = torch.empty((layers, 2, heads, 0, config.head_dim), dtype=dtype, device=device)
        self._limit = config.context_length

    @property
    def capacity(self) -> int:
        return self.memory.shape[3]

    def reserve(self, length: int) -> None:
        """Allocate memory for tokens up to `length`."""
        if length <= self.capacity:
            return
        layers, two, heads, capacity, dim = self.memory.shape
        larger = max(length, min(2 * capacity or _INITIAL_CAPACITY, self._limit))
        grown = self.memory.new_empty((layers, two, heads, larger, dim))
        grown[..., : self.length, :] = self.memory[..., : self.length, :]
        self.memory = grown

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (H_kv, T, D) keys and values after the held ones; return all of them, (H_kv, length + T, D)."""
        end = self.length + keys.shape[1]
        held_keys, held_values = self.memory[layer]
        held_keys[:, self.length : end] = keys
        held_values[:, self.length : end] = values
        return held_keys[:, :end], held_values[:, :end]


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of one sequence: query (1, H, T, D) over (H_kv, S, D); causal if there is no mask and T = S."""
    T = query.shape[2]
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None and 1 < T == keys.shape[1],
        scale=scale,
        enable_gqa=keys.shape[0] != query.shape[1],
    )


class RaggedBatch(Cache):
    """Writes the model's new keys and values to the rows' sequences, from which attention reads them."""

    def __init__(self, rows: Sequence[Row], device: torch.device):
        super().__init__(layers=[])
        self._sequences: list[Any] = [row.sequence for row in rows]
        self.lengths = [len(row.token_ids) for row in rows]
        self.held: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.masks = [_chunk_mask(s.length, n, device) for s, n in zip(self._sequences, self.lengths)]

    def inputs(self, h: torch.Tensor, device: torch.device) -> dict[str, Any]:
        """The model's arguments for all rows' tokens with embeddings h (T, hidden)."""
        spans = list(zip(self._sequences, self.lengths))
        positions = torch.cat([torch.arange(s.length, s.length + n) for s, n in spans])
        return {
            "inputs_embeds": h[None],
            "position_ids": positions[None].to(device),
            "past_key_values": self,
            "rope_length": torch.tensor([[s.rope_length for s, n in spans for _ in range(n)]]),
            "ragged": self,
        }

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):  # (1, H_kv, total_T, D)
        keys = key_states[0].split(self.lengths, dim=1)
        values = value_states[0].split(self.lengths, dim=1)
        self.held = [s.append(layer_idx, k, v) for s, k, v in zip(self._sequences, keys, values)]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    @property
    def is_compileable(self) -> bool:
        return False


def _ragged_attention(module, query, key, value, attention_mask, *, scaling, ragged, **kwargs):
    """Attend row by row; query (1, H, total_T, D) gives (1, total_T, H, D)."""
    queries = query.split(ragged.lengths, dim=2)
    outputs = [
        attend(row_query, keys, values, mask=mask, scale=scaling)
        for row_query, (keys, values), mask in zip(queries, ragged.held, ragged.masks)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _ragged_attention)


def _chunk_mask(past: int, T: int, device: torch.device) -> torch.Tensor | None:
    """The mask (T, past + T) of a chunk after held tokens; None if plain causal attention is enough."""
    if T == 1 or past == 0:
        return None
    return torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past)
