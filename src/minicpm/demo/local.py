"""A model in this process: every browser session asks the same engine, which computes them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from minicpm import native
from minicpm.chat import Message
from minicpm.demo.source import Meter, Progress, SourceError
from minicpm.engine.llm import LLM
from minicpm.engine.request import Piece
from minicpm.engine.service import Engine
from minicpm.errors import MiniCPMError
from minicpm.sampling import SamplingParams


class LocalSource:
    """Answers of `engine`, which runs `llm`."""

    def __init__(self, llm: LLM, engine: Engine, model: str):
        self._llm = llm
        self._engine = engine
        self.model = model
        isa = f", {native.isa()}" if llm.backend.name == "native" else ""
        self.engine = f"{llm.backend.name}{isa}"
        self.sampling = llm.sampling
        self.context_length = llm.context_length

    async def answer(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncGenerator[Progress, None]:
        """As Source.answer; the oldest rounds are left out where the context does not hold all."""
        letters: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def post(letter: Piece | Exception) -> None:
            loop.call_soon_threadsafe(letters.put_nowait, letter)

        try:
            # Long histories take a while to encode, and the other sessions share this thread.
            prompt, dropped = await asyncio.to_thread(self._prompt, messages, sampling)
            ticket = self._engine.submit(prompt, sampling, on_piece=post, on_error=post, is_chat=True)
        except (MiniCPMError, ValueError) as error:
            raise SourceError(str(error)) from error
        meter = Meter(dropped)
        try:
            while True:
                letter = await letters.get()
                if isinstance(letter, Exception):
                    raise SourceError(str(letter)) from letter
                if letter.completion is None:
                    yield meter.hear(letter.text)
                    continue
                done = letter.completion
                last = meter.progress(done.finish_reason, tokens=done.usage.completion_tokens, piece=letter.text)
                yield replace(last, tokens_per_s=done.timings.decode_tokens_per_s)
                return
        finally:
            ticket.cancel()

    def _prompt(self, messages: Sequence[Message], sampling: SamplingParams) -> tuple[str, int]:
        """The prompt of as many of the last rounds as there is room for, and how many rounds were left out."""
        system = list(messages[:1]) if messages[0]["role"] == "system" else []
        rounds = list(messages[len(system) :])
        dropped = 0
        while len(rounds) > 1 and not self._llm.has_room(system + rounds, sampling):
            rounds = rounds[2:]
            dropped += 1
        return self._llm.template.render(system + rounds), dropped
