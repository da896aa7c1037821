"""Listening sockets, and Host and Origin headers."""

from __future__ import annotations

import os
import socket

import pytest

from minicpm.errors import MiniCPMError
from minicpm.server.addresses import bind, checked_origin, free_port, host_in_url, is_own_page, named_host


def test_a_listener_takes_connections():
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, address = listener.accept()
        accepted.close()
        assert address == client.getsockname()


def test_an_address_that_cannot_be_had_is_said_with_its_reason():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MiniCPMError, match=f"port {port} of 127.0.0.1 is taken; .* give another --port"):
            bind("127.0.0.1", port)
    with pytest.raises(MiniCPMError, match="cannot listen on port 80 of not a host"):
        bind("not a host", 80)
    with pytest.raises(ValueError, match="from 0 to 65535, got 65536"):
        bind("127.0.0.1", 1 << 16)


def test_a_free_port_can_be_had():
    bind("127.0.0.1", free_port()).close()


@pytest.mark.parametrize(
    ("header", "host"),
    [("LocalHost:8000", "localhost"), ("127.0.0.1", "127.0.0.1"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")],
)
def test_the_host_of_a_header_has_no_port(header: str, host: str):
    assert named_host(header) == host


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        ("http://LocalHost:8000", True),
        ("https://localhost:8000", True),
        ("http://localhost:80000", False),
        ("http://localhost", False),
        ("http://localhost:8000.evil.example", False),
        ("http://evil.example/localhost:8000", False),
        ("null", False),
        ("http://[", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_a_page_is_the_servers_own_if_its_origin_is_the_whole_host(origin: str, is_own: bool):
    assert is_own_page(origin, "localhost:8000") is is_own


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://chat.example", "http://localhost:5173", "http://[::1]:3000", "http://127.0.0.1:8080",
     "app://obsidian.md", "chrome-extension://abcdefgh", "vscode-webview://0a1b", "tauri://localhost", "file://",
     "http://xn--bcher-kva.example"],
)  # fmt: skip
def test_an_origin_that_browsers_send_is_taken_as_it_is(origin: str):
    assert checked_origin(origin) == origin


@pytest.mark.parametrize(
    ("origin", "meant"),
    [
        ("https://chat.example/", "https://chat.example"),
        ("https://chat.example/app?x#y", "https://chat.example"),
        ("https://Chat.Example", "https://chat.example"),
        ("HTTPS://chat.example", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://chat.example:80", "http://chat.example"),
        ("http://localhost:", "http://localhost"),
        ("http://localhost:0080", "http://localhost"),
        ("http://user@chat.example", "http://chat.example"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("http://bücher.example", "http://xn--bcher-kva.example"),
        (" https://chat.example", "https://chat.example"),
        ("file:///home/me/page.html", "file://"),
        ("chat.example", None),
        ("localhost:5173", None),
        ("https://*.chat.example", None),
        ("https://a b.example", None),
        ("https://", None),
        ("http://chat.example:99999", None),
        ("http://127.1", None),
        ("http://[::1", None),
        ("://chat.example", None),
        ("", None),
        ("https://a.example,https://b.example", None),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_with_the_one_that_is_meant(origin: str, meant: str | None):
    with pytest.raises(ValueError, match="could never match") as caught:
        checked_origin(origin)
    assert str(caught.value).endswith(f"write {meant}" if meant else "* for all")
    if meant:
        assert checked_origin(meant) == meant


def test_only_addresses_with_colons_get_brackets_in_a_url():
    assert [host_in_url(host) for host in ("::1", "localhost")] == ["[::1]", "localhost"]


@pytest.mark.skipif(os.name != "posix", reason="on Windows the option means another thing")
def test_a_port_can_be_bound_again_at_once_after_its_server_hung_up():
    """The connection that the server closed first waits for a while in the system."""
    first = bind("127.0.0.1", 0)
    address = first.getsockname()
    with socket.create_connection(address) as client:
        accepted, _ = first.accept()
        accepted.close()
        first.close()
        assert client.recv(1) == b""
    bind(*address).close()
