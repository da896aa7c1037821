"""Reading a request's body: not more than a limit, not longer than a while.

A pure ASGI layer: what is too large is refused by its header alone, and otherwise as soon as it is.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minicpm.errors import one_line
from minicpm.server.errors import APIError
from minicpm.server.settings import Settings

# A client that is still sending cannot read an answer from a connection that is reset under it. So what comes is thrown
# away for so long, or so much, before the connection closes.
_LINGER_S = 2.0
_LINGER_BYTES = 128 << 20


class BodyLimit:
    """Hands the app the whole body in one message, or answers 408, 413 or 415 in its place."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                first = await self._read(scope, receive)
        except TimeoutError:
            error = APIError(
                408, f"the body did not arrive within {self._settings.body_timeout_s:g} s", code="request_timeout"
            )
            await _refuse(error, send)
        except APIError as error:
            await _refuse(error, send, receive)
        else:
            await self._app(scope, _replaying(first, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> Message:
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if encoding not in ("", "identity"):
            raise APIError(
                415,
                f"the body is encoded as {one_line(encoding, 40)!r}, but this server reads plain JSON; send it without "
                "Content-Encoding",
                code="unsupported_encoding",
                headers={"Accept-Encoding": "identity"},
            )
        announced = headers.get(b"content-length", b"0")
        # The parser below lets only digits pass.
        if int(announced) > self._settings.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            if len(body) > self._settings.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return {"type": "http.request", "body": bytes(body), "more_body": False}

    def _too_large(self) -> APIError:
        limit = self._settings.max_body_bytes
        return APIError(
            413, f"the body is larger than the {limit:,} bytes a request may have", code="request_too_large"
        )


def _replaying(first: Message, receive: Receive) -> Receive:
    messages = [first]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(error: APIError, send: Send, sending: Receive | None = None) -> None:
    """Answer and hang up; a client that is still `sending` is heard out for a while."""
    body = error.json()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *((name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if sending is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _discard(sending)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left = _LINGER_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return
