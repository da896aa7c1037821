"""Clients that are slow, broken, hostile or gone; the server goes on serving the others."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from server.running import ASK, CHAT, Running, error_of
from server.stub import StubEngine

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def status_and_error(answer: bytes) -> tuple[int, dict[str, str]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60  # other tests run beside this one
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def assert_serves(server: Running) -> None:
    with server.client() as client:
        assert client.post(CHAT, json=ASK).status_code == 200


@pytest.mark.parametrize(
    "begun", [b"", b"POST", HEAD, HEAD + b"X-Slow: "], ids=["nothing", "a word", "some headers", "half a header"]
)
def test_headers_that_never_end_are_not_waited_for(start: Callable[..., Running], begun: bytes):
    server = start(header_timeout_s=0.2)
    with connected(server) as connection:
        connection.sendall(begun)
        status, error = status_and_error(read_all(connection))
        assert (status, error["code"]) == (408, "request_timeout")
    assert_serves(server)


def test_a_second_request_may_not_be_slower_than_the_first(start: Callable[..., Running]):
    server = start(header_timeout_s=0.3)
    with connected(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /hea")
        assert status_and_error(read_all(connection))[0] == 408


def test_a_body_that_never_ends_is_not_waited_for(start: Callable[..., Running]):
    server = start(body_timeout_s=0.2)
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        status, error = status_and_error(read_all(connection))
        assert (status, error["code"]) == (408, "request_timeout")
    assert_serves(server)


def test_a_client_that_leaves_in_the_middle_of_its_body_disturbs_nobody(start: Callable[..., Running]):
    server = start()
    for _ in range(50):
        with connected(server) as connection:
            connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"messages"')
    assert_serves(server)


def test_headers_have_a_limit(start: Callable[..., Running]):
    server = start(max_header_bytes=4096)
    with connected(server) as connection:
        connection.sendall(HEAD + b"X-Long: " + b"x" * 10_000)
        assert status_and_error(read_all(connection))[0] == 431
    assert_serves(server)


def test_connections_have_a_limit(start: Callable[..., Running]):
    server = start(max_connections=3)
    held = [connected(server) for _ in range(3)]
    wait_until(lambda: len(server.server.server_state.connections) == 3)
    with connected(server) as connection:
        assert status_and_error(read_all(connection))[1]["code"] == "too_many_connections"
    for connection in held:
        connection.close()
    wait_until(lambda: not server.server.server_state.connections)
    assert_serves(server)


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 99])
def test_what_is_no_http_is_refused_in_the_same_shape(start: Callable[..., Running], rubbish: bytes):
    server = start()
    with connected(server) as connection:
        connection.sendall(rubbish)
        assert status_and_error(read_all(connection))[0] == 400
    assert_serves(server)


def test_a_large_body_is_refused_by_its_header(start: Callable[..., Running]):
    server = start()
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000000\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        status, error = status_and_error(read_all(connection))
        assert (status, error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_hundred_megabytes_are_refused_and_not_kept(start: Callable[..., Running], is_chunked: bool):
    server = start()
    block = b" " * (1 << 20)

    def body():
        for _ in range(100):
            yield block

    headers = {"content-type": "application/json"} | ({} if is_chunked else {"content-length": str(100 << 20)})
    before = _rss_bytes()
    with server.client() as client:
        response = client.post(CHAT, content=body(), headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    assert _rss_bytes() - before < 40 << 20
    assert_serves(server)


def _rss_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * 4096


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_ends_when_its_client_leaves(start: Callable[..., Running], stream: bool):
    engine = StubEngine(delay_s=0.01)
    server = start(engine)
    body = json.dumps({**ASK, "max_tokens": 1_000_000, "stream": stream, "n": 3}).encode()
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: engine.alive == 3)
    wait_until(lambda: engine.alive == 0)
    assert_serves(server)


def test_real_answers_end_when_their_clients_leave(nano: Running):
    for stream in (False, True):
        body = json.dumps({**ASK, "max_tokens": 1500, "stream": stream, "ignore_eos": True}).encode()
        with connected(nano) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: nano.serving.engine.statistics().running == 1)
        wait_until(lambda: nano.serving.engine.statistics().running == 0)
    assert_serves(nano)


def test_a_client_that_reads_nothing_holds_up_nobody(start: Callable[..., Running]):
    engine = StubEngine(["x" * 1000])
    server = start(engine)
    body = json.dumps({**ASK, "max_tokens": 20_000, "stream": True}).encode()
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: engine.alive == 1)
        assert_serves(server)


def test_silence_is_filled_with_comments(start: Callable[..., Running]):
    with start(StubEngine(delay_s=0.5), ping_s=0.1).client() as client:
        text = client.post(CHAT, json={**ASK, "max_tokens": 1, "stream": True}).text
        assert text.count(": still here") >= 2
        assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("secret")], ids=["out of memory", "a bug"])
def test_a_step_that_fails_ends_its_answers_and_no_others(
    nano: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, failure: Exception
):
    backend = nano.serving.engine.llm.backend
    forward = backend.forward
    calls = iter(range(1000))

    def failing(rows):
        if next(calls) == 2:
            raise failure
        return forward(rows)

    monkeypatch.setattr(backend, "forward", failing)
    response = client.post(CHAT, json={**ASK, "max_tokens": 20, "ignore_eos": True})
    assert response.status_code == 500 and "secret" not in response.text
    assert error_of(response)["type"] == "server_error"
    assert client.post(CHAT, json=ASK).status_code == 200
    wait_until(lambda: nano.serving.engine.statistics().running == 0)
    assert nano.serving.engine.statistics().cache_held_tokens == 0


def test_health_says_when_the_engine_has_ended(start: Callable[..., Running]):
    engine = StubEngine()
    with start(engine).client() as client:
        engine.is_alive = False
        response = client.get("/health")
        assert (response.status_code, error_of(response)["code"]) == (503, "engine_dead")


def test_clients_that_drop_leave_nothing_in_the_cache(nano: Running):
    body = json.dumps({**ASK, "max_tokens": 500, "stream": True, "ignore_eos": True}).encode()
    connections = [connected(nano) for _ in range(40)]
    for number, connection in enumerate(connections):
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        if number % 2:
            connection.recv(100)
    for connection in connections:
        connection.close()
    engine = nano.serving.engine
    wait_until(lambda: engine.statistics().running == engine.statistics().waiting == 0)
    assert engine.statistics().cache_held_tokens == 0
    assert_serves(nano)


@pytest.mark.slow
def test_ten_thousand_dropped_streams_take_no_memory(start: Callable[..., Running]):
    engine = StubEngine(delay_s=0.001)
    server = start(engine)
    body = json.dumps({**ASK, "max_tokens": 1_000_000, "stream": True}).encode()

    def drop(count: int) -> None:
        for _ in range(count):
            with connected(server) as connection:
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                connection.recv(100)
        wait_until(lambda: engine.alive == 0)
        engine.tickets.clear()

    drop(1000)
    before = _rss_bytes()
    for _ in range(10):
        drop(1000)
    assert _rss_bytes() - before < 20 << 20


@pytest.mark.parametrize(
    "path, body",
    [("/v1/embeddings", {"input": "a"}), ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1})],
    ids=["embeddings", "echo"],
)
def test_work_ends_when_its_client_hangs_up(start: Callable[..., Running], path: str, body: dict[str, Any]):
    engine = StubEngine()
    asked, ended = threading.Event(), threading.Event()
    endless: Future[Any] = Future()
    engine.embed = engine.prompt_logprobs = lambda *arguments: (asked.set(), endless)[1]
    endless.add_done_callback(lambda future: ended.set())
    data = json.dumps(body).encode()
    head = HEAD.replace(CHAT.encode(), path.encode()) + f"Content-Length: {len(data)}\r\n\r\n".encode()
    with connected(start(engine)) as connection:
        connection.sendall(head + data)
        assert asked.wait(60)
    assert ended.wait(60) and endless.cancelled()
