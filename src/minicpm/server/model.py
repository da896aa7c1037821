"""The model behind the server, as requests see it: its names, texts to ids and back, its limits."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from minicpm import __version__
from minicpm.chat import ChatTemplate, Message
from minicpm.engine.llm import LLM
from minicpm.errors import FormatError
from minicpm.export.hf_folder import is_licence
from minicpm.files import read_text
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.gguf_blocks import BLOCK_TYPES_OF_BITS
from minicpm.sampling import SamplingParams
from minicpm.server.errors import APIError
from minicpm.tokenizer import Tokenizer

MAX_LICENCE_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFacts:
    """The model's files, for clients that list models: read once, when the server starts.

    `format` is "gguf" or the ending of the weight files, `quantization` a name such as INT4, Q8_0 or BF16.
    """

    config: DecoderConfig
    format: str
    quantization: str
    weight_bytes: int
    modified: float  # seconds since 1970 of the newest weight file
    licence: str
    is_on_gpu: bool

    @classmethod
    def of(cls, llm: LLM) -> ModelFacts:
        with open_checkpoint(llm.folder, allow_quantized=True) as checkpoint:
            form = "gguf" if checkpoint.format == "gguf" else checkpoint.weight_files[0].suffix.removeprefix(".")
            return cls(
                checkpoint.config,
                form,
                _quantization(checkpoint),
                checkpoint.nbytes,
                max(file.stat().st_mtime for file in checkpoint.weight_files),
                _licence(checkpoint.path),
                getattr(llm.backend, "device", "cpu") != "cpu",
            )


def _quantization(checkpoint: Checkpoint) -> str:
    """The form of most weights' numbers."""
    if checkpoint.packings:
        ((bits, _),) = Counter(packing.bits for packing in checkpoint.packings.values()).most_common(1)
        return BLOCK_TYPES_OF_BITS[bits].name if checkpoint.format == "gguf" else f"INT{bits}"
    ((dtype, _),) = Counter(info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1).most_common(1)
    return dtype.upper().replace("FLOAT", "F")


def _licence(path: Path) -> str:
    """The text of the folder's first licence file; "" if there is none that can be read."""
    files = sorted(file for file in path.iterdir() if is_licence(file.name)) if path.is_dir() else []
    with suppress(FormatError, OSError):
        return read_text(files[0], MAX_LICENCE_BYTES) if files else ""
    return ""


@dataclass(frozen=True)
class ServedModel:
    """`names` are what /v1/models lists; the first is the one that answers carry where a request names none."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    template: ChatTemplate
    sampling: SamplingParams
    context_length: int
    vocab_size: int
    fingerprint: str
    facts: ModelFacts
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, llm: LLM, names: Sequence[str]) -> ServedModel:
        # The same seed gives the same answer while this stays the same.
        build = f"{__version__}/{llm.backend.name}/{llm.folder}"
        fingerprint = "fp_" + hashlib.sha256(build.encode()).hexdigest()[:12]
        return cls(
            tuple(names),
            llm.tokenizer,
            llm.template,
            llm.sampling,
            llm.context_length,
            llm.backend.vocab_size,
            fingerprint,
            ModelFacts.of(llm),
        )

    def check_name(self, name: str | None) -> str:
        """The name to answer with; 404 for one that is not served."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            name = name.removesuffix(":latest")  # as clients of Ollama write it
        if name not in self.names:
            raise APIError(
                404,
                f"the model {name[:100]!r} is not served here; there is: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        return name

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(self.template.render(messages))

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_bos=add_bos)

    def check_prompt(self, ids: Sequence[int], name: str, *, is_answered: bool = True) -> None:
        """400 for a prompt that is empty, has unknown ids, or leaves no room for an answer where it gets one."""
        if not ids:
            raise APIError(400, f"{name} is empty; give at least one character", param=name, code="invalid_value")
        bad = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if bad is not None:
            raise APIError(
                400,
                f"{name}: there is no token {bad:.4g}, the vocabulary has {self.vocab_size:,}",
                param=name,
                code="invalid_value",
            )
        if len(ids) + is_answered > self.context_length:
            beside = " with at least one for the answer" if is_answered else ""
            raise APIError(
                400,
                f"{name} has {len(ids):,} tokens, but the context holds {self.context_length:,}{beside}; shorten it",
                param=name,
                code="context_length_exceeded",
            )

    def token_text(self, token_id: int) -> str:
        """A token alone, as far as it is text: what is part of a character is shown as U+FFFD."""
        return self.tokenizer.token_bytes(token_id).decode("utf-8", "replace")
