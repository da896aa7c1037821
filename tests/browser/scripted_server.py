"""A server of the chat page whose answers a test writes: it decides what is said, and when the next piece comes."""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import minicpm

PAGE = Path(minicpm.__file__).parent / "server" / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# As strict as the real server, and stricter where a browser can be.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PATIENCE_S = 30


@dataclass
class Answer:
    """What one request is answered with.

    `pieces` are sent at once, then, where `waits`, what the test passes to `say`, until `end`. `error` ends the stream
    as the server does, `breaks` as a lost connection.
    """

    pieces: list[str] = field(default_factory=list)
    status: int = 200
    error: str = ""
    waits: bool = False
    breaks: bool = False
    finish_reason: str = "stop"
    was_left: threading.Event = field(default_factory=threading.Event)
    _more: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def say(self, piece: str) -> None:
        self._more.put(piece)

    def end(self) -> None:
        self._more.put(None)

    def all_pieces(self) -> Any:
        yield from self.pieces
        while self.waits:
            try:
                piece = self._more.get(timeout=0.1)
            except queue.Empty:
                yield ""  # notices that the client has left
                continue
            if piece is None:
                return
            yield piece


class ScriptedServer:
    """Serves the page and `answers`, in their order; `requests` are the bodies that came, with their key.

    `model` is what it tells of the one it serves.
    """

    def __init__(self, port: int = 0) -> None:
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.requests: list[dict[str, Any]] = []
        self.key = ""
        self.model: dict[str, Any] = {"id": "scripted", "max_model_len": 256}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/health":
                    self._send_json(200, {})
                    return
                if path == "/v1/models":
                    if self._is_allowed():
                        self._send_json(200, {"object": "list", "data": [server.model]})
                    return
                name = "index.html" if path == "/" else path.removeprefix("/page/")
                file = PAGE / name
                if "/" in name or not file.is_file():
                    self._send_json(404, {"error": {"message": "there is no such file"}})
                    return
                self._send(200, MEDIA_TYPES[file.suffix], file.read_bytes())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self._is_allowed():
                    server.requests.append(body)
                    self._answer(server.answers.get(timeout=PATIENCE_S))

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _is_allowed(self) -> bool:
                if not server.key or self.headers.get("Authorization") == f"Bearer {server.key}":
                    return True
                self._send_json(401, {"error": {"message": "a valid API key is needed"}})
                return False

            def _answer(self, answer: Answer) -> None:
                if answer.status != 200:
                    self._send_json(answer.status, {"error": {"message": answer.error}})
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    self._stream(answer)
                except OSError:
                    answer.was_left.set()

            def _stream(self, answer: Answer) -> None:
                count = 0
                for piece in answer.all_pieces():
                    count += bool(piece)
                    self._event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                if answer.breaks:
                    return
                if answer.error:
                    self._event({"error": {"message": answer.error}})
                    return
                self._event({"choices": [{"delta": {}, "finish_reason": answer.finish_reason}]})
                self._event({"choices": [], "usage": {"completion_tokens": count}})
                self._write(b"data: [DONE]\n\n")

            def _event(self, event: dict[str, Any]) -> None:
                self._write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")

            def _write(self, data: bytes) -> None:
                self.wfile.write(data)
                self.wfile.flush()

            def _send_json(self, status: int, body: dict[str, Any]) -> None:
                self._send(status, "application/json", json.dumps(body).encode())

            def _send(self, status: int, media_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def will_say(self, *pieces: str, **how: Any) -> Answer:
        """Script the next answer."""
        answer = Answer(list(pieces), **how)
        self.answers.put(answer)
        return answer

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
