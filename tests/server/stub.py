"""An engine that computes nothing: it says the words it is told, on a thread of its own, as fast or slow as wanted."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from minicpm.engine.constraint import Constraint
from minicpm.engine.request import Completion, FinishReason, Piece, Timings, Usage
from minicpm.engine.service import ServiceStatistics
from minicpm.errors import QueueFull
from minicpm.sampling import SampledToken, SamplingParams

T = TypeVar("T")


def finished(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


MOST_WORDS = 4096  # of an answer, as a context would limit it


@dataclass
class StubTicket:
    """One answer of `length` words, which ends for `reason`; it is `alive` until then, or until somebody cancels it."""

    words: Sequence[str]
    length: int
    reason: FinishReason
    prompt_tokens: int
    params: SamplingParams
    on_piece: Callable[[Piece], None]
    on_error: Callable[[Exception], None]
    said: list[str] = field(default_factory=list)
    alive: bool = True

    def cancel(self) -> None:
        self.alive = False


class StubEngine:
    """Says `words` one by one, over and over up to max_tokens, with `delay_s` before each, and ends for `reason`.

    `fail_after` words every answer fails with `failure`; more than `limit` answers at once are refused.
    """

    def __init__(
        self,
        words: Sequence[str] = (" one", " two", " three"),
        delay_s: float = 0.0,
        limit: int = 10_000,
        reason: FinishReason = "length",
    ):
        self.words, self.delay_s, self.limit, self.reason = list(words), delay_s, limit, reason
        self.fail_after: int | None = None
        self.failure: Exception = RuntimeError("secret words of the inside")
        self.is_alive = True
        self.tickets: list[StubTicket] = []
        self._due: list[tuple[float, int, StubTicket]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def alive(self) -> int:
        return sum(ticket.alive for ticket in self.tickets)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        on_piece: Callable[[Piece], None],
        on_error: Callable[[Exception], None],
        is_chat: bool,
        choice: int = 0,
        constraint: Constraint | None = None,
    ) -> StubTicket:
        if self.alive >= self.limit:
            raise QueueFull(self.alive, 3.0)
        ticket = StubTicket(*self.script(prompt, params, constraint), len(prompt), params, on_piece, on_error)
        self.tickets.append(ticket)
        self._schedule(ticket)
        return ticket

    def script(
        self, prompt: Sequence[int], params: SamplingParams, constraint: Constraint | None
    ) -> tuple[Sequence[str], int, FinishReason]:
        """The words of an answer, how many of them are said (over and over), and why it ends."""
        return self.words, min(params.max_tokens or len(self.words), MOST_WORDS), self.reason

    def embed(self, texts: Sequence[Sequence[int]]) -> Future[npt.NDArray[np.float32]]:
        return finished(np.ones((len(texts), 4), np.float32))

    def prompt_logprobs(self, prompts: Sequence[Sequence[int]], top: int) -> Future[list[list[SampledToken]]]:
        scored = [[SampledToken(i, -1.0, ((i, -1.0),) * min(top, 1)) for i in ids] for ids in prompts]
        return finished([[SampledToken(tokens[0].token_id), *tokens[1:]] for tokens in scored])

    def statistics(self) -> ServiceStatistics:
        return ServiceStatistics(0, self.alive, 0, 0, 0)

    def close(self) -> None:
        with self._changed:
            self.is_alive = False
            self._changed.notify()

    def _schedule(self, ticket: StubTicket) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + self.delay_s, next(self._count), ticket))
            self._changed.notify()

    def _run(self) -> None:
        while self.is_alive:
            with self._changed:
                wait_s = self._due[0][0] - time.monotonic() if self._due else None
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                ticket = heapq.heappop(self._due)[2]
            self._say(ticket)

    def _say(self, ticket: StubTicket) -> None:
        if not ticket.alive:
            return
        if self.fail_after == len(ticket.said):
            ticket.alive = False
            ticket.on_error(self.failure)
            return
        word = ticket.words[len(ticket.said) % len(ticket.words)]
        ticket.said.append(word)
        if len(ticket.said) < ticket.length:
            ticket.on_piece(Piece(0, word))
            self._schedule(ticket)
            return
        ticket.alive = False
        usage = Usage(ticket.prompt_tokens, len(ticket.said), 0)
        timings = Timings(0.0, 0.0, 0.0, 0.0)
        ids = tuple(range(len(ticket.said)))
        whole = Completion("".join(ticket.said), ids, None, ticket.reason, usage, timings, ticket.params.seed or 0)
        ticket.on_piece(Piece(0, word, whole))


class ScriptedEngine(StubEngine):
    """Says what `answer` returns in small parts, and ends there unless max_tokens cuts it."""

    def answer(self, prompt: Sequence[int], constraint: Constraint | None) -> str:
        raise NotImplementedError

    def script(
        self, prompt: Sequence[int], params: SamplingParams, constraint: Constraint | None
    ) -> tuple[Sequence[str], int, FinishReason]:
        text = self.answer(prompt, constraint)
        words = [text[i : i + 3] for i in range(0, len(text), 3)] or [""]
        length = min(len(words), params.max_tokens or len(words))
        return words, length, "stop" if length == len(words) else "length"
