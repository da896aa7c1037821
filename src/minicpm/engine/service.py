"""Serves many users with one model: one thread computes, and requests come from any other thread.

The thread owns the scheduler and the backend. Between two steps it takes new requests, cancellations and other work on
the model. It passes pieces to callbacks, and does not know what they do with them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from minicpm.engine.constraint import Constraint
from minicpm.engine.llm import LLM
from minicpm.engine.prompt import Prompt
from minicpm.engine.request import Piece, Request
from minicpm.errors import GenerationError, QueueFull
from minicpm.sampling import SampledToken, SamplingParams

_LOGGER = logging.getLogger(__name__)

# Bounds of the waiting time that a full queue recommends.
SHORTEST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
# Weight of a new measurement in the average time between two finished requests.
_INTERVAL_WEIGHT = 0.1

T = TypeVar("T")
QUEUE_LIMIT = 256
OUTCOMES = ("stop", "length", "cancelled", "failed", "refused")


@dataclass(frozen=True)
class ServiceStatistics:
    """The current state of a service, and its totals since its start."""

    waiting: int  # requests
    running: int
    cache_tokens: int  # the budget for keys and values
    cache_held_tokens: int  # of the budget, held by running requests
    cache_idle_tokens: int  # of the budget, kept of finished requests
    outcomes: dict[str, int] = field(default_factory=dict)  # requests by OUTCOMES
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0  # of the prompt tokens, those from the cache
    generated_tokens: int = 0  # sampled, including those that end an answer
    drafted_tokens: int = 0  # drafted by prompt lookup
    accepted_tokens: int = 0  # of the drafted tokens
    preemptions: int = 0  # of running requests
    steps: int = 0
    step_seconds: float = 0.0


class Ticket(Protocol):
    """One submitted request."""

    def cancel(self) -> None:
        """Stop before the next step and release the memory. No callback follows, except one that is already running on
        the engine's thread. Cancelling twice, or after the end, has no effect.
        """


class Engine(Protocol):
    """The part of a Service that the server and the demo use; tests implement it without a model."""

    @property
    def is_alive(self) -> bool:
        """Whether the computing thread is alive. Before the end, only a bug ends it."""

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        on_piece: Callable[[Piece], None],
        on_error: Callable[[Exception], None],
        is_chat: bool,
        choice: int = 0,
        constraint: Constraint | None = None,
    ) -> Ticket:
        """Queue a rendered prompt (or token ids and spans) and return at once; pieces come on the engine's thread.

        The last piece has the completion; nothing follows an error. `choice` distinguishes several answers to one
        prompt and seed, and is the pieces' `index`. Callbacks must be quick, because every request waits for them; one
        that raises cancels its own request. Raises GenerationError for a request that can never be answered, QueueFull
        if too many wait.
        """

    def embed(self, texts: str | Sequence[str | Sequence[int]]) -> Future[npt.NDArray[np.float32]]:
        """LLM.embed, in steps between those of the streams; cancelling the future ends the work.

        It waits for memory as a stream does. Raises GenerationError for a text that can never be embedded, QueueFull
        if too many calls wait.
        """

    def prompt_logprobs(self, prompts: Sequence[Sequence[int]], top: int) -> Future[list[list[SampledToken]]]:
        """Per prompt all its tokens, with their log-probabilities and the `top` likeliest; the first one has neither.

        Steps and refusals are as in `embed`.
        """

    def statistics(self) -> ServiceStatistics:
        """The current counts."""


class _Ticket:
    def __init__(
        self,
        service: Service,
        request: Request,
        on_piece: Callable[[Piece], None],
        on_error: Callable[[Exception], None],
    ):
        self._service = service
        self.request = request
        self.on_piece = on_piece
        self.on_error = on_error
        self.is_over = False  # no more callbacks

    def cancel(self) -> None:
        self._service._cancel(self)


class Service(Engine):
    """Runs an LLM for many callers. While it is open, use the LLM only through it: as an Engine, and by `call`.

    At most `max_batch` requests run and `queue_limit` requests wait.
    """

    def __init__(self, llm: LLM, *, queue_limit: int = QUEUE_LIMIT):
        if isinstance(queue_limit, bool) or queue_limit < 1:
            raise ValueError(f"queue_limit must be 1 or more, got {queue_limit!r}")
        self.llm = llm
        self.queue_limit = queue_limit
        self._scheduler = llm.new_scheduler()
        self._changed = threading.Condition()
        self._tickets: dict[Request, _Ticket] = {}  # of all requests that are not over
        self._arrived: deque[_Ticket] = deque()
        self._cancelled: deque[_Ticket] = deque()
        self._works: deque[tuple[Generator[int, None, Any], Future[Any]]] = deque()
        self._is_closing = False
        self._is_aborted = False
        self._counts = _Counts()
        self._thread = threading.Thread(target=self._run, name="minicpm-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close() if kind is None else self.close(0.0)

    # --- from any thread -----------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        on_piece: Callable[[Piece], None],
        on_error: Callable[[Exception], None],
        is_chat: bool,
        choice: int = 0,
        constraint: Constraint | None = None,
    ) -> _Ticket:
        request = self.llm.new_request(
            prompt, params, is_chat=is_chat, index=choice, choice=choice, constraint=constraint
        )
        ticket = _Ticket(self, request, on_piece, on_error)
        with self._changed:
            self._require_open()
            waiting = self._scheduler.waiting + len(self._arrived)
            if waiting >= self.queue_limit:
                self._counts.outcomes["refused"] += 1
                raise QueueFull(waiting, self._counts.retry_after_s)
            self._tickets[request] = ticket
            self._arrived.append(ticket)
            self._changed.notify_all()
        return ticket

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the model, e.g. `lambda: service.llm.logits(ids)`, between two steps; return its result.

        Streams wait meanwhile, so it should be short. One call is made per step. Callbacks must not use it, because
        they run on the thread that makes the call.
        """
        assert threading.current_thread() is not self._thread, "a callback waits for its own thread"
        return self._queued(_in_one_step(function)).result()

    def embed(self, texts: str | Sequence[str | Sequence[int]]) -> Future[npt.NDArray[np.float32]]:
        return self._queued(self.llm.embed_in_steps(texts, self._chunk_tokens))

    def prompt_logprobs(self, prompts: Sequence[Sequence[int]], top: int) -> Future[list[list[SampledToken]]]:
        return self._queued(self.llm.prompt_logprobs_in_steps(prompts, top, self._chunk_tokens))

    def statistics(self) -> ServiceStatistics:
        cache = self._scheduler.cache_usage()
        with self._changed:
            return ServiceStatistics(
                waiting=self._scheduler.waiting + len(self._arrived),
                running=self._scheduler.running,
                cache_tokens=cache.tokens,
                cache_held_tokens=cache.held_tokens,
                cache_idle_tokens=cache.idle_tokens,
                outcomes=dict(self._counts.outcomes),
                **asdict(self._scheduler.work),
            )

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float = 30.0) -> None:
        """Refuse new requests, let running ones finish for at most `timeout_s`, then end the rest with an error."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, timeout_s))
        with self._changed:
            self._is_aborted = True
            self._changed.notify_all()
        self._thread.join()

    def _queued(self, work: Generator[int, None, T]) -> Future[T]:
        """A future of the work's result. The service's thread does a step of it after each step of the scheduler."""
        future: Future[T] = Future()
        with self._changed:
            self._require_open()
            if len(self._works) >= self.queue_limit:
                raise QueueFull(len(self._works), self._counts.retry_after_s)
            self._works.append((work, future))
            self._changed.notify_all()
        return future

    def _chunk_tokens(self) -> int:
        return self._scheduler.chunk_tokens

    def _cancel(self, ticket: _Ticket) -> None:
        with self._changed:
            if not ticket.is_over:
                self._end(ticket, "cancelled")
                self._cancelled.append(ticket)
                self._changed.notify_all()

    def _require_open(self) -> None:
        if self._is_closing:
            raise GenerationError("the service is closing and takes no new requests; start another one")

    # --- on the service's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._take_in():
            if self._scheduler.is_busy:
                self._step()
            self._work()
        self._abort()

    def _take_in(self) -> bool:
        """Wait for work and pass requests and cancellations to the scheduler; False at the end."""
        with self._changed:
            while not (self._is_aborted or self._arrived or self._cancelled or self._works or self._scheduler.is_busy):
                if self._is_closing:
                    return False
                self._changed.wait()
            while self._arrived:
                self._scheduler.add(self._arrived.popleft().request)
            while self._cancelled:
                self._scheduler.cancel(self._cancelled.popleft().request)
            return not self._is_aborted

    def _step(self) -> None:
        try:
            events = self._scheduler.step()
        except Exception as error:
            _LOGGER.exception("a step failed; its requests end with this error")
            self._fail_all(error)
            return
        for request, event in events:
            ticket = self._tickets.get(request)
            if ticket is not None:
                self._deliver(ticket, event)

    def _deliver(self, ticket: _Ticket, event: Piece | Exception) -> None:
        """Call back, unless the ticket was cancelled meanwhile."""
        completion = event.completion if isinstance(event, Piece) else None
        with self._changed:
            if ticket.is_over:
                return
            if completion is not None:
                self._counts.finished()
                self._end(ticket, completion.finish_reason)
            elif isinstance(event, Exception):
                self._end(ticket, "failed")
        try:
            ticket.on_piece(event) if isinstance(event, Piece) else ticket.on_error(event)
        except Exception:
            _LOGGER.exception("a callback failed; its request is cancelled")
            ticket.cancel()

    def _end(self, ticket: _Ticket, outcome: str) -> None:
        ticket.is_over = True
        self._counts.outcomes[outcome] += 1
        self._tickets.pop(ticket.request, None)

    def _work(self) -> None:
        """Do a step of the work that has waited longest. No request is admitted while it waits for memory."""
        with self._changed:
            if not self._works:
                return
            work, future = self._works.popleft()
        missing_tokens = 0
        try:
            if future.cancelled():
                work.close()
                return
            missing_tokens = next(work)
            if missing_tokens and not self._scheduler.running:
                work.throw(self._scheduler.no_room(missing_tokens))
            with self._changed:
                self._works.appendleft((work, future)) if missing_tokens else self._works.append((work, future))
        except StopIteration as done:
            missing_tokens = 0
            with suppress(InvalidStateError):  # cancelled meanwhile
                future.set_result(done.value)
        except BaseException as error:
            missing_tokens = 0
            with suppress(InvalidStateError):
                future.set_exception(error)
        finally:
            self._scheduler.admits = not missing_tokens
            self._scheduler.others_go_on = bool(self._works)

    def _fail_all(self, error: Exception) -> None:
        self._scheduler.close()
        with self._changed:
            tickets = list(self._tickets.values())
            self._arrived.clear()
        for ticket in tickets:
            self._deliver(ticket, error)

    def _abort(self) -> None:
        error = GenerationError("the service was closed before this was done")
        self._fail_all(error)
        with self._changed:
            works = list(self._works)
            self._works.clear()
        for work, future in works:
            work.close()
            with suppress(InvalidStateError):  # it was cancelled
                future.set_exception(error)


def _in_one_step(function: Callable[[], T]) -> Generator[int, None, T]:
    return function()
    yield


class _Counts:
    """Counts requests by outcome, and measures how fast they finish."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self._interval_s = 0.0
        self._last_finish: float | None = None

    @property
    def retry_after_s(self) -> float:
        """The expected time until a place in the queue is free: about the time between two finished requests."""
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, self._interval_s))

    def finished(self) -> None:
        now = time.monotonic()
        if self._last_finish is not None:
            self._interval_s += _INTERVAL_WEIGHT * (now - self._last_finish - self._interval_s)
        self._last_finish = now
