"""Decode steps on an NVIDIA GPU. Each kind of step is recorded once as a CUDA graph and replayed: one launch per token.

A kind is a number of rows and a longest text, both rounded up to a power of two. Token ids, lengths and the addresses
of sequences differ from step to step. A small table with them is copied to the device before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from minicpm.engine.backends.torch.decode import Decoder, can_be_joined
from minicpm.engine.backends.torch.kernels import SPLIT, TOKEN, TableAttention, project, table_row, weights_of
from minicpm.engine.backends.torch.ragged import TorchSequence
from minicpm.formats.config import DecoderConfig
from minicpm.models import MiniCPMForCausalLM
from minicpm.models.quantized import QuantizedLinear

_SMALLEST_HEAD_DIM = 16

# Computes a step; its result is always in the same memory.
Compute = Callable[[], torch.Tensor]
# A computation's result, and a function that computes it again into the same memory.
Recorded = tuple[torch.Tensor, Callable[[], object]]


def why_not(model: MiniCPMForCausalLM) -> str | None:
    """The reason why the kernels cannot run a model; None if they can."""
    dim = model.config.head_dim
    if dim < _SMALLEST_HEAD_DIM or dim & (dim - 1):
        return f"its heads have {dim} dimensions, not a power of two of at least {_SMALLEST_HEAD_DIM}"
    if not can_be_joined(model):
        return "weights that share an input are quantized in different ways"
    return None


def cuda_graph(compute: Compute) -> Recorded:
    """Record a computation on the current device."""
    # First run it on a separate stream without recording: this compiles kernels and initializes libraries, which is not
    # allowed during a recording.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = compute()
    return result, graph.replay


@dataclass(frozen=True)
class _Step:
    """A kind of step: write `table`, run, read `logits`."""

    table: torch.Tensor  # (rows, COLUMNS) int64
    logits: torch.Tensor  # (rows, vocab) float32
    run: Callable[[], object]


class GraphedDecoder:
    """Decode steps of a model: appends M tokens to M sequences and returns (M, vocab) float32 logits on the host.

    The model itself, which computes prompts, shares the weights and uses their kernels.
    """

    def __init__(
        self, model: MiniCPMForCausalLM, config: DecoderConfig, record: Callable[[Compute], Recorded] = cuda_graph
    ):
        self._decoder = Decoder(model, joins=True)
        for layer in model.modules():  # they compute prompts
            if isinstance(layer, QuantizedLinear):
                layer.weights = partial(weights_of, layer)
        self._config, self._record = config, record
        self._device = model.model.norm.weight.device
        self._steps: dict[tuple[int, int], _Step] = {}
        self._rotations: dict[float, torch.Tensor] = {}
        # The sequence of padding rows.
        self._nobody = TorchSequence(config, 1, model.model.norm.weight.dtype, self._device)
        self._nobody.reserve(1)

    def __call__(self, sequences: Sequence[TorchSequence], token_ids: Sequence[int]) -> torch.Tensor:
        for sequence in sequences:
            sequence.reserve(sequence.length + 1)
        M, longest = len(sequences), 1 + max(sequence.length for sequence in sequences)
        with torch.cuda.device_of(self._nobody.memory):
            step = self._step(_power_of_two(M), _power_of_two(-(-longest // SPLIT)))
            rows = [*zip(token_ids, sequences), *[(0, self._nobody)] * (len(step.table) - M)]
            step.table.copy_(self._table(rows), non_blocking=True)
            step.run()
            logits = torch.empty((M, self._config.vocab_size), pin_memory=step.logits.is_cuda)
            return logits.copy_(step.logits[:M])

    def _step(self, rows: int, splits: int) -> _Step:
        if (rows, splits) not in self._steps:
            self._steps[rows, splits] = self._recorded(rows, splits)
        return self._steps[rows, splits]

    def _recorded(self, rows: int, splits: int) -> _Step:
        config = self._config
        table = self._table([(0, self._nobody)] * rows).to(self._device)
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        attention = TableAttention(table, heads, kv_heads, dim, splits)
        logits, run = self._record(lambda: self._decoder.step(table[:, TOKEN.value], attention, project))
        return _Step(table, logits, run)

    def _table(self, rows: Sequence[tuple[int, TorchSequence]]) -> torch.Tensor:
        content = [table_row(token_id, sequence, self._rotations_of(sequence)) for token_id, sequence in rows]
        return torch.tensor(content, pin_memory=self._device.type == "cuda")

    def _rotations_of(self, sequence: TorchSequence) -> torch.Tensor:
        """cos and sin of a sequence's rotary base, (positions, 2, D / 2) float32; one tensor per base."""
        base = self._config.rope_base(sequence.rope_length)
        if base not in self._rotations:
            positions = torch.arange(self._config.context_length, device=self._device)[None]
            turns = self._decoder.model.model.rotary_emb(positions, sequence.rope_length)
            self._rotations[base] = torch.stack([turn[0, :, : turn.shape[-1] // 2] for turn in turns], dim=1)
        return self._rotations[base]


def _power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
