"""Runs the demo on a socket until it is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from minicpm.demo.app import create_app
from minicpm.demo.source import Source

_GRACE_S = 3  # longest wait for running answers at the end


def serve(
    source: Source,
    listener: socket.socket,
    *,
    hosts: tuple[str, ...] | None,
    pages: tuple[str, ...],
    on_ready: Callable[[], None],
) -> None:
    """Serve until Ctrl-C or a signal; `hosts` and `pages` as in Gate."""
    app = create_app(source, hosts, pages)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_S, ws="none"
    )
    _Server(config, on_ready).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self._on_ready = on_ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; a second signal ends at once. uvicorn would raise the signal again, and our child would keep running."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()
