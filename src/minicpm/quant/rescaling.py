"""Rescales channels without changing what a model computes: a channel is multiplied, and its readers are divided.

A decoder block has five places where that is exact: the outputs of its two norms, the pairs of key and query channels
that are rotated together, the values, and the MLP's inner channels after `up`. With powers of two even the rounding
stays the same. `equalize.py` makes weights easier to quantize this way, benchmarks/outliers.py harder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm.formats.config import DecoderConfig
from minicpm.quant.format import Floats


@dataclass(frozen=True)
class BlockScales:
    """Factors of the channels of one decoder block, all above 0. The weights that read a channel are divided by it."""

    attention: Floats  # (hidden,): input_layernorm, read by q, k and v
    keys: Floats  # (H_kv, D / 2): rows i and i + D / 2 of a key head, read by the query heads that share it
    values: Floats  # (H_kv, D): rows of a value head, read by o in the heads that share it
    mlp: Floats  # (hidden,): post_attention_layernorm, read by gate and up
    inner: Floats  # (intermediate,): rows of up, read by down

    @classmethod
    def ones(cls, config: DecoderConfig) -> BlockScales:
        """Factors of 1, which change nothing."""
        hidden, D, H_kv = config.hidden_size, config.head_dim, config.num_key_value_heads
        shapes = ((hidden,), (H_kv, D // 2), (H_kv, D), (hidden,), (config.intermediate_size,))
        return cls(*(np.ones(shape, np.float32) for shape in shapes))

    @property
    def num_rescaled(self) -> int:
        """The number of channels whose factor is not 1; a pair of keys counts once."""
        parts = (self.attention, self.keys, self.values, self.mlp, self.inner)
        return sum(int(np.count_nonzero(part != 1)) for part in parts)

    def apply(self, name: str, values: Floats, config: DecoderConfig) -> Floats:
        """The rescaled weight of the published `name`: `values` (N, K) or (N,), of this block."""
        match name.removesuffix(".weight").split(".")[-1]:
            case "input_layernorm":
                return values * self.attention
            case "post_attention_layernorm":
                return values * self.mlp
            case "q_proj":
                heads = np.repeat(_paired(self.keys), config.num_attention_heads // config.num_key_value_heads, axis=0)
                return values / heads.reshape(-1, 1) / self.attention
            case "k_proj":
                return values * _paired(self.keys).reshape(-1, 1) / self.attention
            case "v_proj":
                return values * self.values.reshape(-1, 1) / self.attention
            case "o_proj":
                heads = np.repeat(self.values, config.num_attention_heads // config.num_key_value_heads, axis=0)
                return values / heads.reshape(-1)
            case "gate_proj":
                return values / self.mlp
            case "up_proj":
                return values * self.inner[:, None] / self.mlp
            case "down_proj":
                return values / self.inner
        raise ValueError(f"{name} is no weight of a decoder block")


def block_of(name: str) -> int | None:
    """The index of a published name's decoder block; None for embedding, last norm and head."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def _paired(keys: Floats) -> Floats:
    """(H_kv, D / 2) -> (H_kv, D): rotation mixes the channels i and i + D / 2 of a head."""
    return np.concatenate((keys, keys), axis=1)
