"""`minicpm bench`: how fast this machine runs a model, and which part of the machine's own limits that is."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from minicpm import native
from minicpm.cli.arguments import add_engine_arguments, count, load_llm, whole
from minicpm.cli.output import is_terminal, talk_dim
from minicpm.cli.progress import format_bytes
from minicpm.engine.bench import Measurement, Peaks, Plan, Speed, Spread, as_record, measure
from minicpm.formats.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from rich.table import Table

    from minicpm.engine.llm import LLM

DEFAULTS = Plan()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure a model on this machine: random ids, no sampling, medians of several windows that take turns. "
        "Beside them stand the machine's peaks, measured between the windows with the same threads: reading memory, "
        "which limits writing one token after the other, and multiplying bytes, which limits reading a prompt."
    )

    def add_list(name: str, explanation: str, default: tuple[int, ...]) -> None:
        shown = ",".join(map(str, default))
        parser.add_argument(
            name, type=_numbers, metavar="N,N", default=default, help=f"{explanation} (default: {shown}; '' for none)"
        )

    add_list("--prefill", "lengths of prompts", DEFAULTS.prefill)
    add_list("--decode", "depths at which single tokens are computed", DEFAULTS.decode)
    add_list("--batch", "sequences that get a token each a step", DEFAULTS.batch)
    parser.add_argument(
        "--verify",
        type=whole(0),
        metavar="M",
        default=DEFAULTS.verify,
        help=f"steps over 1 to M tokens of one sequence, as drafts are verified (default: {DEFAULTS.verify}; 0: none)",
    )
    parser.add_argument(
        "--repeats",
        type=count,
        metavar="N",
        default=DEFAULTS.repeats,
        help=f"windows of every point (default: {DEFAULTS.repeats})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, every window included")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    plan = Plan(args.prefill, args.decode, args.batch, args.verify, args.repeats)
    start = time.perf_counter()
    llm = load_llm(args)
    load_s = time.perf_counter() - start
    with open_checkpoint(llm.folder, allow_quantized=True) as checkpoint:
        measured = measure(
            llm.backend,
            checkpoint,
            plan,
            dtype=args.dtype,
            threads=_threads(llm, args),
            peaks=lambda: _peaks(llm, args),
            on_repeat=lambda repeat: _say_repeat(repeat, plan.repeats),
        )
    record = {"model": str(llm.folder), "load_s": load_s, **as_record(measured)}
    if args.json:
        print(json.dumps(record, indent=1))
    else:
        _print(llm, load_s, measured)
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 128,512") from None


def _threads(llm: LLM, args: argparse.Namespace) -> int | None:
    """Threads that compute, where we decide; numpy and torch on a GPU do it themselves."""
    if llm.backend.name == "native":
        return native.thread_count(args.threads)
    return args.threads if llm.backend.name == "torch" else None


def _peaks(llm: LLM, args: argparse.Namespace) -> Peaks | None:
    """None where there is no extension to measure them with, or another device computes."""
    device = getattr(llm.backend, "device", "cpu")
    if native.why_missing() is not None or not device.startswith("cpu"):
        return None
    return Peaks(native.isa(), native.thread_count(args.threads))


def _say_repeat(repeat: int, repeats: int) -> None:
    if is_terminal(sys.stderr):
        talk_dim(f"Measuring, round {repeat + 1} of {repeats} ...")


def _print(llm: LLM, load_s: float, measured: Measurement) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print("\n".join(_facts(llm, load_s, measured)), markup=False, soft_wrap=True)
    if measured.speeds:
        console.print(_speed_table(measured))
    if measured.verifications:
        console.print(_verification_table(measured))


def _facts(llm: LLM, load_s: float, measured: Measurement) -> list[str]:
    where = ", ".join(
        part
        for part in (measured.backend, measured.isa, measured.threads and f"{measured.threads} threads")
        if isinstance(part, str)
    )
    lines = [
        f"model      {llm.folder}",
        f"engine     {where}",
        f"reads      {format_bytes(measured.weight_bytes_per_step)} of weights a step, and "
        f"{measured.cache_bytes_per_token:,} bytes of cache a token before it",
        f"start      loaded in {load_s:.2f} s, first token after {measured.first_token_s:.2f} s more",
    ]
    if measured.peak_rss_bytes is not None:
        lines.append(
            f"memory     {format_bytes(measured.peak_rss_bytes)} at most, {measured.peak_rss_tokens:,} tokens held"
        )
    for name, peak, unit in (
        ("bandwidth", measured.read_bandwidth, "GB/s"),
        ("integers", measured.integer_peak, "GOPS"),
    ):
        if peak is not None:
            lines.append(
                f"{name:<11}{peak.median / 1e9:,.1f} {unit} ({peak.worst / 1e9:,.1f} to {peak.best / 1e9:,.1f})"
            )
    return lines


def _speed_table(measured: Measurement) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    table.add_column("tokens a second", no_wrap=True)
    for column in ("median", "best", "worst", "step reads", "bandwidth", "integers"):
        table.add_column(column, justify="right", no_wrap=True)
    for speed in measured.speeds:
        table.add_row(
            _point(speed),
            *_figures(speed.tokens_per_s),
            "" if speed.bytes_per_step is None else format_bytes(speed.bytes_per_step),
            _percent(speed.of_bandwidth),
            _percent(speed.of_integer_peak),
        )
    return table


def _point(speed: Speed) -> str:
    return {"prefill": "prefill of ", "decode": "decode at ", "batch": "batch of "}[speed.kind] + f"{speed.size:,}"


def _figures(spread: Spread) -> list[str]:
    digits = 1 if spread.median < 1000 else 0
    return [f"{value:,.{digits}f}" for value in (spread.median, spread.best, spread.worst)]


def _percent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.0f} %"


def _verification_table(measured: Measurement) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    table.add_column("tokens verified", justify="right")
    for column in ("ms", "single steps", "drafts that must be right"):
        table.add_column(column, justify="right")
    for step in measured.verifications:
        milliseconds, cost = f"{1e3 * step.step_s.median:.1f}", f"{step.cost:.2f}"
        table.add_row(str(step.tokens), milliseconds, cost, _percent(step.break_even_acceptance))
    return table
