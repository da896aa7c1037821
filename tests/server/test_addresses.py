"""Listening sockets, and Host and Origin headers."""

from __future__ import annotations

import os
import socket

import pytest

from minicpm.errors import MiniCPMError
from minicpm.server.addresses import bind, free_port, host_in_url, is_own_page, named_host


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
    ],
)
def test_a_page_is_the_servers_own_if_its_origin_is_the_whole_host(origin: str, is_own: bool):
    assert is_own_page(origin, "localhost:8000") is is_own


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
