"""The conversation of one browser session: its rounds, the answer being written, and what there is to say of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from minicpm.chat import Message
from minicpm.demo.source import Progress, Source, SourceError
from minicpm.sampling import SamplingParams

# Tokens may come faster than a browser can show them, and every update costs the thread that all sessions share.
_UPDATE_S = 0.1


@dataclass(frozen=True)
class Note:
    """What is said below the answers: what the last one cost, and how it ended."""

    progress: Progress | None = None
    is_stopped: bool = False
    error: str = ""


class Conversation:
    """Rounds of user and assistant. Several events of a page may call at once; only one answer is written."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.note = Note()
        self.is_running = False
        self._stop = asyncio.Event()

    async def ask(
        self, source: Source, question: str, system: str, sampling: SamplingParams
    ) -> AsyncGenerator[None, None]:
        """Ask and let the answer grow in `messages`; every yield is something new to show.

        A question that gets no answer at all is taken out again. Closing the generator stops the answer.
        """
        if self.is_running:
            return
        self.is_running, self.note = True, Note()
        self._stop.clear()
        prompt: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        prompt += [*self.messages, {"role": "user", "content": question}]
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": ""}]
        try:
            yield
            async for _ in self._written(source, prompt, sampling):
                yield
        except SourceError as error:
            self.note = Note(self.note.progress, error=str(error))
        finally:
            self.is_running = False
            if not self.messages[-1]["content"] and (self.note.error or self.note.is_stopped):
                del self.messages[-2:]
        yield

    async def _written(
        self, source: Source, prompt: list[Message], sampling: SamplingParams
    ) -> AsyncGenerator[None, None]:
        answer = self.messages[-1]
        shown_s = 0.0
        async with aclosing(source.answer(prompt, sampling)) as pieces:
            while (progress := await self._next(pieces)) is not None:
                answer["content"] = progress.text
                self.note = Note(progress)
                if time.monotonic() - shown_s >= _UPDATE_S:
                    shown_s = time.monotonic()
                    yield
        if self._stop.is_set():
            self.note = Note(self.note.progress, is_stopped=True)

    async def _next(self, pieces: AsyncGenerator[Progress, None]) -> Progress | None:
        """The next state of the answer; None at its end, and as soon as it is to stop."""
        following = asyncio.ensure_future(anext(pieces, None))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stop.is_set() else following.result()
        finally:
            for task in (following, stopping):
                task.cancel()
            # A generator can be closed only after what waits in it has ended.
            await asyncio.gather(following, stopping, return_exceptions=True)

    def stop(self) -> None:
        """End the answer that is being written; what there is of it stays."""
        self._stop.set()

    def undo(self) -> str:
        """Drop the last round; returns its question, "" where there is none."""
        if self.is_running or not self.messages:
            return ""
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        self.note = Note()
        return question

    def clear(self) -> None:
        """Forget all rounds."""
        if not self.is_running:
            self.messages, self.note = [], Note()
