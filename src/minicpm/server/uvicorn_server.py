"""Runs the app on a socket until a signal. The first signal lets running answers finish, the second ends at once."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from minicpm.server.answers import Serving
from minicpm.server.app import create_app
from minicpm.server.protocol import protocol_class

_LOGGER = logging.getLogger("minicpm.server")
# Time to send the last events after the answers were ended.
_LAST_WORDS_S = 2.0


class Server(uvicorn.Server):
    """uvicorn's server for one Serving."""

    def __init__(self, serving: Serving, app: FastAPI | None = None, on_ready: Callable[[], None] = lambda: None):
        settings = serving.settings
        self._serving = serving
        self._on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                app or create_app(serving),
                http=protocol_class(settings),
                ws="none",
                loop="auto",  # uvloop, which Windows lacks
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=int(settings.keep_alive_s),
                timeout_graceful_shutdown=int(settings.grace_s + _LAST_WORDS_S) + 1,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        self._serving.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._serving.drain()
        running = len(self.server_state.tasks)
        _LOGGER.info(
            "shutting down; %d requests may finish first, within %g s", running, self._serving.settings.grace_s
        )
        impatience = asyncio.get_running_loop().call_later(self._serving.settings.grace_s, self._serving.abandon)
        try:
            await super().shutdown(sockets)
        finally:
            impatience.cancel()
