"""A server in this process on a real socket, and what tests ask it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from minicpm.engine.service import Engine
from minicpm.server.addresses import bind
from minicpm.server.answers import Serving
from minicpm.server.model import ServedModel
from minicpm.server.settings import Settings
from minicpm.server.uvicorn_server import Server

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    port: int
    serving: Serving
    server: Server

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]


@contextmanager
def running(engine: Engine, model: ServedModel, settings: Settings, **options: object) -> Iterator[Running]:
    serving = Serving(engine, model, settings)
    listener = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(serving, on_ready=ready.set, **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    assert ready.wait(30)
    port = listener.getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", port, serving, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, after checking that it has OpenAI's four fields and no more."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, response.text
    assert body["error"]["message"] and "Traceback" not in response.text and "/src/" not in response.text
    return body["error"]


def logged_line(caplog: pytest.LogCaptureFixture, request_id: str) -> str:
    """The line that the server logs of a request. It comes when the client has its answer already."""
    until = time.monotonic() + 30
    while not (found := [r.getMessage() for r in caplog.records if f" {request_id}" in r.getMessage()]):
        assert time.monotonic() < until, f"no line of {request_id}"
        time.sleep(0.01)
    (line,) = found
    return line
