"""Streams of chunks: a stream starts its work before its headers and ends it when the client leaves.

`SERVER_SENT_EVENTS` is OpenAI's form of one; a route of another API brings its own `Framing`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from minicpm.engine.request import Piece
from minicpm.server.answers import Answers
from minicpm.server.errors import APIError

Chunk = dict[str, Any]

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class ChunkWriter(Protocol):
    """Makes a route's chunks of pieces."""

    def opening(self) -> Iterable[Chunk]: ...
    def chunks(self, piece: Piece) -> Iterable[Chunk]: ...
    def closing(self) -> Iterable[Chunk]: ...


@dataclass(frozen=True)
class Framing:
    """How chunks are written.

    `ping` keeps a silent stream open, `done` ends it (b"": nothing does), and `error` makes the chunks in place of the
    end.
    """

    media_type: str
    frame: Callable[[Chunk], bytes]
    ping: Callable[[], bytes]
    done: bytes
    error: Callable[[APIError], Iterable[Chunk]]


def encoded(chunk: Chunk) -> str:
    """A chunk as JSON on one line."""
    return _ENCODER.encode(chunk)


def _event(chunk: Chunk) -> bytes:
    return b"data: " + encoded(chunk).encode() + b"\n\n"


def sent_event_ping() -> bytes:
    """A comment, which clients skip."""
    return b": still here\n\n"


SERVER_SENT_EVENTS = Framing(
    "text/event-stream", _event, sent_event_ping, b"data: [DONE]\n\n", lambda error: [error.body()]
)


class EventStream(StreamingResponse):
    """Streams `answers`, which `stack` closes when they finish or fail, or when the client disconnects."""

    def __init__(
        self,
        stack: AsyncExitStack,
        answers: Answers,
        writer: ChunkWriter,
        ping_s: float,
        framing: Framing = SERVER_SENT_EVENTS,
    ):
        self._stack = stack
        self._events = _events(answers, writer, ping_s, framing)
        # Without this header nginx buffers events.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events, headers=headers, media_type=framing.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack, aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _events(
    answers: Answers, writer: ChunkWriter, ping_s: float, framing: Framing
) -> AsyncGenerator[bytes, None]:
    try:
        for chunk in writer.opening():
            yield framing.frame(chunk)
        while not answers.is_finished:
            piece = await answers.next(ping_s)
            if piece is None:
                yield framing.ping()
                continue
            for chunk in writer.chunks(piece):
                yield framing.frame(chunk)
        for chunk in writer.closing():
            yield framing.frame(chunk)
        if framing.done:
            yield framing.done
    except APIError as error:
        for chunk in framing.error(error):
            yield framing.frame(chunk)
