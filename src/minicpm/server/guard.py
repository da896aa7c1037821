"""Access control: checks the Host header, the Origin header and the API key.

A hostile page in a browser on this machine can send requests to 127.0.0.1, by its own name that resolves there (DNS
rebinding) or by a plain form. The Host and Origin headers reveal both.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from minicpm.server.addresses import is_own_page, named_host
from minicpm.server.errors import APIError, shutting_down
from minicpm.server.settings import Settings

# Paths of the chat page, which cannot send a key, and of health checks.
OPEN_PATHS = ("/", "/health")
OPEN_PREFIX = "/page/"


class Guard:
    """Answers 401, 403, or 503 during a shutdown, before a request reaches the app."""

    def __init__(self, app: ASGIApp, settings: Settings, is_draining: Callable[[], bool]):
        self._app = app
        self._hosts = settings.allowed_hosts
        self._origins = settings.cors_origins
        self._digests = [_digest(key) for key in settings.api_keys]
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = self._objection(scope["path"], Headers(scope=scope))
        if error is None:
            await self._app(scope, receive, send)
        else:
            await error.response()(scope, receive, send)

    def _objection(self, path: str, headers: Headers) -> APIError | None:
        if self._is_draining():
            return shutting_down()
        host = headers.get("host", "")
        if self._hosts is not None and named_host(host) not in self._hosts:
            return APIError(
                403,
                "the server does not have the name in the Host header; 'minicpm serve --allowed-host NAME' adds one",
                kind="permission_error",
                code="host_not_allowed",
            )
        if not self._is_own_or_allowed(headers.get("origin"), host):
            return APIError(
                403,
                "web pages of other origins have no access; 'minicpm serve --cors-origin ORIGIN' allows one",
                kind="permission_error",
                code="origin_not_allowed",
            )
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX) or self._has_key(headers):
            return None
        return APIError(
            401,
            "a valid API key is required: 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _is_own_or_allowed(self, origin: str | None, host: str) -> bool:
        if origin is None or "*" in self._origins or origin in self._origins:
            return True
        return is_own_page(origin, host)

    def _has_key(self, headers: Headers) -> bool:
        if not self._digests:
            return True
        # Compare all keys, each in constant time, so that the duration reveals nothing about any key.
        given = [_digest(key) for key in _given_keys(headers)]
        matches = [hmac.compare_digest(one, digest) for one in given for digest in self._digests]
        return any(matches)


def _given_keys(headers: Headers) -> list[str]:
    """The keys of a request: OpenAI's header, and those of Anthropic's and Azure's clients."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    keys = [key] if scheme.lower() == "bearer" else []
    return [key.strip() for key in (*keys, headers.get("x-api-key", ""), headers.get("api-key", "")) if key.strip()]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()
