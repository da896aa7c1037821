"""The options of a verb that listens for requests."""

from __future__ import annotations

import argparse

from minicpm.cli.arguments import port
from minicpm.server.addresses import LOOPBACK_HOSTS, LOOPBACK_NAMES, host_in_url, named_host

HOST = "127.0.0.1"


def add_address_arguments(parser: argparse.ArgumentParser, *, default_port: int) -> None:
    """--host and --port."""
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default: {HOST}, this machine only)")
    parser.add_argument(
        "--port",
        type=port,
        default=default_port,
        metavar="N",
        help=f"port to listen on; 0 takes a free one (default: {default_port})",
    )


def add_allowed_host_argument(parser: argparse._ActionsContainer, what: str) -> None:
    """--allowed-host."""
    parser.add_argument(
        "--allowed-host",
        action="append",
        type=_host_name,
        metavar="NAME",
        help=f"{what} (repeatable; * for any; default: this machine's names if --host is local, else any)",
    )


def _host_name(text: str) -> str:
    name = text.strip().lower()
    if "://" in name or "/" in name or not name or any(character.isspace() for character in name):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a host name; a host name is written like chat.example")
    if name.count(":") > 1 and not name.startswith("["):
        name = host_in_url(name)
    if named_host(name) != name:
        raise argparse.ArgumentTypeError(f"{text!r:.80} has a port; a host name is written like chat.example")
    return name


def allowed_hosts(args: argparse.Namespace) -> tuple[str, ...] | None:
    """The names that a Host header may have; None for any."""
    given = args.allowed_host or []
    if "*" in given or (is_open(args) and not given):
        return None
    return (*LOOPBACK_NAMES, *given)


def is_open(args: argparse.Namespace) -> bool:
    """Whether other machines can reach --host."""
    return args.host not in LOOPBACK_HOSTS
