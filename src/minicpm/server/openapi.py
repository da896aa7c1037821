"""Adds to every route of /openapi.json its errors and the streamed form of its answers."""

from __future__ import annotations

from typing import Any

from minicpm.server.responses import Error

_MEANINGS = {
    400: "the request cannot be fulfilled as it is",
    401: "no valid API key",
    403: "the Host or Origin header is not allowed",
    404: "no such model",
    408: "the request did not arrive in time",
    413: "the request is too large",
    415: "the body is encoded",
    429: "too many requests wait; Retry-After says when to come back",
    500: "the server failed",
    503: "the server is busy or shuts down",
    504: "the answer took too long",
}

_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": meaning} for status, meaning in _MEANINGS.items()
}
STREAMS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {
        "description": 'the answer; with "stream": true as server-sent events',
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
}
