"""Server-sent events: a stream that starts its work before its headers and ends it when the client leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from minicpm.engine.request import Piece
from minicpm.server.answers import Answers
from minicpm.server.errors import APIError

Chunk = dict[str, Any]

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_PING = b": still here\n\n"
_DONE = b"data: [DONE]\n\n"


class ChunkWriter(Protocol):
    """Makes a route's chunks of pieces."""

    def opening(self) -> Iterable[Chunk]: ...
    def chunks(self, piece: Piece) -> Iterable[Chunk]: ...
    def closing(self) -> Iterable[Chunk]: ...


class EventStream(StreamingResponse):
    """Streams `answers`, which `stack` ends: when they are finished, fail, or nobody listens any more."""

    def __init__(self, stack: AsyncExitStack, answers: Answers, writer: ChunkWriter, ping_s: float):
        self._stack = stack
        self._events = _events(answers, writer, ping_s)
        # nginx passes events on at once where it is told so.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events, headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack, aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _events(answers: Answers, writer: ChunkWriter, ping_s: float) -> AsyncGenerator[bytes, None]:
    try:
        for chunk in writer.opening():
            yield _event(chunk)
        while not answers.is_finished:
            piece = await answers.next(ping_s)
            if piece is None:
                yield _PING
                continue
            for chunk in writer.chunks(piece):
                yield _event(chunk)
        for chunk in writer.closing():
            yield _event(chunk)
        yield _DONE
    except APIError as error:
        yield _event(error.body())


def _event(chunk: Chunk) -> bytes:
    return b"data: " + _ENCODER.encode(chunk).encode() + b"\n\n"
