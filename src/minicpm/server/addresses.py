"""Listening sockets, and the Host and Origin headers of requests, for the API's server and the demo's page.

It knows sockets and header texts, but no web framework.
"""

from __future__ import annotations

import errno
import os
import socket
from urllib.parse import urlsplit

from minicpm.errors import MiniCPMError

# Hosts that only this machine can reach.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_BACKLOG = 2048


def host_in_url(host: str) -> str:
    """'::1' -> '[::1]'; other hosts stay as they are."""
    return f"[{host}]" if ":" in host else host


# The same hosts as a Host header names them.
LOOPBACK_NAMES = tuple(host_in_url(host) for host in LOOPBACK_HOSTS)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free port. Raises MiniCPMError if the address cannot be used."""
    if not 0 <= port < 1 << 16:
        raise ValueError(f"a port is from 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                # A restart must not wait until connections of the killed server time out. On Windows the option would
                # let two servers share a port.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MiniCPMError(
                f"port {port} of {host} is taken; stop the program that listens there, or give another --port"
            ) from None
        raise MiniCPMError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from None
    return listener


def free_port() -> int:
    """A port of this machine that no program listens on now."""
    with bind("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


def named_host(header: str) -> str:
    """The host of a Host header: 'LocalHost:8000' -> 'localhost', '[::1]:8000' -> '[::1]'."""
    header = header.lower()
    if header.startswith("["):
        return header[: header.find("]") + 1]
    return header.partition(":")[0]


def is_own_page(origin: str, host: str) -> bool:
    """Whether the page of this Origin header came from the server of this Host header."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # a malformed Origin, such as http://[
        return False
