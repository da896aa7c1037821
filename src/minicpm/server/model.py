"""The model behind the server, as requests see it: its names, texts to ids and back, its limits."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from minicpm import __version__
from minicpm.chat import ChatTemplate, Message
from minicpm.engine.llm import LLM
from minicpm.sampling import SamplingParams
from minicpm.server.errors import APIError
from minicpm.tokenizer import Tokenizer


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
        )

    def check_name(self, name: str | None) -> str:
        """The name to answer with; 404 for one that is not served."""
        if name is None:
            return self.names[0]
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
