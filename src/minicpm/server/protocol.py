"""HTTP on a socket: uvicorn's protocol, which also notices clients that are slow, endless or too many."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from minicpm.server.errors import APIError
from minicpm.server.settings import Settings

_PHRASES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


def protocol_class(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol class with these limits: uvicorn takes a class."""

    class LimitedProtocol(HttpToolsProtocol):
        """Headers must be whole `header_timeout_s` after the connection or their first byte, and be small."""

        _header_timer: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _is_in_headers = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_headers()
            if len(self.connections) > settings.max_connections:
                self._refuse(
                    APIError(503, "there are too many connections", kind="server_error", code="too_many_connections")
                )

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
                self._await_headers()
            self._header_bytes += len(data)
            super().data_received(data)
            is_too_long = self._header_bytes > settings.max_header_bytes
            if is_too_long and self._is_in_headers and not self.transport.is_closing():
                self._refuse(APIError(431, f"the headers are longer than {settings.max_header_bytes:,} bytes"))

        def on_message_begin(self) -> None:
            self._is_in_headers = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_in_headers = False
            self._stop_timer()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._header_bytes = 0
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(APIError(400, "this is no valid HTTP request"))

        def _await_headers(self) -> None:
            self._header_timer = self.loop.call_later(settings.header_timeout_s, self._headers_are_late)

        def _headers_are_late(self) -> None:
            self._header_timer = None
            if not self.transport.is_closing():
                self._refuse(
                    APIError(
                        408,
                        f"the headers did not arrive within {settings.header_timeout_s:g} s",
                        code="request_timeout",
                    )
                )

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _refuse(self, error: APIError) -> None:
            """Answer without the app, and hang up."""
            self._stop_timer()
            body = error.json()
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head % (error.status, _PHRASES[error.status], len(body)) + body)
            self.transport.close()

    return LimitedProtocol
