"""`minicpm demo`: an error at the start is one sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from minicpm.errors import install_command


@pytest.fixture(autouse=True)
def needs_gradio():
    pytest.importorskip("gradio")


def test_a_taken_port_is_said_before_a_model_is_loaded(minicpm):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = minicpm("demo", "--port", str(port), "-m", "there-is-no-such-model")
    assert (done.code, done.out) == (1, "")
    assert (
        done.err
        == f"minicpm: port {port} of 127.0.0.1 is taken; stop the program that listens there, or give another --port\n"
    )


def test_a_server_that_does_not_answer_is_said(minicpm):
    done = minicpm("demo", "--port", "0", "--url", "http://127.0.0.1:1/v1")
    assert done.code == 1
    assert "http://127.0.0.1:1/v1 does not answer; is the server running" in done.err


def test_a_key_without_a_server_is_said(minicpm):
    done = minicpm("demo", "--api-key", "secret")
    assert done.code == 2
    assert "--api-key is for the server at --url" in done.err


@pytest.mark.parametrize("option", [["--threads", "2"], ["--backend", "native"], ["--offline"]], ids=lambda o: o[0])
def test_an_option_that_would_change_nothing_is_refused(minicpm, option):
    done = minicpm("demo", "--url", "http://127.0.0.1:1/v1", *option)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"{option[0]} is for a model in this process, not for the server at --url" in done.err


@pytest.mark.parametrize(
    "settings",
    [
        {},
        # A model of this machine needs no network. Gradio's own clients would fail on any of these.
        {"ALL_PROXY": "socks5://127.0.0.1:9", "SSL_CERT_FILE": "/nowhere/own.pem", "NO_PROXY": "[::1]"},
    ],
    ids=["plain", "network"],
)
def test_it_says_its_address_answers_there_and_ends_on_a_signal(settings):
    command = [sys.executable, "-m", "minicpm", "demo", "--port", "0"]
    environment = {**os.environ, **settings}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            address = next(line.strip() for line in process.stderr if line.startswith("http://127.0.0.1:"))
            with urllib.request.urlopen(address) as response:
                assert "MiniCPM" in response.read().decode()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_without_gradio_the_extra_is_named(minicpm, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("minicpm.demo.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = minicpm("demo", "--port", "0")
    assert (done.code, done.err) == (
        1,
        f"minicpm: the web demo needs the 'demo' extra; install it with: {install_command('demo')}\n",
    )
