"""What a server is told at its start, and the limits that keep one client from spoiling it for the others."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm.server.addresses import LOOPBACK_NAMES


@dataclass(frozen=True)
class Settings:
    """Raises ValueError for a value that makes no sense.

    Without `api_keys` everybody may ask. `allowed_hosts` are the names a request may address the server by, None: any.
    `cors_origins` are the web pages, such as https://chat.example, whose scripts may ask.
    """

    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = LOOPBACK_NAMES
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    max_header_bytes: int = 32 << 10
    max_connections: int = 4096
    header_timeout_s: float = 10.0  # from the first byte of a request, or the connection, to the end of its headers
    body_timeout_s: float = 30.0
    keep_alive_s: float = 30.0
    first_token_timeout_s: float = 600.0  # waiting for others and reading the prompt
    total_timeout_s: float = 3600.0
    ping_s: float = 15.0  # a comment in a silent event stream: proxies take silence for death
    grace_s: float = 30.0  # what a shutdown waits for running answers

    def __post_init__(self) -> None:
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("an API key must be one or more printable ASCII characters without blanks")
        for origin in self.cors_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ValueError(f"a CORS origin is written like https://chat.example, or * for all, got {origin!r}")
        for name in (
            "max_body_bytes",
            "header_timeout_s",
            "body_timeout_s",
            "first_token_timeout_s",
            "total_timeout_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)!r}")
        if not self.grace_s >= 0:
            raise ValueError(f"grace_s must be 0 or more, got {self.grace_s!r}")
