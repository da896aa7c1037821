"""`minicpm quantize SRC DST --preset int4`: writes a model with 4- or 8-bit weights, and shows the rounding errors."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from minicpm.cli import calibration
from minicpm.cli.arguments import add_offline_argument
from minicpm.cli.models import resolve_model
from minicpm.cli.progress import TerminalProgress, format_bytes
from minicpm.errors import MiniCPMError, counted
from minicpm.export.calibrated import work_place
from minicpm.export.destination import check_places
from minicpm.export.quantize import DATA_FREE, METHODS, Quantization, quantize_folder
from minicpm.formats.hf import DEFAULT_SHARD_BYTES
from minicpm.quant.format import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", help="a model's folder or .gguf file, or a name to look up and download"
    )
    parser.add_argument("destination", metavar="DST", help="the new folder")
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="int4",
        help="int4 (groups of 64, head in 8 bits; the default), int4-small (groups of 128, head in 4 bits: least "
        "memory, but a trained model of 135 M weights has more than twice the perplexity), "
        "int4-hf (groups of 128, head in 16 bits, for vLLM and transformers) or int8",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="rtn",
        help="rtn, round to nearest (the default), or gptq: calibrated on text, so that a weight makes up for the "
        "rounding of others; needs torch",
    )
    calibration.add_arguments(parser)
    parser.add_argument(
        "--no-equalize",
        dest="equalize",
        action="store_false",
        help="do not equalize outlier channels by powers of two before rounding",
    )
    parser.add_argument("--force", action="store_true", help="replace DST if it is a model folder")
    add_offline_argument(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as one JSON object")


def run(args: argparse.Namespace) -> int:
    progress = TerminalProgress()
    source, destination = resolve_model(args, args.source), Path(args.destination).expanduser()
    check_places(source, destination, args.force)  # before a model writes for minutes
    text = None
    if args.method not in DATA_FREE:
        text = calibration.calibration_text(source, args.calibration, args.calibration_tokens)
        print(f"calibrating on {text.tokens:,} tokens of {text.origin}", file=sys.stderr)
    with _naming_kept_blocks(destination):
        done = quantize_folder(
            source,
            destination,
            preset=args.preset,
            method=args.method,
            calibration=text,
            equalize=args.equalize,
            max_shard_bytes=DEFAULT_SHARD_BYTES,
            overwrite=args.force,
            progress=progress,
        )
    print(json.dumps(_record(done), indent=2) if args.json else "\n".join(_table(done)))
    sizes = f"{format_bytes(done.source_bytes)} -> {format_bytes(done.nbytes)}"
    if done.dequantized:
        print(
            f"the source holds {done.dequantized} weights: they were rounded a second time, and the errors above come "
            "on top of those of the first",
            file=sys.stderr,
        )
    if done.evened_channels:
        were = "was" if done.evened_channels == 1 else "were"
        channels = counted(done.evened_channels, "outlier channel")
        print(f"{channels} {were} equalized before rounding", file=sys.stderr)
    if cost := PRESETS[done.preset].cost:
        print(cost, file=sys.stderr)
    print(f"{done.destination}: {done.preset} by {done.method}, {sizes}, written and checked", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _naming_kept_blocks(destination: Path) -> Iterator[None]:
    """Say after a failure or Ctrl-C that what was calibrated is not lost."""
    try:
        yield
    except (MiniCPMError, OSError, KeyboardInterrupt):
        if (place := work_place(destination)).is_dir():
            print(f"\n{place} keeps the blocks that are done; the same command goes on behind them", file=sys.stderr)
        raise


def _record(done: Quantization) -> dict[str, object]:
    return {
        "source": str(done.source),
        "destination": str(done.destination),
        "preset": done.preset,
        "method": done.method,
        "dequantized": done.dequantized,
        "cost": PRESETS[done.preset].cost or None,
        "evened_channels": done.evened_channels,
        "source_weight_bytes": done.source_bytes,
        "weight_bytes": done.nbytes,
        "kinds": [
            {**asdict(kind), "bits_per_weight": kind.bits_per_weight, "relative_rmse": kind.relative_rmse}
            for kind in done.kinds
        ],
        "files": list(done.files),
    }


def _table(done: Quantization) -> list[str]:
    lines = [f"{'weights':<20}{'elements':>14}{'size':>10}{'bits/weight':>13}{'error':>9}"]
    for kind in done.kinds:
        error = f"{100 * kind.relative_rmse:.2f} %" if kind.squared_weight else "-"
        size = format_bytes(kind.nbytes)
        lines.append(f"{kind.kind:<20}{kind.elements:>14,}{size:>10}{kind.bits_per_weight:>13.3f}{error:>9}")
    elements = sum(kind.elements for kind in done.kinds)
    size = format_bytes(done.nbytes)
    lines.append(f"{'all':<20}{elements:>14,}{size:>10}{8 * done.nbytes / elements:>13.3f}")
    return lines
