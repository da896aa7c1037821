"""From the engine's thread to the event loop: the pieces of the answers that one HTTP request is waiting for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from minicpm.engine.constraint import Constraint
from minicpm.engine.request import Completion, Piece
from minicpm.engine.service import Engine
from minicpm.sampling import SamplingParams
from minicpm.server.errors import APIError, as_api_error, client_gone, shutting_down
from minicpm.server.metrics import Metrics
from minicpm.server.model import ServedModel
from minicpm.server.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One choice to be written. Choices of one prompt differ in `choice` only."""

    prompt_ids: list[int]
    params: SamplingParams
    is_chat: bool
    choice: int = 0
    constraint: Constraint | None = None


class Inbox:
    """Passes items from other threads to the event loop, with one wake-up for all that arrive together."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._letters: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._is_waking = False

    def post(self, receiver: Callable[[Any], None], letter: object) -> None:
        """Call `receiver(letter)` on the loop; letters come in the order they were posted."""
        self._letters.append((receiver, letter))
        if not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Cleared first: items posted from here on wake the loop again.
        self._is_waking = False
        while self._letters:
            receiver, letter = self._letters.popleft()
            receiver(letter)


class Serving:
    """One engine and the state that requests share. `is_draining` is true once a shutdown was requested."""

    def __init__(self, engine: Engine, model: ServedModel, settings: Settings):
        self.engine = engine
        self.model = model
        self.settings = settings
        self.metrics = Metrics(engine)
        self.is_draining = False
        self._inbox: Inbox | None = None
        self._hearers: set[Callable[[Exception], None]] = set()

    def drain(self) -> None:
        """Take no new requests."""
        self.is_draining = True

    def abandon(self) -> None:
        """End the answers that are still being written."""
        for hear in list(self._hearers):
            hear(shutting_down())

    @asynccontextmanager
    async def answers(self, questions: Sequence[Question]) -> AsyncIterator[Answers]:
        """Start to answer; leaving the block, however it is left, ends what is still being written.

        Raises APIError where the engine does not take them all.
        """
        if self._inbox is None:
            self._inbox = Inbox(asyncio.get_running_loop())
        answers = Answers(self.settings, self.metrics, len(questions))
        self._hearers.add(answers.hear_error)
        tickets = []
        try:
            for index, question in enumerate(questions):
                submit = partial(
                    self.engine.submit,
                    question.prompt_ids,
                    question.params,
                    on_piece=partial(self._inbox.post, partial(answers.hear, index)),
                    on_error=partial(self._inbox.post, answers.hear_error),
                    is_chat=question.is_chat,
                    choice=question.choice,
                    constraint=question.constraint,
                )
                # A grammar may take a second to compile.
                tickets.append(await asyncio.to_thread(submit) if question.constraint else submit())
            yield answers
        except APIError:
            raise  # with its cause
        except Exception as error:
            raise as_api_error(error) from error
        finally:
            self._hearers.discard(answers.hear_error)
            for ticket in tickets:
                ticket.cancel()


class Answers:
    """The pieces of several choices, in the order they come; `index` of a piece is the choice."""

    def __init__(self, settings: Settings, metrics: Metrics, count: int):
        self._settings = settings
        self._metrics = metrics
        self._unfinished = count
        self._heard: deque[Piece | Exception] = deque()
        self._something = asyncio.Event()
        self._start_s = time.perf_counter()
        self._last_s: list[float | None] = [None] * count

    def hear(self, index: int, piece: Piece) -> None:
        self._measure(index, piece)
        self._heard.append(Piece(index, piece.text, piece.completion, piece.tokens))
        self._something.set()

    def hear_error(self, error: Exception) -> None:
        self._heard.append(error)
        self._something.set()

    async def next(self, timeout_s: float | None = None) -> Piece | None:
        """The next piece, or None after `timeout_s` without one. Raises APIError where engine or time ended it."""
        if not self._heard:
            self._something.clear()
            wait_s = self._time_left_s()
            if timeout_s is not None:
                wait_s = min(wait_s, timeout_s)
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._something.wait()
            except TimeoutError:
                self._check_time()
                return None
        heard = self._heard.popleft()
        if isinstance(heard, Exception):
            raise as_api_error(heard) from heard
        self._unfinished -= heard.completion is not None
        return heard

    @property
    def is_finished(self) -> bool:
        return self._unfinished == 0

    async def completions(self) -> list[Completion]:
        """All choices, when the last one is finished."""
        whole: dict[int, Completion] = {}
        while not self.is_finished:
            piece = await self.next()
            if piece is not None and piece.completion is not None:
                whole[piece.index] = piece.completion
        return [whole[index] for index in sorted(whole)]

    def _time_left_s(self) -> float:
        has_begun = any(self._last_s)
        limit_s = self._settings.total_timeout_s
        if not has_begun:
            limit_s = min(limit_s, self._settings.first_token_timeout_s)
        return self._start_s + limit_s - time.perf_counter()

    def _check_time(self) -> None:
        if self._time_left_s() > 0:
            return
        if any(self._last_s):
            message = f"the answer took longer than {self._settings.total_timeout_s:g} s"
            raise APIError(504, message, kind="server_error", code="answer_timeout")
        message = f"there was no token within {self._settings.first_token_timeout_s:g} s; the server is busy"
        headers = {"Retry-After": "10"}
        raise APIError(503, message, kind="server_error", code="first_token_timeout", headers=headers)

    def _measure(self, index: int, piece: Piece) -> None:
        now_s = time.perf_counter()
        last_s, self._last_s[index] = self._last_s[index], now_s
        if last_s is None:
            self._metrics.first_token_s.observe(now_s - self._start_s)
        else:
            self._metrics.between_tokens_s.observe(now_s - last_s)
        if piece.completion is not None:
            self._metrics.answer_s.observe(now_s - self._start_s)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run what takes a while beside the event loop. Raises APIError where it refuses what the client sent."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except Exception as error:
        raise as_api_error(error) from error


async def worked(start: Callable[..., Future[T]], *arguments: Any) -> T:
    """The result of engine work, which is cancelled if the client disconnects. Raises APIError as `in_thread` does."""
    future = await in_thread(start, *arguments)
    try:
        return await asyncio.wrap_future(future)
    except Exception as error:
        raise as_api_error(error) from error


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it as soon as the client hangs up; its body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise client_gone()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
