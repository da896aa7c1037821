"""The options of a verb that listens for requests."""

from __future__ import annotations

import argparse

from minicpm.cli.arguments import port
from minicpm.server.addresses import LOOPBACK_HOSTS

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


def is_open(args: argparse.Namespace) -> bool:
    """Whether other machines can reach --host."""
    return args.host not in LOOPBACK_HOSTS
