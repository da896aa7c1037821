"""This package and its peers on the true MiniCPM-2B shapes, in turns: after a window of one comes one of another.

    python benchmarks/versus_peers.py                       # the peers that `make peers` set up, and transformers
    python benchmarks/versus_peers.py --only "minicpm int4" "llama.cpp Q4_0" --points "decode 0,verify 8"
    python benchmarks/versus_peers.py --result versus_peers_wide --only "minicpm int8" "minicpm bf16" "llama.cpp Q8_0" \
        "llama.cpp BF16" "vllm bf16" --points "decode 0,decode 1024,prefill 512,batch 8"    # 8 and 16 bits
    python benchmarks/versus_peers.py --peer llama.cpp=/opt/python --peer vllm=/other/bin/python

Models are made where they are missing (10 GB in runs/). Every program loads once
and is stopped (SIGSTOP) while another measures; memory's read bandwidth and the processor's integer peak are measured
between the windows. What does not fit into memory together runs in groups, this package in each. 15 minutes in all.
Writes benchmarks/results/versus_peers.json, versus_peers.svg, RESULTS.md and the README's tables.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costs import RESULTS, write_results
from make_model import make_model
from report import write_report

from minicpm import native
from minicpm.bench.measure import Peaks, prompt_operations, step_weight_bytes
from minicpm.engine.memory import free_memory_bytes
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig, read_config_json

HERE = Path(__file__).parent
ROOT = HERE.parent
RUNNERS = HERE / "peers"
MINICPM = [sys.executable, "-m", "minicpm"]
POINTS = ("decode 0", "decode 4000", "prefill 512", "prefill 2048", "batch 8", "verify 8")
UNITS = {"decode": "tokens/s", "prefill": "tokens/s", "batch": "tokens/s", "verify": "single steps"}
# A window of these takes many seconds, and so do few of them.
LONG_PROMPT, LONG_REPEATS = 1024, 3
WINDOW_S = 1.0
GB = 1 << 30
FLOAT_CACHE_BYTES = 2  # of a number of keys and values in the peers
TIMEOUT_S = 900


@dataclass(frozen=True)
class Entrant:
    """A program with one form of the weights."""

    name: str
    script: str
    model: str  # what `models` makes
    python: Path
    memory_bytes: float  # at its peak, for putting groups together
    arguments: tuple[str, ...] = ()
    preset: str | None = None
    starts: int = 1  # the quickest of so many counts
    is_extra: bool = False  # measured where --only names it

    @property
    def is_ours(self) -> bool:
        return self.script == "minicpm_llm.py"

    @property
    def bits(self) -> int:
        """Of a weight."""
        return next((bits for name, bits in (("int4", 4), ("int8", 8)) if self.model.startswith(name)), 16)


OURS = Path(sys.executable)
LLAMA, VLLM = ROOT / ".venv-llamacpp" / "bin" / "python", ROOT / ".venv-vllm" / "bin" / "python"
ENTRANTS = (
    Entrant("minicpm int4-small", "minicpm_llm.py", "int4-small", OURS, 2.5 * GB, preset="int4-small", starts=3),
    Entrant("minicpm int4", "minicpm_llm.py", "int4", OURS, 2.7 * GB, preset="int4", starts=3),
    Entrant("llama.cpp Q4_0", "llamacpp.py", "int4-small.gguf", LLAMA, 5.5 * GB, starts=3),
    Entrant(
        "llama.cpp Q4_0, plain attention",
        "llamacpp.py",
        "int4-small.gguf",
        LLAMA,
        5.5 * GB,
        arguments=("plain-attention",),
        starts=3,
    ),
    Entrant("vllm bf16", "vllm_cpu.py", "granite", VLLM, 11.5 * GB),
    Entrant("transformers bf16", "transformers_cpu.py", "granite", OURS, 8 * GB),
    Entrant("llama.cpp Q4_0, head Q8_0", "llamacpp.py", "int4.gguf", LLAMA, 5.7 * GB, starts=3, is_extra=True),
    Entrant("minicpm int8", "minicpm_llm.py", "int8", OURS, 3.5 * GB, preset="int8", starts=3, is_extra=True),
    Entrant("minicpm bf16", "minicpm_llm.py", "bf16", OURS, 6.5 * GB, preset="bfloat16", starts=3, is_extra=True),
    Entrant("llama.cpp Q8_0", "llamacpp.py", "int8.gguf", LLAMA, 7 * GB, starts=3, is_extra=True),
    Entrant("llama.cpp BF16", "llamacpp.py", "bf16.gguf", LLAMA, 8 * GB, starts=3, is_extra=True),
    Entrant("minicpm bf16 (torch)", "minicpm_llm.py", "bf16", OURS, 8 * GB, arguments=("torch",), is_extra=True),
)


class Gone(RuntimeError):
    """A program ended, or said nothing for too long."""


@dataclass
class Running:
    """An entrant's process: stopped but while it is asked something."""

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
        if "error" in answer:  # the point stays empty, the others go on
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
    entrants = [
        chosen(entrant, args)
        for entrant in ENTRANTS
        if (entrant.name in args.only if args.only else not entrant.is_extra)
    ]
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
    note = (
        f"True MiniCPM-2B shapes, random weights, {args.threads} threads, {args.repeats} windows of a point in "
        "turns (median / best); verify 8: what a step over 8 tokens costs in single steps; no sampling, but vLLM's "
        "own. 'of peak' is the part of the read bandwidth (for prefill, of the integer peak) measured beside "
        f"the windows. KL: of MiniCPM-nano in that preset against float32, nats per token. "
        f"{max_depth(args.points)} tokens are held at the peak of memory."
    )
    print("wrote", write_results(args.result, rows, note, measurements=windows))
    write_report()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"), help="the model in bf16, made if missing")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="llama.cpp, vllm, ...")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(repr(e.name) for e in ENTRANTS))
    parser.add_argument("--points", default=",".join(POINTS), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--result",
        default="versus_peers",
        metavar="NAME",
        help="in benchmarks/results, versus_peers_MACHINE for another's",
    )
    parser.add_argument("--threads", type=int, default=native.physical_cores())
    args = parser.parse_args()
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
            parser.error(f"--peer {peer!r}: expected NAME=PYTHON with llama.cpp, vllm or transformers as NAME")
        args.peers[name] = Path(path)
    return args


def chosen(entrant: Entrant, args: argparse.Namespace) -> Entrant:
    python = args.peers.get(entrant.name.split()[0])
    return entrant if python is None else Entrant(**{**entrant.__dict__, "python": python})


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- models ------------------------------------------------------------------------------------------------------


def models(folder: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """Every form of the model that is wanted, made from the bf16 folder where it is missing."""
    if not folder.exists():
        talk(f"making {folder}")
        make_model(folder)
    paths = {"bf16": folder}
    for name in sorted(wanted, key=lambda name: name.endswith(".gguf")):
        paths[name] = path = folder.with_name(f"{folder.name}-{name}") if name != "bf16" else folder
        if path.exists():
            continue
        talk(f"making {path}")
        if name.endswith(".gguf"):  # the very codes of the folder
            source = models(folder, [name.removesuffix(".gguf")])[name.removesuffix(".gguf")]
            command = [*MINICPM, "convert", str(source), str(path), "--to", "gguf"]
        elif name == "granite":
            command = [*MINICPM, "convert", str(folder), str(path), "--to", "granite"]
        else:
            command = [*MINICPM, "quantize", str(folder), str(path), "--preset", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return paths


def groups(entrants: Sequence[Entrant]) -> Iterator[list[Entrant]]:
    """As few groups as fit into memory, our presets in each; where they do not fit, those of the peer's own bits."""
    room = (free_memory_bytes() or 16 * GB) * 0.95 - GB  # for the driver's own
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
    with ExitStack() as stack:
        members: list[Running] = []
        for entrant in group:
            try:
                members.append(stack.enter_context(ready(entrant, paths, args)))
            except Gone as problem:  # the others go on
                talk(str(problem))
        peaks = Peaks(native.isa(), args.threads)
        for repeat in range(args.repeats):
            for point in args.points:
                verb, size = point.split()
                if verb == "prefill" and int(size) >= LONG_PROMPT and repeat >= LONG_REPEATS:
                    continue
                turn = repeat % max(1, len(members))
                for running in [*members[turn:], *members[:turn]]:
                    if running.process.poll() is None:
                        one_window(running, point, peaks)
        return members


def ready(entrant: Entrant, paths: dict[str, Path], args: argparse.Namespace) -> Running:
    """The entrant started as often as it is to be, the last time filled to the deepest depth."""
    if entrant.preset:
        start(entrant, paths, args.threads).close()  # packs the weights where no start has done so yet
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
    """The process once its model has computed a first token; it sleeps then."""
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


def one_window(running: Running, point: str, peaks: Peaks) -> None:
    """A window of an entrant between two looks at the peak that limits it."""
    verb = point.split()[0]
    peak: Callable[[], float] = peaks.integer_rate if verb == "prefill" else peaks.read_bandwidth
    before = peak()
    try:
        value = running.ask(point if verb == "prefill" else f"{point} {WINDOW_S}")
        single = running.ask(f"verify 1 {WINDOW_S / 2}") if verb == "verify" and value is not None else None
    except Gone as problem:
        talk(str(problem))
        running.close()
        return
    if value is None or (verb == "verify" and single is None):
        return
    window = {"value": value if single is None else value / single, "peak": (before + peak()) / 2}
    running.windows.setdefault(point, []).append(window)
    talk(f"  {point:<13}{running.entrant.name:<28}{window['value']:9.2f}   peak {window['peak'] / 1e9:7.1f}")


def peak_rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} does not tell its memory")


def max_depth(points: Sequence[str]) -> int:
    return max((int(point.split()[1]) for point in points if point.startswith("decode")), default=0)


# --- tables ------------------------------------------------------------------------------------------------------


def tables(
    done: Sequence[tuple[int, Running]], paths: dict[str, Path], points: Sequence[str]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of the two tables (points, programs), and every window."""
    config = DecoderConfig.from_dict(read_config_json(paths["bf16"] / "config.json"))
    entries = unique(done)
    rows = [row for point in points if (row := point_row(point, done, entries, config, paths))]
    rows += [program_row(running, config, paths, max_depth(points)) for running in entries]
    windows = [
        {"program": running.entrant.name, "group": group, "point": point, "facts": running.facts, "windows": measured}
        for group, running in done
        for point, measured in running.windows.items()
    ]
    return rows, windows


def unique(done: Sequence[tuple[int, Running]]) -> list[Running]:
    """Each program once: ours is in every group, and its first one is shown."""
    first: dict[str, Running] = {}
    for _, running in done:
        first.setdefault(running.entrant.name, running)
    return sorted(
        first.values(), key=lambda running: [entrant.name for entrant in ENTRANTS].index(running.entrant.name)
    )


def point_row(
    point: str,
    done: Sequence[tuple[int, Running]],
    entries: Sequence[Running],
    config: DecoderConfig,
    paths: dict[str, Path],
) -> dict[str, object] | None:
    verb = point.split()[0]
    less_is_better = verb == "verify"
    row: dict[str, object] = {"point": f"{point} ({UNITS[verb]})"}
    for running in entries:
        values = [window["value"] for window in running.windows.get(point, ())]
        best = min if less_is_better else max
        row[running.entrant.name] = f"{statistics.median(values):.3g} / {best(values):.3g}" if values else "-"
    # A ratio is of windows that took turns: to every peer with ours of its own group.
    for preset in dict.fromkeys(running.entrant.preset for running in entries if running.entrant.preset):
        ratios = dict(ratios_to_peers(point, preset, done))
        if ratios:
            name = min(ratios, key=lambda peer: ratios[peer])
            row[f"{preset} / fastest peer"] = f"{ratios[name]:.2f} ({name})"
    for running in entries:
        if running.entrant.preset:
            row[f"{running.entrant.preset}, of peak"] = percent(part_of_peak(running, point, config, paths))
    return row


def percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.0f} %"


def ratios_to_peers(point: str, preset: str, done: Sequence[tuple[int, Running]]) -> Iterator[tuple[str, float]]:
    """Ours over every peer whose weights have no fewer bits: what has fewer to read is no peer of a wide preset."""
    less_is_better = point.startswith("verify")
    bits = next(running.entrant.bits for _, running in done if running.entrant.preset == preset)
    for group, running in done:
        if running.entrant.is_ours or point not in running.windows or running.entrant.bits < bits:
            continue
        same = [o for g, o in done if o.entrant.preset == preset and point in o.windows]
        beside = [o for g, o in done if g == group and o in same] or same
        if beside:
            ours, peer = median(beside[0], point), median(running, point)
            yield running.entrant.name, peer / ours if less_is_better else ours / peer


def median(running: Running, point: str) -> float:
    return statistics.median(window["value"] for window in running.windows[point])


def part_of_peak(running: Running, point: str, config: DecoderConfig, paths: dict[str, Path]) -> float | None:
    verb, size = point.split()
    if verb == "verify":
        return None
    work = (
        prompt_operations(config, int(size)) / int(size)
        if verb == "prefill"
        else bytes_per_step(running.entrant, config, paths, int(size) if verb == "decode" else 0)
        / (int(size) if verb == "batch" else 1)
    )
    parts = [window["value"] * work / window["peak"] for window in running.windows.get(point, ())]
    return statistics.median(parts) if parts else None


def bytes_per_step(entrant: Entrant, config: DecoderConfig, paths: dict[str, Path], depth: int) -> int:
    """Of weights and cache, for a single token."""
    with open_checkpoint(paths[entrant.model], allow_quantized=True) as checkpoint:
        weights = step_weight_bytes(checkpoint)
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    # Ours in INT4: a byte and, for every 32, two of scale.
    return round(weights + depth * numbers * (34 / 32 if entrant.preset else FLOAT_CACHE_BYTES))


def program_row(running: Running, config: DecoderConfig, paths: dict[str, Path], depth: int) -> dict[str, object]:
    entrant = running.entrant
    version = running.facts.get("version") or f"{running.facts['backend']}, {running.facts['isa'] or 'torch'}"
    return {
        "program": entrant.name,
        "version": version,
        "reads a token (MB)": round(bytes_per_step(entrant, config, paths, 0) / 1e6),
        f"at depth {depth} (MB)": round(bytes_per_step(entrant, config, paths, depth) / 1e6),
        "of bandwidth, decode 0": percent(part_of_peak(running, "decode 0", config, paths)),
        "KL": kl_of(entrant.preset),
        "start to first token_s": round(running.first_token_s, 2),
        "peak_rss_bytes": running.peak_rss_bytes,
    }


def kl_of(preset: str | None) -> object:
    """What benchmarks/quality.py found for a preset on the plain model, "-" where it has not been run."""
    path = RESULTS / "quality.json"
    if preset is None or not path.exists():
        return "-"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found = [row["kl"] for row in rows if row.get("preset") == preset and row.get("outlier_scale", 1) == 1]
    return found[-1] if found else "-"  # the last has weights, activations and cache rounded: what users run


if __name__ == "__main__":
    main()
