"""The settings of a server: access, and limits that protect clients from each other."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm.server.addresses import LOOPBACK_NAMES, checked_origin


@dataclass(frozen=True)
class Settings:
    """The settings of a server. Raises ValueError for an invalid value.

    Without `api_keys` every client has access. `allowed_hosts` are the names that a Host header may have (None: any).
    `cors_origins` are the origins, such as https://chat.example, whose pages have access, as browsers write them.
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
    first_token_timeout_s: float = 600.0  # for waiting in the queue and prefill
    total_timeout_s: float = 3600.0
    ping_s: float = 15.0  # interval of comments in a silent event stream, which proxies would close
    grace_s: float = 30.0  # longest wait of a shutdown for running answers

    def __post_init__(self) -> None:
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("an API key must be one or more printable ASCII characters without blanks")
        for origin in self.cors_origins:
            checked_origin(origin)
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
