"""A reverse proxy on loopback, as nginx stands in front of the demo: with the browser's Host or with the upstream's."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_OWN = ("connection", "host", "transfer-encoding", "keep-alive", "content-length")


class Forwarding:
    """Forwards everything to `upstream`. `forwards_host`: nginx's `proxy_set_header Host $http_host`."""

    def __init__(self, upstream: str, forwards_host: bool):
        netloc = urlsplit(upstream).netloc

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._forward()

            def do_POST(self) -> None:
                self._forward()

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
                headers["Host"] = self.headers["Host"] if forwards_host else netloc
                connection = http.client.HTTPConnection(netloc, timeout=120)
                try:
                    connection.request(self.command, self.path, body or None, headers)
                    answer = connection.getresponse()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in _OWN:
                            self.send_header(name, value)
                    self.end_headers()
                    while block := answer.read1(1 << 16):
                        self.wfile.write(block)
                        self.wfile.flush()
                except OSError:  # either side has left
                    self.close_connection = True
                finally:
                    connection.close()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Forwarding:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
