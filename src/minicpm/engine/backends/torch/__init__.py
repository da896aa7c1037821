"""The torch backend: a model on a CPU or GPU, in floating point or with its weights as INT4 or INT8 codes.

Transformers' model classes compute prompts, batches with prompts, and positions with embeddings (ragged.py). A step
with one token id per row uses a special decoder (decode.py), on an NVIDIA GPU as a recorded graph of a few kernels
(graphs.py, kernels.py). Both read and write the same sequences. In floating point the last bits of a request depend on
the rest of its batch; only the integer backends guarantee equal bits.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from minicpm.engine.backend import Row, cache_bytes_per_token, flat_ids, wanted_places
from minicpm.engine.backends.torch.decode import Decoder, RowAttention, project
from minicpm.engine.backends.torch.ragged import ATTENTION, RaggedBatch, TorchSequence
from minicpm.engine.cache.blocks import SequenceCache
from minicpm.engine.memory import free_memory_bytes
from minicpm.errors import GenerationError, ModelError
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.models import MiniCPMForCausalLM, load_model

_LOGGER = logging.getLogger(__name__)

# Appends M tokens to M sequences: (M, vocab) float32 logits.
Decode = Callable[[Sequence[TorchSequence], Sequence[int]], torch.Tensor]


class TorchBackend:
    """Runs an opened checkpoint with torch on a CPU or GPU, in the checkpoint's or another dtype."""

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
        is_stored = not checkpoint.packings and str(self._dtype) == f"torch.{checkpoint.config.dtype}"
        self._mapped_bytes = checkpoint.nbytes if is_stored and self._device.type == "cpu" else 0
        self.vocab_size = self.config.vocab_size
        self.embedding_size = self.config.hidden_size
        self.context_length = self.config.context_length
        self.trained_length = self.config.max_position_embeddings
        self.cache_bytes_per_token = cache_bytes_per_token(self.config, str(self._dtype).removeprefix("torch."))
        self._decode: Decode = _decoder(self._model, self.config, self._device)

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
        # The system counts the weights' pages as free, because it could drop them. But every token needs them.
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
        token_count = sum(len(row.token_ids) for row in rows)
        wanted, counts = wanted_places(rows)
        ids, embeddings = flat_ids(rows)
        with _fastest_matmul(token_count, self._dtype, self._device):
            if token_count == len(rows) and embeddings is None and not is_hidden:
                out = self._decode([row.sequence for row in rows], ids)
                out = out if len(wanted) == len(rows) else out[wanted]
            else:
                out = self._read(rows, self._embed(ids, embeddings), wanted, is_hidden)
        for row in rows:
            row.sequence.extend(row.token_ids)
        values = out.float().cpu().numpy()
        return np.split(values, np.cumsum(counts)[:-1])

    def _embed(self, ids: list[int], embeddings: npt.NDArray[np.float32] | None) -> torch.Tensor:
        """(T, hidden) of T ids from flat_ids: scaled rows of tokens, and unscaled embeddings of spans."""
        wanted = torch.tensor(ids, device=self._device)
        h: torch.Tensor = self._model.model.embed_tokens(wanted.clamp(min=0))
        if embeddings is not None:
            h[wanted < 0] = torch.from_numpy(embeddings).to(h)
        return h

    def _read(self, rows: Sequence[Row], h: torch.Tensor, wanted: list[int], is_hidden: bool) -> torch.Tensor:
        """Logits (len(wanted), vocab) of rows with embeddings h (T, hidden), or the hidden states of all T tokens."""
        for row in rows:
            row.sequence.reserve(row.sequence.length + len(row.token_ids))
        inputs = RaggedBatch(rows, self._device).inputs(h, self._device)
        if is_hidden:
            return self._model.model(**inputs).last_hidden_state[0]
        keep = torch.tensor(wanted, dtype=torch.long, device=self._device)
        return self._model(**inputs, logits_to_keep=keep).logits[0]


def _decoder(model: MiniCPMForCausalLM, config: DecoderConfig, device: torch.device) -> Decode:
    """The decoder of steps with one token per sequence: recorded graphs on an NVIDIA GPU, plain torch elsewhere."""
    if device.type == "cuda":
        if (missing := _why_no_graphs(model)) is None:
            from minicpm.engine.backends.torch.graphs import GraphedDecoder

            return GraphedDecoder(model, config)
        _LOGGER.warning("decoding is slow on %s: its kernels cannot be used, because %s", device, missing)
    decoder = Decoder(model, joins=False)

    def decode(sequences: Sequence[TorchSequence], token_ids: Sequence[int]) -> torch.Tensor:
        for sequence in sequences:
            sequence.reserve(sequence.length + 1)
        return decoder.step(torch.tensor(token_ids, device=device), RowAttention(model, sequences), project)

    return decode


def _why_no_graphs(model: MiniCPMForCausalLM) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    from minicpm.engine.backends.torch.graphs import why_not

    return why_not(model)


@contextmanager
def _fastest_matmul(token_count: int, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Disable oneDNN for a single token in bfloat16 on the CPU.

    There torch's own product decodes twice as fast (benchmarks/results/decode_onednn.json), and also sums in float32.
    From two tokens on it is slower.
    """
    if token_count != 1 or dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkldnn.enabled:
        yield
        return
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", device) is None:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    kind, _, index = device.partition(":")
    count = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[kind]
    if int(index or 0) >= count:
        raise ModelError(f"device {device} is not available: torch sees {count} {kind} devices here; try device cpu")
    return device


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
