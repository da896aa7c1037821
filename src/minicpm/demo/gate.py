"""Limits access to Gradio's server to the page and its queue: nothing that reads files or contacts other hosts."""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minicpm.server.addresses import LOOPBACK_NAMES, is_own_page, named_host

# Closed: uploads, /file=, /proxy=, calls by name and their descriptions, monitoring.
_OPEN_PATHS = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(/.*)?)|/(assets|static|svelte)/.*"
    r"|/gradio_api/(queue/(join|data)|heartbeat/[^/]+|cancel|reset|startup-events|info)"
)
# Gradio's page has inline scripts and styles. An answer must not make the browser contact other hosts.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)


class Gate:
    """Answers 403 or 404 before a request reaches Gradio.

    `hosts` are the allowed Host names (None: any). `pages` are the names of proxies in front of the demo: pages that
    have such an address are the demo's own, whatever Host the proxy sends.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None = LOOPBACK_NAMES, pages: tuple[str, ...] = ()):
        self._app = app
        self._hosts = hosts
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_policy)

    def _refusal(self, path: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self._hosts is not None and named_host(host) not in self._hosts:
            return PlainTextResponse(
                "the demo does not have the name in the Host header; 'minicpm demo --allowed-host NAME' adds one\n", 403
            )
        origin = headers.get("origin")
        if origin is not None and not is_own_page(origin, host) and _host_of(origin) not in self._pages:
            return PlainTextResponse(
                "web pages of other origins have no access; 'minicpm demo --allowed-host NAME' adds a proxy\n",
                403,
            )
        if not _OPEN_PATHS.fullmatch(path):
            return PlainTextResponse("there is nothing here\n", 404)
        return None


def _host_of(origin: str) -> str | None:
    """'https://Chat.example:8443' -> 'chat.example', as Host headers are compared; None for what is no address."""
    scheme, _, netloc = origin.partition("://")
    return named_host(netloc) if scheme.lower() in ("http", "https") and netloc else None
