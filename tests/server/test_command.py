"""`minicpm serve` as a process of its own: its start, its signals, its log."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from minicpm.errors import install_command
from server.running import CHAT

LONG = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1500, "ignore_eos": True}


@dataclass
class Command:
    """A running `minicpm serve` and its stderr."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def read_start(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"is served at (http://\S+)/v1", line):
                self.url = found[1]
            if "  at once" in line or (self.url and "--quiet" in self.process.args):
                break
        # A full pipe would stop the server.
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def wait(self) -> str:
        """How it ended, as an exit code, and all it said."""
        self.code = self.process.wait(30)
        self._reader.join(30)
        return "".join(self.lines)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """`serve("--api-key", "k")` with a free port, unless one is given."""
    started: list[Command] = []

    def begin(*arguments: str, **environment: str) -> Command:
        port = [] if "--port" in arguments else ["--port", "0"]
        process = subprocess.Popen(
            [sys.executable, "-m", "minicpm", "serve", *port, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MINICPM_HOME": str(tmp_path / "home"), **environment},
        )
        command = Command(process)
        started.append(command)
        command.read_start()
        return command

    yield begin
    for command in started:
        command.process.kill()
        command.process.wait()
        command.process.stderr.close()


def test_the_start_says_where_what_and_how_much(serve: Callable[..., Command]):
    command = serve("--max-batch", "3", "--queue-limit", "7", "--kv-cache-size", "5MB")
    said = "".join(command.lines)
    assert command.url.startswith("http://127.0.0.1:")
    assert "minicpm-nano" in said and "context 2,048 tokens" in said
    assert "3 answers, 7 more may wait" in said and re.search(r"\d\.\d MB at most", said)
    assert httpx.get(f"{command.url}/health").json() == {"status": "ok"}


def test_each_request_is_one_line_of_the_log_and_no_prompt_is_in_it(serve: Callable[..., Command]):
    command = serve("--api-key", "topsecret")
    headers = {"authorization": "Bearer topsecret", "x-request-id": "mine-1"}
    body = {"messages": [{"role": "user", "content": "My password is swordfish."}], "max_tokens": 3}
    answer = httpx.post(command.url + CHAT, json=body, headers=headers)
    httpx.get(command.url + "/v1/models?key=topsecret%1b[2J", headers={"x-request-id": "mine-2"})
    command.process.send_signal(signal.SIGTERM)
    said = command.wait()
    (line,) = [line for line in said.splitlines() if "mine-1" in line]
    assert re.search(
        r"127\.0\.0\.1 POST /v1/chat/completions 200 \d+\.\d+s mine-1 prompt=\d+ cached=\d+ completion=3", line
    )
    assert "GET /v1/models 401" in said
    for secret in ("swordfish", "topsecret", "\x1b", answer.json()["choices"][0]["message"]["content"]):
        assert secret not in said


@pytest.mark.skipif(not hasattr(os, "set_blocking"), reason="pipes of POSIX")
@pytest.mark.parametrize("is_closed", [False, True], ids=["never read", "closed"])
def test_a_pipe_that_nobody_reads_stops_nothing(tmp_path: Path, is_closed: bool):
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "minicpm", "serve", "--port", "0", "--log-level", "info"],
        stderr=writing,
        env={**os.environ, "MINICPM_HOME": str(tmp_path / "home")},
    )
    os.close(writing)
    try:
        said = b""
        while b"  at once" not in said:
            said += os.read(reading, 4096)
        url = re.search(rb"http://\S+?(?=/v1)", said)[0].decode()
        if is_closed:
            os.close(reading)
        with httpx.Client(base_url=url, timeout=10) as client:
            # Lines of more than 100 bytes: in all several times what a pipe holds.
            path = "/" + "x" * 90
            assert all(client.get(path).status_code == 404 for _ in range(20 if is_closed else 800))
            assert client.get("/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if not is_closed:
            os.close(reading)


def test_quiet_says_the_address_and_of_requests_nothing(serve: Callable[..., Command]):
    command = serve("--quiet")
    assert httpx.get(f"{command.url}/v1/nothing").status_code == 404
    command.process.send_signal(signal.SIGTERM)
    assert command.wait().splitlines() == [f"minicpm-nano is served at {command.url}/v1"] and command.code == 0


def test_a_signal_lets_answers_finish(serve: Callable[..., Command]):
    command = serve()
    with httpx.stream(
        "POST", command.url + CHAT, json={**LONG, "max_tokens": 120, "stream": True}, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGTERM)
        assert list(lines)[-2] == "data: [DONE]"
    assert "shutting down" in command.wait() and command.code == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{command.url}/health")


def test_a_signal_waits_no_longer_than_the_grace(serve: Callable[..., Command]):
    command = serve("--grace", "0.2", "--backend", "numpy")
    with httpx.stream("POST", command.url + CHAT, json={**LONG, "stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    command.wait()
    assert command.code == 0


def test_a_second_signal_ends_at_once(serve: Callable[..., Command]):
    command = serve("--backend", "numpy")
    with httpx.stream("POST", command.url + CHAT, json={**LONG, "stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGINT)
        threading.Event().wait(0.3)
        command.process.send_signal(signal.SIGINT)
        command.wait()
    assert command.code == 128 + signal.SIGINT


def test_after_a_kill_the_same_port_serves_again(serve: Callable[..., Command]):
    first = serve()
    with httpx.stream("POST", first.url + CHAT, json={**LONG, "stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        first.process.kill()
        first.wait()
    second = serve("--port", first.url.rpartition(":")[2])
    assert second.url == first.url
    assert httpx.post(second.url + CHAT, json={**LONG, "max_tokens": 2}).status_code == 200


def test_a_taken_port_is_said_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "minicpm", "serve", "--port", port, "-m", "no/such-model"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr and done.stderr.count("\n") == 1


def test_keys_come_from_a_file_and_the_environment(serve: Callable[..., Command], tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("of-the-file\n\nanother\n")
    command = serve("--api-key-file", str(keys), MINICPM_API_KEY="of-the-environment")
    for key, status in (("of-the-file", 200), ("another", 200), ("of-the-environment", 200), ("none", 401)):
        answer = httpx.get(f"{command.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status


def test_everybody_being_let_in_is_a_warning(serve: Callable[..., Command]):
    assert "warning" not in "".join(serve().lines)
    open_to_all = serve("--host", "0.0.0.0")
    open_to_all.process.send_signal(signal.SIGTERM)
    assert "everyone who can reach 0.0.0.0 can use the model" in open_to_all.wait()


def test_names_are_those_given(serve: Callable[..., Command]):
    command = serve("--served-model-name", "gpt-4", "--served-model-name", "mini")
    models = httpx.get(f"{command.url}/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["gpt-4", "mini"]


def test_a_cache_too_small_for_an_answer_refuses_it_and_serves_others(serve: Callable[..., Command]):
    command = serve("--kv-cache-size", "300kB")
    refused = httpx.post(command.url + CHAT, json=LONG)
    assert refused.status_code == 400 and "max_tokens" in refused.json()["error"]["message"]
    assert httpx.post(command.url + CHAT, json={**LONG, "max_tokens": 8}).status_code == 200


def test_a_missing_library_is_said_with_what_installs_it():
    program = "import sys; sys.modules['fastapi'] = None; from minicpm.cli.main import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and f"install it with: {install_command('serve')}" in done.stderr
    assert "'minicpm[" not in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [(["--kv-cache-size", "much"], "not a size"), (["--port", "70000"], "port"), (["--api-key", "a b"], "API key"),
     (["--cors-origin", "chat.example"], "https://chat.example"), (["--log-level", "loud"], "debug"),
     (["--cors-origin", "https://chat.example/"], "write https://chat.example"),
     (["--log-level", "info", "--quiet"], "not allowed with"), (["--host", "256.1.1.1"], "256.1.1.1")],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(arguments: list[str], said: str):
    done = subprocess.run([sys.executable, "-m", "minicpm", "serve", *arguments], capture_output=True, text=True)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr
