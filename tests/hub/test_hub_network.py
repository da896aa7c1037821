"""Proxies and certificates of the environment: what cannot be used or does not answer is named, not the hub."""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from fake_hub import FakeHub
from minicpm import hub
from minicpm.errors import HubError
from minicpm.hub import network

NAME = "openbmb/MiniCPM-2B-dpo-bf16"
SOURCES = ["huggingface", "modelscope"]
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 1000}


@pytest.fixture(autouse=True)
def settings(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxies and certificates but the test's own, and a client that has not read others."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL_CERT_"):
            monkeypatch.delenv(name)
    server.add(NAME, FILES)
    server.add("OpenBMB/MiniCPM-2B-dpo-bf16", FILES)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


class Proxy:
    """A proxy that answers everything with one status."""

    def __init__(self, answer: bytes):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:secret@127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(self._answer)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize(
    "address, why",
    [
        ("socks://127.0.0.1:9", "is of an unknown kind, socks"),
        ("ftp://proxy.example", "is of an unknown kind, ftp"),
        ("http://", "is not an address"),
        ("http://proxy.example:port", "is not an address"),
        ("http://proxy.example:99999", "is not an address"),
        ("http://[::1", "is not an address"),
        ("http://proxy example:3128", "is not an address"),
    ],
)
def test_a_proxy_that_no_client_can_use_is_named(monkeypatch, said, source, variable, address, why):
    monkeypatch.setenv(variable, address)
    with pytest.raises(HubError) as raised:
        hub.pull(NAME, source=source, tell=said.append)
    sentence = str(raised.value)
    assert why in sentence and f"of {variable}" in sentence
    assert "ENDPOINT" not in sentence


class Socks(Proxy):
    """A SOCKS5 proxy, which asks for `password` unless that is empty; `hosts` are those that it connected to."""

    def __init__(self, password: str = ""):
        super().__init__(b"")
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.hosts: list[str] = []
        self._password = password

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer_one, args=(connection,), daemon=True).start()

    def _answer_one(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as given:
            methods = given.read(given.read(2)[1])
            method = 2 if self._password else 0
            connection.sendall(bytes([5, method if method in methods else 0xFF]))
            if method not in methods:
                return
            if self._password:
                given.read(given.read(2)[1])
                is_right = given.read(given.read(1)[0]).decode() == self._password
                connection.sendall(bytes([1, 0 if is_right else 1]))
                if not is_right:
                    return
            kind = given.read(4)[3]
            length = {1: 4, 4: 16}.get(kind) or given.read(1)[0]
            host = given.read(length)
            name = socket.inet_ntoa(host) if kind == 1 else host.decode()
            port = int.from_bytes(given.read(2))
            self.hosts.append(name)
            try:
                other = socket.create_connection((name, port), timeout=20)
            except OSError:
                connection.sendall(bytes([5, 5, 0, 1, 0, 0, 0, 0, 0, 0]))  # refused
                return
            with other:
                connection.sendall(bytes([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
                while ready := select.select([connection, other], [], [], 20)[0]:
                    for end in ready:
                        data = end.recv(1 << 16)
                        if not data:
                            return
                        (other if end is connection else connection).sendall(data)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("scheme", "password"), [("socks5", ""), ("socks5h", ""), ("SOCKS5", ""), ("socks5", "secret")]
)
def test_a_download_goes_through_a_socks_proxy(monkeypatch, said, source, scheme, password):
    with Socks(password) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{'user:secret@' if password else ''}{proxy.address}")
        assert (hub.pull(NAME, source=source, tell=said.append) / "config.json").exists()
    assert proxy.hosts and set(proxy.hosts) == {"127.0.0.1"}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("user", ["", "user:wrong@"])
def test_a_socks_proxy_that_wants_a_password_says_so(monkeypatch, said, source, user):
    with Socks("secret") as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5://{user}{proxy.address}")
        sentence = r"of ALL_PROXY wants a user and a password \(.*\); write them into ALL_PROXY as socks5://USER"
        with pytest.raises(HubError, match=sentence) as raised:
            hub.pull(NAME, source=source, tell=said.append)
    assert "wrong" not in str(raised.value) + "".join(said)


@pytest.mark.parametrize("source", SOURCES)
def test_an_http_proxy_called_a_socks_proxy_is_named(monkeypatch, said, source):
    with Proxy(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url.replace("http://user:secret@", "socks5://"))
        with pytest.raises(HubError, match=r"of ALL_PROXY does not answer as SOCKS does"):
            hub.pull(NAME, source=source, tell=said.append)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "SOCKS5"])
def test_socks_without_its_package_is_one_sentence(monkeypatch, said, scheme):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("all_proxy", f"{scheme}://127.0.0.1:1080")
    with pytest.raises(HubError, match=r"of all_proxy speaks SOCKS, .* run 'pip install socksio'"):
        hub.pull(NAME, tell=said.append)


@pytest.mark.parametrize("source", SOURCES)
def test_a_dead_proxy_on_this_machine_is_named_at_once_without_its_password(monkeypatch, said, source):
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    sentence = r"the proxy http://127.0.0.1:9 of HTTP_PROXY does not answer \(.*refused"
    with pytest.raises(HubError, match=sentence) as raised:
        hub.pull(NAME, source=source, tell=said.append)
    assert "secret" not in str(raised.value) + "".join(said)
    assert not any("trying again" in text for text in said)


def test_a_dead_proxy_elsewhere_is_tried_again_and_named(monkeypatch, said):
    monkeypatch.setattr(network, "_LOOPBACK_HOSTS", ())
    monkeypatch.setenv("HTTP_PROXY", "127.0.0.1:9")
    with pytest.raises(HubError, match=r"through the proxy 127.0.0.1:9 of HTTP_PROXY; gave up after 6 tries"):
        hub.pull(NAME, tell=said.append)


@pytest.mark.parametrize("source", SOURCES)
def test_a_proxy_that_wants_a_password_says_so(monkeypatch, said, source):
    with Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(HubError, match=r"of HTTP_PROXY wants a user and a password \(status 407\)"):
            hub.pull(NAME, source=source, tell=said.append)


@pytest.mark.parametrize("source", SOURCES)
def test_a_proxy_that_answers_with_a_page_of_its_own_is_suspected(monkeypatch, said, source):
    page = b"<html>log in first</html>"
    with Proxy(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(HubError, match=r"and the proxy http://127.0.0.1:\d+ of HTTP_PROXY"):
            hub.pull(NAME, source=source, tell=said.append)


def test_a_host_of_no_proxy_needs_no_proxy(monkeypatch, said):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert (hub.pull(NAME, tell=said.append) / "config.json").exists()


def test_everything_in_no_proxy_leaves_a_wrong_proxy_unread(monkeypatch, said):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    assert (hub.pull(NAME, tell=said.append) / "config.json").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_certificates_that_are_not_there_are_named(monkeypatch, said, tmp_path: Path, source):
    missing, text = tmp_path / "missing.pem", tmp_path / "notes.txt"
    text.write_text("milk, eggs")
    for name, value, why in [
        ("SSL_CERT_FILE", missing, "cannot be read (No such file or directory)"),
        ("SSL_CERT_FILE", tmp_path, "cannot be read (Is a directory)"),
        ("SSL_CERT_FILE", text, "holds no certificate in PEM format"),
        ("SSL_CERT_DIR", missing, "is not a folder"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv(name, str(value))
            with pytest.raises(HubError) as raised:
                hub.pull(NAME, source=source, tell=said.append)
        assert str(raised.value).startswith(f"{name} is {value}, which {why}")


def test_an_untrusted_certificate_is_not_blamed_on_the_hub(monkeypatch):
    error = ConnectionError("no connection")
    error.__cause__ = ssl.SSLCertVerificationError(1, "self-signed certificate in certificate chain")
    sentence = network.distrust(error, "https://huggingface.co/api")
    assert sentence is not None and "the certificate of huggingface.co is not trusted" in sentence
    assert "set SSL_CERT_FILE" in sentence
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/own.pem")
    assert "by SSL_CERT_FILE (/etc/own.pem)" in str(network.distrust(error, "https://huggingface.co/api"))
    assert network.distrust(ConnectionError("no connection"), "https://huggingface.co/api") is None


def test_settings_are_hidden_for_a_while_only(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with network.hidden_settings():
        assert network.proxy_for("https://huggingface.co") is None
        network.check_settings()
    assert os.environ["SSL_CERT_FILE"] == "/nowhere"
    assert str(network.proxy_for("https://huggingface.co")) == "socks://127.0.0.1:9 of ALL_PROXY"
