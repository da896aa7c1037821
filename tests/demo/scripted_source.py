"""A source whose answers a test writes, one piece at a time."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from minicpm.chat import Message
from minicpm.demo.source import Meter, Progress, SourceError
from minicpm.sampling import SamplingParams


@dataclass
class ScriptedSource:
    """Says `pieces`, where it `waits` what comes in `more` until None, then fails with `error`, or ends.

    `asked`, `params` and `ended` tell what happened.
    """

    pieces: Sequence[str] = ()
    error: str = ""
    waits: bool = False
    asked: list[list[Message]] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    ended: int = 0
    more: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)

    model = "scripted"
    engine = "by hand"
    context_length: int | None = None
    sampling = SamplingParams(temperature=0.3, top_p=0.9)

    async def answer(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncGenerator[Progress, None]:
        self.asked.append([*messages])
        self.params.append(sampling)
        meter = Meter()
        try:
            for piece in self.pieces:
                await asyncio.sleep(0)
                yield meter.hear(piece)
            while self.waits and (piece := await self._next()) is not None:
                yield meter.hear(piece)
            if self.error:
                raise SourceError(self.error)
            yield meter.progress("stop")
        finally:
            self.ended += 1

    async def _next(self) -> str | None:
        """What a test on another thread says next."""
        while self.more.empty():
            await asyncio.sleep(0.01)
        return self.more.get()
