"""A number and one line of log for every request, and the last net under the app.

The line goes to stderr: time, client, method, path, status, seconds, number, and what the route adds (tokens). Prompts,
answers, keys and query strings are never in it.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minicpm.errors import one_line
from minicpm.server.errors import CLIENT_GONE, internal_error

_LOGGER = logging.getLogger("minicpm.server")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
REQUEST_ID = "x-request-id"


class AccessLog:
    """Logs each request, and answers an unexpected exception with a 500 that reveals nothing of it."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]):
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        notes: dict[str, str] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "notes": notes}
        start_s = time.perf_counter()
        status: int | None = None

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, numbered)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception:
            _LOGGER.exception("request %s failed", request_id)
            if status is not None:
                raise
            await internal_error().response()(scope, receive, numbered)
        finally:
            client = (scope.get("client") or ("-",))[0]
            method, path = one_line(scope["method"], 16), one_line(scope["path"], 100)
            seconds = time.perf_counter() - start_s
            shown = CLIENT_GONE if status is None else status
            self._count(scope["path"], shown)
            extra = "".join(f" {name}={value}" for name, value in notes.items())
            _LOGGER.info("%s %s %s %d %.3fs %s%s", client, method, path, shown, seconds, request_id, extra)
