"""`minicpm rm`: delete a downloaded model."""

from __future__ import annotations

import argparse
import json
import sys

from minicpm import hub
from minicpm.cli.progress import format_bytes
from minicpm.errors import HubError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Delete a downloaded model from its hub's cache. Other programs that use that cache lose it, too. Takes names "
        "as 'minicpm list' prints them, not folders."
    )
    parser.add_argument("name", metavar="NAME", help="an alias, org/name, or org/name@revision for one revision only")
    parser.add_argument("--source", choices=list(hub.SOURCES), help="the hub whose cache is meant")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    hub.require_removable(args.name)
    if not args.yes and not _confirmed(args.name):
        return 1
    freed_bytes = hub.remove(args.name, source=hub.SOURCES.get(args.source))
    if args.json:
        print(json.dumps({"name": args.name, "freed_bytes": freed_bytes}))
    else:
        print(f"removed {args.name}, {format_bytes(freed_bytes)} freed", file=sys.stderr)
    return 0


def _confirmed(name: str) -> bool:
    """Ask on the terminal. Raises HubError without one."""
    if not sys.stdin.isatty():
        raise HubError(f"there is no terminal to confirm the removal of {name}; pass --yes")
    print(f"Remove {name} from this machine? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
