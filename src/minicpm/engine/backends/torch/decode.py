"""Decodes one token for each of several sequences, by a few operations that a GPU can do in one kernel each.

    h = embed(ids)
    h = h + residual_scale * o(attend(qkv(norm(h))));  h = h + residual_scale * down(gated(gate_up(norm(h))))
    logits = head(norm(h)) * logit_scale

It uses the modules of models/modeling.py, with the same weights and muP constants. This module is plain torch and runs
anywhere. kernels.py has the same two operations, `project` and attention, for a GPU, and graphs.py replays a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from minicpm.engine.backends.torch.ragged import TorchSequence, attend
from minicpm.models import MiniCPMForCausalLM
from minicpm.models.modeling import rotate
from minicpm.models.quantized import QuantizedLinear

# (layer, (M, (H + 2 H_kv) D) queries, keys and values before rotation) -> (M, H D); writes keys and values.
Attention = Callable[[int, torch.Tensor], torch.Tensor]


class Project(Protocol):
    """x (M, K) -> (M, N): a norm, a layer, and a gate or a residual, in one operation."""

    def __call__(
        self,
        x: torch.Tensor,
        layer: nn.Module,
        *,
        norm: nn.Module | None = None,
        is_gated: bool = False,
        factor: float | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """layer(norm(x)); with `is_gated`, silu(first half) * second half of it.

        With a residual, `residual` plus `factor` times that. With only a factor, `factor` times that in float32.
        """


@dataclass(frozen=True)
class _Layer:
    norm: nn.Module
    qkv: nn.Module
    output: nn.Module
    mlp_norm: nn.Module
    gate_up: nn.Module
    down: nn.Module


class Decoder:
    """A model's modules in the order of a decode step. A step never waits for the device or depends on lengths.

    With `joins`, layers of one input become one layer, and the model's own layers become views of it. Do not use it for
    the weights of a mapped file, because it copies them.
    """

    def __init__(self, model: MiniCPMForCausalLM, *, joins: bool):
        join = _joined if joins else _SideBySide
        self.model = model
        self._layers = [
            _Layer(
                layer.input_layernorm,
                join([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                layer.self_attn.o_proj,
                layer.post_attention_layernorm,
                join([layer.mlp.gate_proj, layer.mlp.up_proj]),
                layer.mlp.down_proj,
            )
            for layer in model.model.layers
        ]

    def step(self, token_ids: torch.Tensor, attention: Attention, project: Project) -> torch.Tensor:
        """(M,) token ids -> (M, vocab) float32 logits."""
        config, decoder = self.model.config, self.model.model
        h = decoder.embed_tokens(token_ids)
        for i, layer in enumerate(self._layers):
            mixed = attention(i, project(h, layer.qkv, norm=layer.norm))
            h = project(mixed, layer.output, factor=config.residual_scale, residual=h)
            inner = project(h, layer.gate_up, norm=layer.mlp_norm, is_gated=True)
            h = project(inner, layer.down, factor=config.residual_scale, residual=h)
        return project(h, self.model.lm_head, norm=decoder.norm, factor=config.logit_scale)


def project(
    x: torch.Tensor,
    layer: Callable[[torch.Tensor], torch.Tensor],
    *,
    norm: nn.Module | None = None,
    is_gated: bool = False,
    factor: float | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`Project` in plain torch."""
    out = layer(x if norm is None else norm(x))
    if is_gated:
        gate, up = out.chunk(2, dim=-1)
        out = nn.functional.silu(gate) * up
    if factor is None:
        return out
    return out.float() * factor if residual is None else residual + out * factor


class RowAttention:
    """`Attention` in plain torch, row by row. Each sequence must have memory for one more token."""

    def __init__(self, model: MiniCPMForCausalLM, sequences: Sequence[TorchSequence]):
        config = model.config
        self._heads, self._kv_heads, self._dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self._sequences = sequences
        device = sequences[0].memory.device
        positions = torch.tensor([[sequence.length] for sequence in sequences], device=device)
        rope_lengths = torch.tensor([[sequence.rope_length] for sequence in sequences])
        self._cos, self._sin = model.model.rotary_emb(positions, rope_lengths)  # (M, 1, D)

    def __call__(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        split = (self._heads, self._kv_heads, self._kv_heads)
        queries, keys, values = qkv.view(len(qkv), sum(split), 1, self._dim).split(split, dim=1)
        queries, keys = rotate(queries, self._cos, self._sin), rotate(keys, self._cos, self._sin)
        outputs = [
            attend(query[None], *sequence.append(layer, key, value))
            for sequence, query, key, value in zip(self._sequences, queries, keys, values)
        ]
        return torch.cat(outputs).view(len(qkv), -1)


class _SideBySide(nn.Module):
    """Layers of one input, with concatenated outputs."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def can_be_joined(model: MiniCPMForCausalLM) -> bool:
    """Whether all layers to be joined have the same quantization or dtype, as in all presets."""
    return all(
        len({_kind(layer) for layer in layers}) == 1
        for block in model.model.layers
        for layers in (
            (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
            (block.mlp.gate_proj, block.mlp.up_proj),
        )
    )


def _kind(layer: nn.Module) -> tuple[object, ...]:
    if isinstance(layer, QuantizedLinear):
        return layer.bits, layer.group_size, layer.scales.dtype
    return (layer.weight.dtype,)


def _joined(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer with the concatenated outputs of several. Their weights become views of its weight."""
    if isinstance(layers[0], QuantizedLinear):
        return QuantizedLinear.joined([layer for layer in layers if isinstance(layer, QuantizedLinear)])
    weight = torch.cat([layer.weight for layer in layers])
    for layer, own in zip(layers, weight.split([layer.out_features for layer in layers])):
        layer.weight = nn.Parameter(own, requires_grad=False)
    joined = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    return joined
