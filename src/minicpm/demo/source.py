"""Where the demo's answers come from: the one seam between the page and what computes.

`demo.local` is a model in this process, `demo.remote` a server. Neither knows of Gradio.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from minicpm.chat import Message
from minicpm.engine.request import MEASURABLE_S
from minicpm.errors import GenerationError
from minicpm.sampling import SamplingParams


@dataclass(frozen=True)
class Progress:
    """An answer so far. `finish_reason` is None until its end; `dropped_rounds` of the history had no room."""

    text: str
    tokens: int
    tokens_per_s: float
    finish_reason: str | None = None
    dropped_rounds: int = 0


class Source(Protocol):
    """Answers conversations, many at once."""

    @property
    def model(self) -> str:
        """The model's name, for a line on the page."""

    @property
    def engine(self) -> str:
        """What computes, for the same line."""

    @property
    def sampling(self) -> SamplingParams:
        """What the controls of the page begin with."""

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and answer may have together; None where it is not known."""

    def answer(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncGenerator[Progress, None]:
        """An answer as it grows, the last one whole; closing it ends the work. Raises SourceError with a sentence."""


class SourceError(GenerationError):
    """No answer, or no more of it; the message is for the person who asked."""


class Meter:
    """Adds up an answer's pieces, and measures it from its first piece on."""

    def __init__(self, dropped_rounds: int = 0):
        self._dropped_rounds = dropped_rounds
        self._text: list[str] = []
        self._first_s: float | None = None
        self.tokens = 0

    def hear(self, piece: str) -> Progress:
        """One more token."""
        now_s = time.perf_counter()
        self._first_s = self._first_s or now_s
        self._text.append(piece)
        self.tokens += 1
        return self.progress()

    def progress(self, finish_reason: str | None = None, *, tokens: int | None = None, piece: str = "") -> Progress:
        """What there is; `tokens` is the true number where it is known, `piece` text that is no further token."""
        self._text.append(piece)
        tokens = self.tokens if tokens is None else tokens
        seconds = time.perf_counter() - self._first_s if self._first_s is not None else 0.0
        rate = (tokens - 1) / seconds if tokens > 1 and seconds >= MEASURABLE_S else 0.0
        return Progress("".join(self._text), tokens, rate, finish_reason, self._dropped_rounds)
