"""`minicpm bench`: measures how fast this machine runs a model, and the share of the machine's peaks it uses."""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm import __version__, native
from minicpm.bench.device import Device, this_device
from minicpm.bench.measure import Measurement, Peaks, Plan, Speed, Spread, as_record, measure
from minicpm.bench.report import check_text, make_report, write_report
from minicpm.cli.arguments import add_engine_arguments, count, load_llm, whole
from minicpm.cli.models import shown_name
from minicpm.cli.output import is_terminal, talk, talk_dim
from minicpm.cli.progress import TerminalProgress, format_bytes
from minicpm.errors import counted
from minicpm.formats.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from rich.table import Table

    from minicpm.engine.llm import LLM

DEFAULTS = Plan()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure a model on this machine: random ids, no sampling, medians of several alternating windows. "
        "The machine's peaks are measured between the windows with the same threads: memory bandwidth, which limits "
        "decoding, and int8 multiplication, which limits prefill."
    )

    def add_list(name: str, explanation: str, default: tuple[int, ...]) -> None:
        shown = ",".join(map(str, default))
        parser.add_argument(
            name, type=_numbers, metavar="N,N", default=default, help=f"{explanation} (default: {shown}; '' for none)"
        )

    add_list("--prefill", "lengths of prompts", DEFAULTS.prefill)
    add_list("--decode", "depths at which single tokens are decoded", DEFAULTS.decode)
    add_list("--batch", "numbers of sequences that are decoded together", DEFAULTS.batch)
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
        help=f"windows per point (default: {DEFAULTS.repeats})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, every window included")
    _add_report_arguments(parser)
    add_engine_arguments(parser)


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "report", "One JSON object for publication, without a person's or host's name or a path (docs/devices.md)."
    )
    group.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write a report (default FILE: DEVICE-MODEL.json in the current folder)",
    )
    group.add_argument("--device-name", metavar="TEXT", help="name of the device, if the system reports a wrong one")
    group.add_argument("--force", action="store_true", help="replace FILE")


def run(args: argparse.Namespace) -> int:
    plan = Plan(args.prefill, args.decode, args.batch, args.verify, args.repeats)
    device = _device(args)
    start = time.perf_counter()
    llm = load_llm(args)
    load_s = time.perf_counter() - start
    name = shown_name(args.model, llm.folder)
    destination = None if device is None else _destination(args, llm, device, name)
    with open_checkpoint(llm.folder, allow_quantized=True) as checkpoint:
        measured = measure(
            llm.steps.backend,
            checkpoint,
            plan,
            dtype=llm.options.dtype,
            threads=_threads(llm, args),
            peaks=lambda: _peaks(llm, args),
            on_repeat=lambda repeat: _say_repeat(repeat, plan.repeats),
        )
        if args.json:
            print(json.dumps({"model": str(llm.folder), "load_s": load_s, **as_record(measured)}, indent=1))
        else:
            _print(llm, load_s, measured)
        if device is not None and destination is not None:
            report = make_report(
                measured,
                checkpoint,
                device=device,
                name=name,
                versions=(__version__, platform.python_version()),
                load_s=load_s,
                dtype=llm.options.dtype,
                progress=TerminalProgress(),
            )
            write_report(destination, report)
            talk(f"{destination}: the report; docs/devices.md explains how to publish it")
    return 0


def _device(args: argparse.Namespace) -> Device | None:
    """The description of this device for a report; None if no report is wanted."""
    if args.report is None:
        if args.device_name is not None or args.force:
            raise ValueError("--device-name and --force need --report")
        return None
    if args.device_name is not None:
        check_text(args.device_name, "--device-name")
    if args.sliding_window is not None:
        raise ValueError("--report needs a model that attends to all tokens; leave --sliding-window out")
    if not args.decode:
        raise ValueError(
            "--report needs --decode with at least one depth: the memory's bandwidth is measured beside it"
        )
    return this_device(args.device_name)


def _destination(args: argparse.Namespace, llm: LLM, device: Device, name: str) -> Path:
    """The file of the report. Raises ValueError before anything is measured."""
    check_text(name, "the model's name")
    if not _has_peaks(llm):
        raise ValueError("--report needs the memory's bandwidth; the native extension measures it, for CPUs only")
    called = next((text for text in (device.name, device.soc, device.processor) if text), "device")
    path = Path(args.report or f"{_plain(called)}-{_plain(name)}.json").expanduser()
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it")
    if path.exists() and not args.force:
        raise ValueError(f"{path}: already exists; name another file or pass --force to replace it")
    return path


def _plain(name: str) -> str:
    """A name that is a valid file name on every system."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 128,512") from None


def _threads(llm: LLM, args: argparse.Namespace) -> int | None:
    """The thread count, if we set it; None if the backend chooses it itself."""
    if llm.backend.name == "native":
        return native.thread_count(args.threads)
    return args.threads if llm.backend.name == "torch" else None


def _peaks(llm: LLM, args: argparse.Namespace) -> Peaks | None:
    """The machine's peaks; None without the native extension, or if another device computes."""
    return Peaks(native.isa(), native.thread_count(args.threads)) if _has_peaks(llm) else None


def _has_peaks(llm: LLM) -> bool:
    device: str = getattr(llm.backend, "device", "cpu")
    return native.why_missing() is None and device.startswith("cpu")


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
        for part in (measured.backend, measured.isa, measured.threads and counted(measured.threads, "thread"))
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
            f"memory     {format_bytes(measured.peak_rss_bytes)} at most, "
            f"{counted(measured.peak_rss_tokens, 'token')} held"
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
