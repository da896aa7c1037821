"""This package and its peers on the true MiniCPM-2B shapes, measured in alternating windows.

    python benchmarks/versus_peers.py                    # 4 bits, beside the peers that `make peers` set up
    python benchmarks/versus_peers.py --wide             # 8 and 16 bits
    python benchmarks/versus_peers.py --only "minicpm int4" "llama.cpp Q4_0" --points "decode 0,verify 8"
    python benchmarks/versus_peers.py --peer llama.cpp=/opt/python --peer vllm=/other/bin/python
    python benchmarks/versus_peers.py --preparation --repeats 1    # a trial: never shown in a table

Missing models are made (30 GB in runs/). Every program loads once and is stopped (SIGSTOP) while another
measures. Between the windows the memory's read bandwidth and the processor's integer peak are measured. Programs that
do not fit into memory together run in groups, each with this package; every group has its own table, and its ratios
are computed from the figures in that table. About 50 minutes, 40 with --wide.
Writes benchmarks/results/versus_peers.json, versus_peers.svg, RESULTS.md and the README's table.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from costs import RESULTS, require_idle_machine, write_results
from make_model import make_model
from report import RATIO, write_report

from minicpm import LLM, native
from minicpm.bench.measure import Peaks, prompt_operations, step_weight_bytes
from minicpm.engine.memory import free_memory_bytes
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig, read_config_json
from minicpm.quant.quality import Comparison

HERE = Path(__file__).parent
ROOT = HERE.parent
RUNNERS = HERE / "peers"
MINICPM = [sys.executable, "-m", "minicpm"]
POINTS = ("decode 0", "decode 4000", "prefill 512", "prefill 2048", "batch 8", "verify 8")
WIDE_POINTS = ("decode 0", "decode 1024", "prefill 512", "batch 8")
UNITS = {"decode": "tokens/s", "prefill": "tokens/s", "batch": "tokens/s", "verify": "single steps"}
# A window of these points takes many seconds, so few windows are measured.
LONG_PROMPT, LONG_REPEATS = 1024, 3
WINDOW_S = 1.0
PEAK_TRIES = 3  # most windows measured while the figure is above the machine's peak
KL_TOKENS = 128
GB = 1 << 30
FLOAT_CACHE_BYTES = 2  # per number of keys and values in the peers
TIMEOUT_S = 900


@dataclass(frozen=True)
class Entrant:
    """A program with one form of the weights."""

    name: str
    script: str
    model: str  # a form that `models` makes
    python: Path
    memory_bytes: float  # at its peak, for forming groups
    arguments: tuple[str, ...] = ()
    preset: str | None = None
    starts: int = 1  # number of starts, of which the fastest counts
    is_extra: bool = False  # not in the table of 4 bits
    is_wide: bool = False  # in the table of 8 and 16 bits

    @property
    def is_ours(self) -> bool:
        return self.script == "minicpm_llm.py"

    @property
    def writes_a_cache(self) -> bool:
        """Whether its first start packs weights or compiles, and leaves that on the disk for later starts."""
        return self.is_ours or "compiled" in self.arguments

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return next((bits for name, bits in (("int4", 4), ("int8", 8)) if self.model.startswith(name)), 16)


OURS = Path(sys.executable)
LLAMA, IK, VLLM = (ROOT / f".venv-{name}" / "bin" / "python" for name in ("llamacpp", "ik", "vllm"))
PLAIN_ATTENTION, COMPILED = ("plain-attention",), ("compiled",)


def ours(name: str, model: str, gigabytes: float, preset: str, **more: Any) -> Entrant:
    return Entrant(f"minicpm {name}", "minicpm_llm.py", model, OURS, gigabytes * GB, preset=preset, starts=3, **more)


def both_attentions(
    name: str, model: str, gigabytes: float, script: str = "llamacpp.py", python: Path = LLAMA, **more: Any
) -> tuple[Entrant, Entrant]:
    """A program of the llama.cpp family with flash attention and without: which is faster depends on the machine."""
    flash = Entrant(name, script, model, python, gigabytes * GB, starts=3, **more)
    return flash, replace(flash, name=f"{name}, plain attention", arguments=PLAIN_ATTENTION)


def both_modes(name: str, model: str, gigabytes: float, **more: Any) -> tuple[Entrant, Entrant]:
    """vLLM eager and compiled."""
    eager = Entrant(name, "vllm_cpu.py", model, VLLM, gigabytes * GB, **more)
    return eager, replace(eager, name=f"{name}, compiled", arguments=COMPILED, memory_bytes=(gigabytes + 1) * GB)


ENTRANTS = (
    ours("int4-small", "int4-small", 2.5, "int4-small"),
    ours("int4", "int4", 2.7, "int4"),
    *both_attentions("llama.cpp Q4_0", "int4-small.gguf", 5.5),
    *both_attentions("ik_llama.cpp Q4_0", "int4-small.gguf", 5.5, "ik_llamacpp.py", IK),
    *both_modes("vllm int4-hf", "int4-hf", 8.5),
    *both_modes("vllm bf16", "granite", 11.5, is_wide=True),
    Entrant("transformers bf16", "transformers_cpu.py", "granite", OURS, 8 * GB),
    *both_attentions("llama.cpp Q4_0, head Q8_0", "int4.gguf", 5.7, is_extra=True),
    ours("int8", "int8", 3.5, "int8", is_extra=True, is_wide=True),
    ours("bf16", "bf16", 6.5, "bfloat16", is_extra=True, is_wide=True),
    *both_attentions("llama.cpp Q8_0", "int8.gguf", 7, is_extra=True, is_wide=True),
    *both_attentions("ik_llama.cpp Q8_0", "int8.gguf", 7, "ik_llamacpp.py", IK, is_extra=True, is_wide=True),
    *both_attentions("llama.cpp BF16", "bf16.gguf", 8, is_extra=True, is_wide=True),
    Entrant("minicpm bf16 (torch)", "minicpm_llm.py", "bf16", OURS, 8 * GB, arguments=("torch",), is_extra=True),
)


class Gone(RuntimeError):
    """A program ended, or did not answer in time."""


@dataclass
class Running:
    """An entrant's process, stopped except while it is measured."""

    entrant: Entrant
    process: subprocess.Popen[str]
    first_token_s: float
    facts: dict[str, object]
    peak_rss_bytes: int = 0
    windows: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def ask(self, line: str) -> float | None:
        assert self.process.stdin is not None
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = read_line(self.process, self.entrant.name)
        os.killpg(self.process.pid, signal.SIGSTOP)
        if "error" in answer:  # the point stays empty; the others continue
            talk(f"{self.entrant.name} could not {line}: {answer['error']}")
            return None
        value: float | None = answer["value"]
        return value

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    args = parsed()
    require_idle_machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # also ends the stopped programs
    entrants = [chosen(entrant, args) for entrant in ENTRANTS if is_wanted(entrant, args)]
    for entrant in entrants:
        if not entrant.python.exists():
            talk(f"{entrant.name} is left out: {entrant.python} is not there (make peers, or --peer)")
    entrants = [entrant for entrant in entrants if entrant.python.exists()]
    paths = models(args.folder, {entrant.model for entrant in entrants})
    done: list[tuple[int, Running]] = []
    began = time.monotonic()
    for number, group in enumerate(groups(entrants)):
        talk(f"group {number + 1}: {', '.join(entrant.name for entrant in group)}")
        done += [(number, running) for running in measure_group(group, paths, args)]
    talk(f"measured in {time.monotonic() - began:.0f} s")
    rows, windows = tables(done, paths, args.points)
    for row in rows:
        if "program" in row:
            preset = next(entrant.preset for entrant in entrants if entrant.name == row["program"])
            row["KL of these weights"] = "-" if preset in (None, "bfloat16") else kl_of_these(paths, str(preset))
    note = (
        f"True MiniCPM-2B shapes, random weights, {args.threads} threads, {args.repeats} windows of a point in "
        "alternation (median / best). Programs of one table alternated; each ratio is of the medians in its row. "
        "'of peak': the part of the read bandwidth (prefill: of the integer peak) measured beside the windows; '!' "
        "marks a figure above the peak, which stayed there when it was measured again. verify 8: the cost of a step "
        "over 8 tokens in single steps. Nothing is sampled, except by vLLM. KL in nats per token: of MiniCPM-nano "
        "against float32, and of these random weights against bf16. Peak memory is with "
        f"{max_depth(args.points)} tokens held."
    )
    path = write_results(args.result, rows, note, is_preparation=args.preparation, measurements=windows)
    print("wrote", path)
    if not args.preparation:
        write_report()


def is_wanted(entrant: Entrant, args: argparse.Namespace) -> bool:
    if args.only:
        return entrant.name in args.only
    return entrant.is_wide if args.wide else not entrant.is_extra


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"), help="the model in bf16, made if missing")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="llama.cpp, vllm, ...")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(repr(e.name) for e in ENTRANTS))
    parser.add_argument("--wide", action="store_true", help="the table of 8 and 16 bits, versus_peers_wide")
    parser.add_argument("--points", help=f"default: {','.join(POINTS)}; with --wide {','.join(WIDE_POINTS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--result", metavar="NAME", help="in benchmarks/results, versus_peers_MACHINE for another's")
    parser.add_argument("--threads", type=int, default=native.physical_cores())
    parser.add_argument("--preparation", action="store_true", help="only try it: the result enters no document")
    args = parser.parse_args()
    args.points = args.points or ",".join(WIDE_POINTS if args.wide else POINTS)
    args.result = args.result or ("versus_peers_wide" if args.wide else "versus_peers")
    args.points = [" ".join(point.split()) for point in args.points.split(",")]
    for point in args.points:
        verb, _, size = point.partition(" ")
        if verb not in UNITS or not size.isdecimal():
            parser.error(f"--points: {point!r} is none of '{', '.join(UNITS)}' and a number")
    unknown = set(args.only or ()) - {entrant.name for entrant in ENTRANTS}
    if unknown:
        parser.error(f"--only: unknown {', '.join(map(repr, sorted(unknown)))}")
    if not args.result.startswith("versus_peers"):
        parser.error(f"--result {args.result!r}: expected versus_peers or versus_peers_MACHINE")
    args.peers = {}
    for peer in args.peer:
        name, separator, path = peer.partition("=")
        if not separator or not any(entrant.name.split()[0] == name for entrant in ENTRANTS):
            parser.error(
                f"--peer {peer!r}: expected NAME=PYTHON with llama.cpp, ik_llama.cpp, vllm or transformers as NAME"
            )
        args.peers[name] = Path(path)
    return args


def chosen(entrant: Entrant, args: argparse.Namespace) -> Entrant:
    python = args.peers.get(entrant.name.split()[0])
    return entrant if python is None else replace(entrant, python=python)


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- models ------------------------------------------------------------------------------------------------------


def models(folder: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """The requested forms of the model; missing ones are made from the bf16 folder."""
    if not folder.exists():
        talk(f"making {folder}")
        make_model(folder)
    paths = {"bf16": folder}
    for name in sorted(wanted, key=lambda name: name.endswith(".gguf")):
        paths[name] = path = folder.with_name(f"{folder.name}-{name}") if name != "bf16" else folder
        if path.exists():
            continue
        talk(f"making {path}")
        if name.endswith(".gguf"):  # with the same codes as the folder
            source = models(folder, [name.removesuffix(".gguf")])[name.removesuffix(".gguf")]
            command = [*MINICPM, "convert", str(source), str(path), "--to", "gguf"]
        elif name == "granite":
            command = [*MINICPM, "convert", str(folder), str(path), "--to", "granite"]
        else:
            command = [*MINICPM, "quantize", str(folder), str(path), "--preset", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return paths


def groups(entrants: Sequence[Entrant]) -> Iterator[list[Entrant]]:
    """The fewest groups that fit into memory, each with our presets, or only those with the peer's bits if short."""
    room = (free_memory_bytes() or 16 * GB) * 0.95 - GB  # for the driver itself
    ours = [entrant for entrant in entrants if entrant.preset]
    waiting = [entrant for entrant in entrants if entrant not in ours]
    while waiting or ours:
        group, used = list(ours), sum(entrant.memory_bytes for entrant in ours)
        for entrant in list(waiting):
            if used + entrant.memory_bytes <= room:
                group.append(entrant)
                waiting.remove(entrant)
                used += entrant.memory_bytes
        if group == ours and waiting:
            large = waiting.pop(0)
            beside = [entrant for entrant in ours if entrant.bits == large.bits]
            if not beside or sum(entrant.memory_bytes for entrant in [*beside, large]) > room:
                talk(f"{large.name} is left out: it takes {large.memory_bytes / GB:.0f} GB")
                continue
            group = [*beside, large]
        yield group
        if not waiting:
            return


# --- running -----------------------------------------------------------------------------------------------------


def measure_group(group: Sequence[Entrant], paths: dict[str, Path], args: argparse.Namespace) -> list[Running]:
    config = config_of(paths)
    with ExitStack() as stack:
        members: list[Running] = []
        for entrant in group:
            try:
                members.append(stack.enter_context(ready(entrant, paths, args)))
            except Gone as problem:  # the others continue
                talk(str(problem))
        if all(running.entrant.is_ours for running in members) and not all(entrant.is_ours for entrant in group):
            return []  # its peers did not start: nothing to compare
        peaks = Peaks(native.isa(), args.threads)
        for repeat in range(args.repeats):
            for point in args.points:
                verb, size = point.split()
                if verb == "prefill" and int(size) >= LONG_PROMPT and repeat >= LONG_REPEATS:
                    continue
                turn = repeat % max(1, len(members))
                for running in [*members[turn:], *members[:turn]]:
                    if running.process.poll() is None:
                        one_window(running, point, peaks, work_per_token(running.entrant, point, config, paths))
        return members


def ready(entrant: Entrant, paths: dict[str, Path], args: argparse.Namespace) -> Running:
    """Start the entrant as often as required; fill the last start to the deepest depth."""
    if entrant.writes_a_cache:
        start(entrant, paths, args.threads).close()
    seconds = [again(entrant, paths, args.threads) for _ in range(entrant.starts - 1)]
    running = start(entrant, paths, args.threads)
    try:
        running.first_token_s = min([*seconds, running.first_token_s])
        if depth := max_depth(args.points):
            running.ask(f"fill {depth}")
        running.peak_rss_bytes = peak_rss_bytes(running.process.pid)
    except BaseException:
        running.close()
        raise
    talk(f"{entrant.name}: {running.first_token_s:.2f} s, {running.peak_rss_bytes / 1e9:.2f} GB")
    return running


def again(entrant: Entrant, paths: dict[str, Path], threads: int) -> float:
    with start(entrant, paths, threads) as running:
        return running.first_token_s


def start(entrant: Entrant, paths: dict[str, Path], threads: int) -> Running:
    """The process, stopped after its model has computed a first token."""
    command = [str(entrant.python), str(RUNNERS / entrant.script), str(paths[entrant.model].resolve()), str(threads)]
    log = (ROOT / "runs" / f"{entrant.script}.log").open("w")
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, *entrant.arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    log.close()
    try:
        answer = read_line(process, entrant.name)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    seconds = time.perf_counter() - begin
    os.killpg(process.pid, signal.SIGSTOP)
    return Running(entrant, process, seconds, answer["ready"])


def read_line(process: subprocess.Popen[str], name: str) -> Any:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], TIMEOUT_S)
    line = process.stdout.readline() if ready else ""
    if not line:
        raise Gone(f"{name} {'ended' if ready else 'said nothing'}; its last words are in runs/*.log")
    return json.loads(line)


def one_window(running: Running, point: str, peaks: Peaks, work: float | None) -> None:
    """A window of an entrant; a figure above the measured peak is measured again, and the last one counts."""
    for tries in range(1, PEAK_TRIES + 1):
        try:
            window = measured_window(running, point, peaks)
        except Gone as problem:
            talk(str(problem))
            running.close()
            return
        if window is None:
            return
        part = 0 if work is None else window["value"] * work / window["peak"]
        talk(f"  {point:<13}{running.entrant.name:<34}{window['value']:9.2f}   peak {window['peak'] / 1e9:7.1f}")
        if part <= 1:
            break
        talk(f"  {percent(part)} of the peak, so the peak was disturbed: try {tries} of {PEAK_TRIES}")
    running.windows.setdefault(point, []).append(window)


def measured_window(running: Running, point: str, peaks: Peaks) -> dict[str, float] | None:
    """A window between two measurements of the peak that limits it; None if the program does not support it."""
    verb = point.split()[0]
    peak: Callable[[], float] = peaks.integer_rate if verb == "prefill" else peaks.read_bandwidth
    before = peak()
    value = running.ask(point if verb == "prefill" else f"{point} {WINDOW_S}")
    single = running.ask(f"verify 1 {WINDOW_S / 2}") if verb == "verify" and value is not None else None
    if value is None or (verb == "verify" and single is None):
        return None
    return {"value": value if single is None else value / single, "peak": (before + peak()) / 2}


def peak_rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} does not tell its memory")


def max_depth(points: Sequence[str]) -> int:
    return max((int(point.split()[1]) for point in points if point.startswith("decode")), default=0)


# --- tables ------------------------------------------------------------------------------------------------------


def config_of(paths: dict[str, Path]) -> DecoderConfig:
    return DecoderConfig.from_dict(read_config_json(paths["bf16"] / "config.json"))


def tables(
    done: Sequence[tuple[int, Running]], paths: dict[str, Path], points: Sequence[str]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of the tables (points of each group, then programs), and every window."""
    config = config_of(paths)
    rows: list[dict[str, object]] = []
    for group in dict.fromkeys(group for group, _ in done):
        members = in_order(running for number, running in done if number == group)
        work = {
            (running.entrant.name, point): work_per_token(running.entrant, point, config, paths)
            for running in members
            for point in points
        }
        rows += [point_row(point, members, work) for point in points]
    rows += [program_row(running, config, paths, max_depth(points)) for running in unique(done)]
    windows = [
        {"program": running.entrant.name, "group": group, "point": point, "facts": running.facts, "windows": measured}
        for group, running in done
        for point, measured in running.windows.items()
    ]
    return rows, windows


def unique(done: Sequence[tuple[int, Running]]) -> list[Running]:
    """Each program once: ours is in every group, and its first entry is shown."""
    first: dict[str, Running] = {}
    for _, running in done:
        first.setdefault(running.entrant.name, running)
    return in_order(first.values())


def in_order(programs: Iterable[Running]) -> list[Running]:
    names = [entrant.name for entrant in ENTRANTS]
    return sorted(programs, key=lambda running: names.index(running.entrant.name))


def point_row(
    point: str, members: Sequence[Running], work: Mapping[tuple[str, str], float | None]
) -> dict[str, object]:
    """One point of a group: every program, the ratio of each of our presets to its fastest peer, parts of the peak."""
    verb = point.split()[0]
    best = min if verb == "verify" else max  # lower cost of a step or higher speed
    row: dict[str, object] = {"point": f"{point} ({UNITS[verb]})"}
    for running in members:
        values = [window["value"] for window in running.windows.get(point, ())]
        row[running.entrant.name] = f"{statistics.median(values):.3g} / {best(values):.3g}" if values else "-"
    presets = [running for running in members if running.entrant.preset]
    for running in presets:
        ratios = dict(ratios_to_peers(point, str(running.entrant.preset), [(0, member) for member in members]))
        name = min(ratios, key=lambda peer: ratios[peer], default=None)
        column = RATIO.format(preset=running.entrant.preset, bits=running.entrant.bits)
        row[column] = "-" if name is None else f"{ratios[name]:.2f} ({name})"
    for running in presets:
        part = part_of_peak(running, point, work[running.entrant.name, point])
        row[f"{running.entrant.preset}, of peak"] = percent(part)
    return row


def percent(part: float | None) -> str:
    """A fraction of a peak; "!" marks an impossible one, whose measurement of the peak was disturbed."""
    return "-" if part is None else f"{100 * part:.0f} %" + (" !" if part > 1 else "")


def ratios_to_peers(point: str, preset: str, done: Sequence[tuple[int, Running]]) -> Iterator[tuple[str, float]]:
    """Ratios of ours to every peer of the same group, from the medians as shown.

    Peers have no fewer bits a weight than ours: what reads fewer bytes is no peer of a wide preset.
    """
    mine = {group: running for group, running in done if running.entrant.preset == preset and point in running.windows}
    for group, running in done:
        if running.entrant.is_ours or point not in running.windows or group not in mine:
            continue
        if running.entrant.bits >= mine[group].entrant.bits:
            own, peer = shown_median(mine[group], point), shown_median(running, point)
            yield running.entrant.name, peer / own if point.startswith("verify") else own / peer


def shown_median(running: Running, point: str) -> float:
    """The median, rounded as in the table."""
    return float(f"{statistics.median(window['value'] for window in running.windows[point]):.3g}")


def work_per_token(entrant: Entrant, point: str, config: DecoderConfig, paths: dict[str, Path]) -> float | None:
    """Operations (prefill) or bytes per token, for comparison with the peak; None for verify."""
    verb, size = point.split()
    if verb == "verify":
        return None
    if verb == "prefill":
        return prompt_operations(config, int(size)) / int(size)
    step = bytes_per_step(entrant, config, paths, int(size) if verb == "decode" else 0)
    return step / (int(size) if verb == "batch" else 1)


def part_of_peak(running: Running, point: str, work: float | None) -> float | None:
    if work is None:
        return None
    parts = [window["value"] * work / window["peak"] for window in running.windows.get(point, ())]
    return statistics.median(parts) if parts else None


def bytes_per_step(entrant: Entrant, config: DecoderConfig, paths: dict[str, Path], depth: int) -> int:
    """Bytes of weights and cache read for one token."""
    with open_checkpoint(paths[entrant.model], allow_quantized=True) as checkpoint:
        weights = step_weight_bytes(checkpoint)
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    # Our INT4 presets: one byte per number and two bytes of scale per 32 numbers.
    return round(weights + depth * numbers * (34 / 32 if entrant.preset else FLOAT_CACHE_BYTES))


def program_row(running: Running, config: DecoderConfig, paths: dict[str, Path], depth: int) -> dict[str, object]:
    entrant = running.entrant
    version = running.facts.get("version") or f"{running.facts['backend']}, {running.facts['isa'] or 'torch'}"
    return {
        "program": entrant.name,
        "version": version,
        "reads a token (MB)": round(bytes_per_step(entrant, config, paths, 0) / 1e6),
        f"at depth {depth} (MB)": round(bytes_per_step(entrant, config, paths, depth) / 1e6),
        "of bandwidth, decode 0": percent(
            part_of_peak(running, "decode 0", work_per_token(entrant, "decode 0", config, paths))
        ),
        "KL of MiniCPM-nano": kl_of(entrant.preset),
        "start to first token_s": round(running.first_token_s, 2),
        "peak_rss_bytes": running.peak_rss_bytes,
    }


def kl_of(preset: str | None) -> object:
    """The KL that benchmarks/quality.py measured for a preset on MiniCPM-nano, "-" if it was not run."""
    path = RESULTS / "quality.json"
    if preset is None or not path.exists():
        return "-"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found = [row["kl"] for row in rows if row.get("preset") == preset and row.get("outlier_scale", 1) == 1]
    return found[-1] if found else "-"  # the last one rounds weights, activations and cache, as users run it


def kl_of_these(paths: dict[str, Path], preset: str) -> float:
    """KL of a preset against its bf16 source model, in nats per token, over random ids."""
    ids = np.random.default_rng(0).integers(3, 100_000, KL_TOKENS).tolist()
    expected, found = (LLM(paths[name], backend="native").logits(ids[:-1]) for name in ("bf16", preset))
    comparison = Comparison()
    comparison.add(expected, found, np.array(ids[1:]))
    return float(f"{comparison.kl:.4g}")


if __name__ == "__main__":
    main()
