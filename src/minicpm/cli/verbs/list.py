"""`minicpm list`: the MiniCPM models on this machine, whichever program downloaded them."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime

from minicpm import hub
from minicpm.cli.output import printable
from minicpm.cli.progress import format_bytes
from minicpm.hub import packed_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the MiniCPM models on this machine: the built-in one, and those in the caches of Hugging Face and "
        "ModelScope."
    )
    parser.add_argument("--all", action="store_true", help="also list other families' models in these caches")
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object per model and revision")


def run(args: argparse.Namespace) -> int:
    models = hub.list_models(everything=args.all)
    if args.json:
        print(json.dumps([record(model) for model in models], indent=2))
        return 0
    if not models:
        print("no models here yet; try: minicpm pull minicpm-2b-dpo", file=sys.stderr)
        return 0
    now = datetime.now(UTC)
    rows = [
        (
            printable(model.name),
            model.source,
            printable(model.revision),
            _size(model),
            "complete" if model.is_complete else "incomplete",
            "-" if model.source == "embedded" else _age(now, model.last_used),
        )
        for model in models
    ]
    header = ("NAME", "SOURCE", "REVISION", "SIZE", "STATE", "USED")
    # A terminal gets a header; programs that read the table get only its rows.
    for row in aligned([header, *rows])[0 if sys.stdout.isatty() else 1 :]:
        print(row)
    _tell_of_others(models)
    return 0


def _tell_of_others(models: list[hub.LocalModel]) -> None:
    """Print the size of packed weights of models that are not listed, e.g. in the user's own folders."""
    nbytes = sum(file.nbytes for file in packed_files.list_files()) - sum(model.packed_bytes for model in models)
    if nbytes > 0:
        print(
            f"and {format_bytes(nbytes)} of packed weights of other models, in {packed_files.folder()}", file=sys.stderr
        )


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def record(model: hub.LocalModel) -> dict[str, object]:
    """The JSON object of a model for `list` and `pull`."""
    return {
        "name": model.name,
        "source": model.source,
        "revision": model.revision,
        "path": str(model.path),
        "bytes": model.nbytes,
        "packed_bytes": model.packed_bytes,
        "complete": model.is_complete,
        "last_used": model.last_used.isoformat(timespec="seconds") if model.last_used else None,
    }


def _size(model: hub.LocalModel) -> str:
    """Sizes of the model and of its packed weights, which the native engine keeps."""
    packed = f" + {format_bytes(model.packed_bytes)} packed" if model.packed_bytes else ""
    return format_bytes(model.nbytes) + packed


def _age(now: datetime, then: datetime | None) -> str:
    """A relative time such as '3 hours ago'."""
    if then is None:
        return "never"
    seconds = (now - then).total_seconds()
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if (count := int(seconds // size)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
