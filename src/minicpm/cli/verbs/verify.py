"""`minicpm verify -m MODEL`: compares a model's files and answers with published ones, as a report for publication."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm import __version__, native
from minicpm.cli.arguments import BUILT_IN, add_model_argument
from minicpm.cli.models import resolve_model
from minicpm.cli.output import printable
from minicpm.cli.progress import TerminalProgress, format_bytes
from minicpm.cli.verbs.info import describe
from minicpm.errors import counted
from minicpm.eval.published import PERPLEXITIES, WINDOW_TOKENS
from minicpm.eval.verification import PassageScore, Verification, verify
from minicpm.formats.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from rich.table import Table

# The facts of `minicpm info` that identify a model. A report has no paths.
FACTS = ("format", "parameters", "dtypes", "quantization", "layers", "hidden_size", "vocab_size", "rope_theta")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check a model's files and run them: compare hashes with the published ones, answer the release's example "
        "greedily, and measure perplexity on the packaged texts (or --text). --against adds the KL divergence from "
        "another model. The report contains no path of this machine."
    )
    parser.add_argument(
        "--against", metavar="FOLDER", help="compare predictions with this model, usually the unquantized one"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        help=f"perplexity of this text in windows of {WINDOW_TOKENS:,} tokens, as published for wikitext-2's test set",
    )
    add_model_argument(parser, default=BUILT_IN)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    progress = TerminalProgress()
    model = resolve_model(args, args.model)
    against = None if args.against is None else resolve_model(args, args.against)
    with open_checkpoint(model, allow_quantized=True) as checkpoint:
        facts = describe(checkpoint)
    found = verify(model, against=against, text=args.text, progress=progress)
    record = as_record(found, facts)
    if args.json:
        print(json.dumps(record, indent=1, ensure_ascii=False))
    else:
        _print(found, record)
    return 0


def as_record(found: Verification, facts: dict[str, Any]) -> dict[str, Any]:
    """The report as plain JSON values."""
    published = PERPLEXITIES.get((facts["hidden_size"], facts["layers"]), ())
    record = asdict(found)
    record["passages"] = [_score(score) for score in (*found.passages, found.total)]
    return {
        "minicpm": __version__,
        "machine": _machine(found.backend),
        "model": {"name": record.pop("name"), **{name: facts[name] for name in FACTS}},
        **record,
        "published_perplexities": [asdict(one) for one in published],
    }


def _score(score: PassageScore) -> dict[str, object]:
    return {**asdict(score), "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}


def _machine(backend: str) -> dict[str, object]:
    isa = native.isa() if backend == "native" else None
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "isa": isa,
        "python": platform.python_version(),
    }


# --- for people --------------------------------------------------------------------------------------------------


def _print(found: Verification, record: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for file in found.files:
        known = f", as published: {file.published_as}" if file.published_as else ""
        line = f"{file.sha256}  {file.name} ({file.nbytes:,} bytes{known})"
        console.print(printable(line), markup=False, soft_wrap=True)
    console.print(_text_table(found))
    console.print(printable("\n".join(_lines(found, record))), markup=False, soft_wrap=True)


def _text_table(found: Verification) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    table.add_column("text of the package")
    for column in ("tokens", "nats a token", "perplexity", "bits a byte"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in (*found.passages, found.total):
        table.add_row(
            " ".join(part for part in (score.name, score.language) if part),
            f"{score.tokens:,}",
            f"{score.nats / score.tokens:.3f}",
            f"{score.perplexity:.2f}",
            f"{score.bits_per_byte:.3f}",
        )
    return table


def _lines(found: Verification, record: dict[str, Any]) -> list[str]:
    example, memory = found.example, found.peak_rss_bytes
    lines = [
        f"example    {example.question}",
        f"           {' '.join(example.answer.split())}",
        f"           {'names Beijing' if example.is_expected else 'does not name Beijing'}; its prompt has "
        f"{'the published ids' if example.has_published_ids else 'other ids than MiniCPM-2B'}",
    ]
    if (distance := found.distance) is not None:
        lines += [
            f"against    {distance.name} ({distance.backend}), {distance.tokens:,} tokens",
            f"           KL {distance.kl:.4g} nats a token, {distance.max_kl:.4g} at most; same first choice at "
            f"{100 * distance.top1_agreement:.1f} %; perplexity {distance.perplexity:.3f} for "
            f"{distance.reference_perplexity:.3f}",
        ]
    if (windows := found.windows) is not None:
        lines.append(
            f"text       {windows.name}: perplexity {windows.perplexity:.3f} in "
            f"{counted(windows.windows, 'window')} of {WINDOW_TOKENS:,} tokens"
        )
    if published := record["published_perplexities"]:
        told = ", ".join(f"{one['weights']} {one['perplexity']}" for one in published)
        lines += [
            f"published  {published[0]['model']}, wikitext-2 test, {published[0]['windows']} windows: {told}",
            "           only --text with that text, in as many windows, gives comparable figures",
        ]
    where = f"{found.backend}, {found.wall_s:.0f} s"
    lines.append(f"measured   {where}" + (f", {format_bytes(memory)} of memory at most" if memory else ""))
    return lines
