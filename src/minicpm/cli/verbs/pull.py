"""`minicpm pull`: downloads a model, or continues an interrupted download. Prints the model's folder."""

from __future__ import annotations

import argparse
import json

from minicpm import hub
from minicpm.cli.progress import TerminalProgress
from minicpm.cli.verbs.list import record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Download a model, or continue an interrupted download. Files are stored in the hub's own cache, where other "
        "programs find them; every byte is verified. Prints the model's folder."
    )
    parser.add_argument("name", metavar="NAME", help="an alias (minicpm-2b-dpo), org/name[@revision], or a hub's page")
    parser.add_argument("--source", choices=list(hub.SOURCES), help="the hub to download from")
    parser.add_argument("--revision", metavar="REV", help="a branch, tag or commit (default: the hub's main branch)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="download every file, not only those that loading needs, also of a model that does not run here",
    )
    parser.add_argument("--verify", action="store_true", help="read existing files and download damaged ones again")
    parser.add_argument("--offline", action="store_true", help="no network: only print the folder of the model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _require_supported(preview: hub.Preview) -> None:
    from minicpm.formats.support import require_supported

    require_supported(preview)


def run(args: argparse.Namespace) -> int:
    folder = hub.pull(
        args.name,
        source=hub.SOURCES.get(args.source),
        revision=args.revision,
        everything=args.all,
        verify=args.verify,
        offline=True if args.offline else None,
        progress=TerminalProgress(),
        accept=None if args.all else _require_supported,
    )
    if args.json:
        print(json.dumps(next(record(model) for model in hub.list_models(everything=True) if model.path == folder)))
    else:
        print(folder)
    return 0
