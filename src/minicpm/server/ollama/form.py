"""Ollama's shape of errors, {"error": "message"}, for every answer under /api/, whichever layer or route it is from."""

from __future__ import annotations

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/api/"

# What browsers send with requests of pages: a body that one of them sends must be declared as JSON.
_OF_BROWSERS = ("origin", "sec-fetch-site")


class OllamaForm:
    """A pure ASGI layer around all others. A command line client need not declare its JSON: `curl -d` does not."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope)
        if not any(name in given for name in _OF_BROWSERS):
            others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        held: Message | None = None  # the start of an error, until its body is translated

        async def translated(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                if message["status"] >= 400 and kind == "application/json":
                    held = message
                    return
            elif held is not None:
                body = _translated(message.get("body", b""))
                MutableHeaders(scope=held)["content-length"] = str(len(body))
                await send(held)
                held, message = None, {**message, "body": body}
            await send(message)

        await self._app(scope, receive, translated)


def _translated(body: bytes) -> bytes:
    """Our errors are always sent in one part."""
    return json.dumps({"error": json.loads(body)["error"]["message"]}).encode() if body else body
