"""A model run block by block on texts: what every matrix of a block is given, while its weights are being replaced.

    run = CalibrationRun(config, embedding, rows)
    for block in range(config.num_hidden_layers):
        for names, statistics in run.block(block, floats):  # q, k and v; then o; then gate and up; then down
            run.replace({name: quantize(floats[name], statistics).dequantize() for name in names})

Two paths run side by side. On the float path every block keeps its weights. On the other the replaced weights have
changed the hidden states already, so what is rounded later is rounded for the inputs that it will have, and can make up
for errors made before. All is float32; a text is a row of its own, causal and from position 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from minicpm.formats.config import DecoderConfig
from minicpm.models.configuration import MiniCPMConfig
from minicpm.models.modeling import MiniCPMDecoderLayer, MiniCPMRotaryEmbedding

Floats = npt.NDArray[np.float32]
# Matrices that read the same input, in the order in which they compute.
GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of a matrix's inputs, averaged over tokens: (K, K) float64 each."""

    moments: npt.NDArray[np.float64]  # E[x x^T], x after the replaced weights
    cross: npt.NDArray[np.float64]  # E[f x^T], f the same input on the float path


class CalibrationRun:
    """Hidden states (T, hidden) of texts between two blocks, on both paths."""

    def __init__(
        self, config: DecoderConfig, embedding: Floats, rows: Sequence[Sequence[int]], replaced: Floats | None = None
    ):
        """`embedding` (vocab, hidden), `replaced` what the other path has for it; rows of ids within the context."""
        self._config = MiniCPMConfig.from_decoder_config(config.with_dtype("float32"))
        self._config._attn_implementation = "sdpa"
        self._rotary = MiniCPMRotaryEmbedding(self._config)
        self._layer: _Layer | None = None  # of the block that is running, on the other path
        self.floats = [_embedded(embedding, ids, config.scale_emb) for ids in rows]
        self.replaced = [_embedded(embedding if replaced is None else replaced, ids, config.scale_emb) for ids in rows]

    def restore(self, floats: Sequence[Floats], replaced: Sequence[Floats]) -> None:
        """Go on behind a block with the hidden states (1, T, hidden) that an earlier run had there."""
        self.floats[:] = [torch.from_numpy(states) for states in floats]
        self.replaced[:] = [torch.from_numpy(states) for states in replaced]

    def block(self, index: int, weights: Mapping[str, Floats]) -> Iterator[tuple[tuple[str, ...], InputStatistics]]:
        """Run a block of float `weights`, by published name, on both paths.

        Before matrices are multiplied their names are yielded with the statistics of their common input; `replace`
        gives them other values then. After the last, both paths have passed the block.
        """
        prefix = f"model.layers.{index}."
        parts = {name.removeprefix(prefix): values for name, values in weights.items()}
        plain, self._layer = _Layer(self._config, parts), _Layer(self._config, parts)
        paths = plain.inputs(self.floats, self._rotary), self._layer.inputs(self.replaced, self._rotary)
        for group, floats, replaced in zip(GROUPS, *paths, strict=True):
            yield tuple(f"{prefix}{part}.weight" for part in group), _statistics(floats, replaced)
        self._layer = None

    def replace(self, weights: Mapping[str, Floats]) -> None:
        """Take other values for matrices that were just yielded, by published name."""
        assert self._layer is not None  # a block is running
        for name, values in weights.items():
            self._layer.assign(name.split(".", 3)[3], values)


class _Layer:
    """A decoder layer whose matrices o and down are held apart, so that their inputs can be had."""

    def __init__(self, config: MiniCPMConfig, parts: Mapping[str, Floats]):
        with torch.device("meta"):
            self._layer = MiniCPMDecoderLayer(config, 0).eval()
        self._o, self._down = self._layer.self_attn.o_proj, self._layer.mlp.down_proj
        self._layer.self_attn.o_proj = self._layer.mlp.down_proj = torch.nn.Identity()
        for name, values in parts.items():
            self.assign(name, values)

    def assign(self, name: str, values: Floats) -> None:
        """Give a parameter other values, by its published name without the prefix of the block."""
        path, _, parameter = name.rpartition(".")
        apart = {"self_attn.o_proj": self._o, "mlp.down_proj": self._down}
        module = apart[path] if path in apart else self._layer.get_submodule(path)
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        setattr(module, parameter, torch.nn.Parameter(tensor, requires_grad=False))

    def inputs(self, states: list[torch.Tensor], rotary: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
        """The input (1, T, K) of every group of matrices and text, in the order of GROUPS; moves `states` on."""
        layer, scale = self._layer, self._layer.residual_scale
        inputs = [layer.input_layernorm(row) for row in states]
        yield inputs
        inputs = [layer.self_attn(row, rotary(torch.arange(row.shape[1])[None]))[0] for row in inputs]
        yield inputs
        states[:] = [row + self._o(given) * scale for row, given in zip(states, inputs)]
        inputs = [layer.post_attention_layernorm(row) for row in states]
        yield inputs
        inputs = [layer.mlp(row) for row in inputs]
        yield inputs
        states[:] = [row + self._down(given) * scale for row, given in zip(states, inputs)]


def _embedded(embedding: Floats, ids: Sequence[int], scale: float) -> torch.Tensor:
    return torch.from_numpy(embedding[list(ids)] * np.float32(scale))[None]


def _statistics(floats: Sequence[torch.Tensor], replaced: Sequence[torch.Tensor]) -> InputStatistics:
    K = replaced[0].shape[2]
    moments, cross, tokens = torch.zeros(K, K, dtype=torch.float64), torch.zeros(K, K, dtype=torch.float64), 0
    for (f,), (x,) in zip(floats, replaced):
        moments += x.T @ x
        cross += f.T @ x
        tokens += len(x)
    return InputStatistics((moments / tokens).numpy(), (cross / tokens).numpy())
