"""The tiers of tests: what each proves, needs and covers, and the record of its last run in tests/tiers.json.

    python tests/tiers.py                 # as `make tiers`: which records are fresh
    python tests/tiers.py record TIER     # as `make record TIER=...`: run the tier, write its record
    python tests/tiers.py record-all      # as `make record-all`: the same for all without a fresh record
    python tests/tiers.py document        # write the tables of docs/testing.md

A tier is a target of the Makefile. A record holds hashes of what the tier covers, so a change makes it stale. Each new
record also writes the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from generated import with_section
from minicpm.bench.device import this_device
from minicpm.engine.memory import total_memory_bytes
from minicpm.files import write_text

ROOT = Path(__file__).parents[1]
RECORDS, DOCUMENT = Path("tests/tiers.json"), Path("docs/testing.md")
SECTION = "tests/tiers.py"

Record = dict[str, Any]  # passed, failed, skipped (reason -> tests), seconds, date, machine, contents, perhaps problem


# --- What a tier needs -------------------------------------------------------------------------------------------


class Need(Protocol):
    def missing(self, root: Path) -> str:
        """What is missing, and how to get it; "" if nothing is."""


@dataclass(frozen=True)
class Command:
    """A program, under one of its names, and the Debian packages that have it."""

    names: tuple[str, ...]
    packages: str

    def __str__(self) -> str:
        return ", ".join(f"`{package}`" for package in self.packages.split())

    def missing(self, root: Path) -> str:
        is_there = any(map(shutil.which, self.names))
        return "" if is_there else f"no {' or '.join(self.names)} (apt-get install {self.packages})"


@dataclass(frozen=True)
class Environment:
    """The folder .venv-NAME, which a target of the Makefile makes."""

    name: str
    target: str

    def __str__(self) -> str:
        return f"`make {self.target}`"

    def missing(self, root: Path) -> str:
        is_there = (root / f".venv-{self.name}" / ".ready").exists()
        return "" if is_there else f"no .venv-{self.name} (make {self.target})"


@dataclass(frozen=True)
class Disk:
    gigabytes: int

    def __str__(self) -> str:
        return f"{self.gigabytes} GB of free disk"

    def missing(self, root: Path) -> str:
        free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
        return "" if free >= self.gigabytes else f"{free:.0f} GB of free disk, needs {self.gigabytes}"


@dataclass(frozen=True)
class Memory:
    gigabytes: int

    def __str__(self) -> str:
        return f"{self.gigabytes} GB of memory"

    def missing(self, root: Path) -> str:
        total = (total_memory_bytes() or 0) / 1e9
        return "" if total >= self.gigabytes else f"{total:.0f} GB of memory, needs {self.gigabytes}"


@dataclass(frozen=True)
class Processor:
    """A feature by its name in Linux's /proc/cpuinfo."""

    feature: str

    def __str__(self) -> str:
        return f"a processor with `{self.feature}`"

    def missing(self, root: Path) -> str:
        cpuinfo = Path("/proc/cpuinfo")
        features = cpuinfo.read_text().split() if cpuinfo.exists() else []
        return "" if self.feature in features else f"no {self.feature} in this processor"


# --- The tiers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tier:
    """`name` is its target in the Makefile. `closing` finds passed and failed in what a program other than pytest
    prints; a program without such a line counts as one test."""

    name: str
    proves: str
    covers: tuple[str, ...]
    needs: tuple[Need, ...] = ()
    is_pytest: bool = True
    closing: re.Pattern[str] | None = None

    def missing(self, root: Path) -> str:
        return "; ".join(filter(None, (need.missing(root) for need in self.needs)))


def package(*rooms: str) -> tuple[str, ...]:
    return tuple(f"src/minicpm/{room}" for room in rooms)


PINS = ("constraints.txt", "pyproject.toml", "tests/conftest.py")
NATIVE = ("CMakeLists.txt", "csrc", "src/minicpm/native")
# All that an LLM needs.
ENGINE = (
    *(*PINS, *NATIVE),
    *package("assets", "chat", "engine", "errors.py", "export", "files.py", "formats", "hub", "models", "quant"),
    *package("sampling", "tokenizer"),
)
NATIVE_TESTS = ("tests/engine/backends", "tests/isas.py", "tests/sampling", "tests/small_models.py")
REPLAY = (*NATIVE_TESTS, "cmake", "tests/arm", "tests/generated.py", "tests/isa_matrix.py", "tests/replaying.py")
PEERS = ("tests/environments.py", "tests/small_models.py")

COMPILER = Command(("g++",), "g++")
ARM_COMPILER = Command(("aarch64-linux-gnu-g++",), "g++-aarch64-linux-gnu")
QEMU = Command(("qemu-aarch64-static",), "qemu-user-static")
WINE = Command(("wine",), "wine wine64")
CHROMIUM = Command(("chromium", "google-chrome", "chromium-browser"), "chromium")

TIERS = (
    Tier(
        "test",
        "fast and parity tests: every room, and whole models beside independent oracles",
        covers=(
            *(*PINS, *NATIVE, "Makefile", "README.md", "benchmarks", "cmake", "docs", "examples", "nano"),
            *("src/minicpm", "tests"),
        ),
    ),
    Tier(
        "test-triton",
        "kernels of the torch backend, in Triton's interpreter; they compile for GPUs",
        covers=(*ENGINE, *NATIVE_TESTS),
        needs=(Environment("triton", ".venv-triton/.ready"),),
    ),
    Tier(
        "test-cross",
        "the engine for Windows gives this machine's bits in wine; for macOS it compiles and links",
        covers=(*ENGINE, *REPLAY, *PEERS, "tests/cross"),
        needs=(WINE, Environment("zig", "cross")),
    ),
    Tier(
        "test-arm",
        "ARM's kernels give this machine's bits, and ARM's wheel its answers, emulated by qemu",
        covers=(*PINS, *NATIVE, *REPLAY, "src/minicpm", "tests/wheel"),
        needs=(ARM_COMPILER, QEMU),
    ),
    Tier(
        "test-wheel",
        "wheels with and without the native engine answer in an environment of their own",
        covers=(*PINS, *NATIVE, "LICENSE", "README.md", "src/minicpm", "tests/wheel"),
        needs=(COMPILER,),
        is_pytest=False,
    ),
    Tier(
        "native-avxvnni-check",
        "AVX-VNNI kernels, by AVX-512's encoding of the same instruction",
        covers=(*ENGINE, *NATIVE_TESTS),
        needs=(COMPILER, Processor("avx512_vnni")),
    ),
    Tier(
        "native-sanitize",
        "the native engine's tests under the address and undefined behaviour sanitizers",
        covers=(*ENGINE, *NATIVE_TESTS),
        needs=(COMPILER,),
    ),
    Tier(
        "native-thread-sanitize",
        "the native engine's tests under the thread sanitizer",
        covers=(*ENGINE, *NATIVE_TESTS),
        needs=(COMPILER,),
    ),
    Tier(
        "fuzz",
        "600 s of damaged model files: each one is answered or refused, within limits of memory and time",
        covers=(*ENGINE, "tests/fuzz", "tests/small_gguf.py", "tests/small_models.py"),
        needs=(COMPILER,),
        is_pytest=False,
        closing=re.compile(r"^(?P<cases>\d+) cases in .*\n.* (?P<failed>\d+) findings$", re.MULTILINE),
    ),
    Tier(
        "test-browser",
        "the pages of server, demo and MiniCPM-nano in a real Chromium",
        covers=(*ENGINE, *package("cli", "demo", "server"), "tests/browser", "tests/demo", "tests/server"),
        needs=(CHROMIUM,),
    ),
    Tier(
        "test-peers",
        "our files in llama.cpp and mlx-lm; our server asked by llm, litellm, lm-eval and LangChain",
        covers=(
            *(*ENGINE, *PEERS, *package("cli", "doctor", "eval", "server"), "benchmarks/peers", "tests/peers"),
            *("tests/broken_models.py", "tests/byte_level.py", "tests/server", "tests/small_gguf.py"),
        ),
        needs=(
            *(Environment(name, "peers") for name in ("llamacpp", "mlx")),
            *(Environment(name, "clients") for name in ("llm", "litellm", "lmeval", "langchain")),
        ),
    ),
    Tier(
        "test-real",
        "a really trained model (SmolLM2-135M): its tokenizer, every verb, logits beside transformers and llama.cpp",
        covers=(
            *(*ENGINE, *PEERS, *package("bench", "cli", "eval", "progress.py", "sandbox", "server"), "tests/real"),
            *("benchmarks/peers", "benchmarks/real_weights.py", "benchmarks/texts", "tests/benchmark_scripts.py"),
            *("tests/peers/llamacpp_answers.py", "tests/peers/llamacpp_tokenizes.py", "tests/byte_level.py"),
        ),
        needs=(Environment("real", "real"), Environment("llamacpp", "peers")),
    ),
    Tier(
        "test-vllm",
        "our models in vLLM: from Python, by its server, in the demo",
        covers=(*ENGINE, *PEERS, *package("cli", "demo", "server"), "benchmarks/peers", "tests/vllm"),
        needs=(Environment("vllm", "vllm"),),
    ),
    Tier(
        "test-slow",
        "true MiniCPM-2B shapes: every verb, every format, the same tokens; the server under load",
        covers=(
            *(*PINS, *NATIVE, "src/minicpm", "benchmarks/make_model.py", "benchmarks/outliers.py"),
            *("nano/held-out.jsonl", "tests/benchmark_scripts.py", "tests/server", "tests/slow"),
        ),
        needs=(Disk(25), Memory(12)),
    ),
)


# --- Records -----------------------------------------------------------------------------------------------------


def read_records(root: Path) -> dict[str, Record]:
    path = root / RECORDS
    records: dict[str, Record] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return records


def written(records: dict[str, Record]) -> str:
    """A line for each tier, so that a new record changes one line."""
    lines = (f"{json.dumps(name)}: {json.dumps(record, sort_keys=True)}" for name, record in sorted(records.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def save(tiers: Sequence[Tier], root: Path, name: str, record: Record) -> None:
    records = {**read_records(root), name: record}
    write_text(root / RECORDS, written(records))
    write_document(tiers, root)


def write_document(tiers: Sequence[Tier], root: Path) -> None:
    document = (root / DOCUMENT).read_text(encoding="utf-8")
    write_text(root / DOCUMENT, with_section(document, SECTION, tables(tiers, read_records(root))))


def contents(root: Path, covers: Sequence[str]) -> dict[str, str]:
    """A hash of every covered path: of the names and contents of the files there that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *covers]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    written_here = {RECORDS.as_posix(), DOCUMENT.as_posix()}
    names = sorted({name for name in listed if name and name not in written_here and (root / name).is_file()})
    blobs = {name: _blob((root / name).read_bytes()) for name in names}
    return {path: _hash_of(blobs, path) for path in covers}


def _blob(data: bytes) -> str:
    """Git's hash of a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _hash_of(blobs: dict[str, str], path: str) -> str:
    lines = [f"{name}\0{blob}\n" for name, blob in blobs.items() if name == path or name.startswith(f"{path}/")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def machine() -> str:
    """The processor and system of this machine, without a name of a host or a path."""
    device = this_device()
    memory = f"{device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else ""
    processors = f"{device.logical_processors} logical processors"
    return ", ".join(filter(None, (device.processor, processors, memory, f"{device.system} {platform.machine()}")))


# --- Running one -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """The exit code of a process, and the end of its output."""

    code: int
    is_interrupted: bool
    printed: str


_KEPT_BYTES = 1 << 16


def record(tiers: Sequence[Tier], name: str, root: Path) -> int:
    """Run a tier and write its record; return 0 if it passed."""
    (tier,) = (tier for tier in tiers if tier.name == name)
    if missing := tier.missing(root):
        print(f"{name} cannot run here: {missing}", file=sys.stderr)
        return 1
    known = {
        "contents": contents(root, tier.covers),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }
    # Stays where this process is killed.
    unfinished = {"passed": 0, "failed": 1, "skipped": {}, "seconds": 0, "problem": "did not finish"}
    save(tiers, root, name, {**known, **unfinished})
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minicpm-tier-") as folder:
        report = Path(folder) / "report.xml"
        ended = run(["make", "--no-print-directory", name], root, _environment(report))
        result = {**outcome(tier, ended, report, root), "seconds": round(time.monotonic() - start_s)}
    save(tiers, root, name, {**known, **result})
    print(f"{name}: {shown(result)}", file=sys.stderr)
    if ended.is_interrupted:
        return 128 + signal.SIGINT
    return 1 if result["failed"] else 0


def _environment(report: Path) -> dict[str, str]:
    """This process's, without what changes a tier: another record would be of other tests."""
    changing = re.compile(r"(GNU)?MAKE.*|MFLAGS|MINICPM_.*|PYTEST_ADDOPTS|FUZZ_SECONDS|ARM_RECORD")
    kept = {name: value for name, value in os.environ.items() if not changing.fullmatch(name)}
    return {**kept, "PYTEST_ADDOPTS": f"--junitxml={shlex.quote(str(report))}"}


def run(command: Sequence[str], root: Path, environment: dict[str, str]) -> Ended:
    """Run a command, showing what it prints. Signals to this process end it and all that it started."""
    received: list[int] = []
    tail = b""

    def forward(number: int, frame: object) -> None:
        os.killpg(process.pid, signal.SIGKILL if received else number)
        received.append(number)

    # Started after the handlers are there, so that nothing it starts ignores these signals.
    with _handled(forward):
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
        )
        assert process.stdout is not None
        with process.stdout as printed:
            # A process that outlives make may hold the pipe open.
            while select.select([printed], [], [], 0.2)[0] or process.poll() is None:
                if select.select([printed], [], [], 0)[0]:
                    data = os.read(printed.fileno(), 1 << 16)
                    if not data:
                        break
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                    tail = (tail + data)[-_KEPT_BYTES:]
        code = process.wait()
    return Ended(code, bool(received), tail.decode("utf-8", "replace"))


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before):
            signal.signal(number, old)


def outcome(tier: Tier, ended: Ended, report: Path, root: Path) -> Record:
    """Passed, failed and skipped; where the tests themselves don't say what went wrong, a problem, too.

    A tier that did not end well has at least one failure.
    """
    passed, failed, skipped = 0, 0, Counter[str]()
    is_counted = True
    if tier.is_pytest:
        is_counted = report.exists()
        if is_counted:
            passed, failed, skipped = read_report(report, root)
    elif tier.closing is not None:
        found = tier.closing.search(ended.printed)
        is_counted = found is not None
        if found is not None:
            failed = int(found["failed"])
            passed = int(found["cases"]) - failed
    else:
        passed, failed = (1, 0) if ended.code == 0 else (0, 1)
    problem = ""
    if ended.is_interrupted:
        problem = "interrupted"
    elif ended.code < 0:
        problem = f"make was killed by {signal.Signals(-ended.code).name}"
    elif ended.code and (not failed or not is_counted):
        problem = f"make ended with exit status {ended.code}"
    elif not is_counted:
        problem = "no result was written"
    elif not passed and not failed:
        problem = "no test passed"
    counts = {"passed": passed, "failed": max(failed, 1) if problem else failed, "skipped": dict(skipped)}
    return {**counts, "problem": problem} if problem else counts


def read_report(report: Path, root: Path) -> tuple[int, int, Counter[str]]:
    """Passed, failed, and the skipped by their reasons, of pytest's JUnit XML."""
    suites = ET.parse(report).getroot()
    failed: set[tuple[str | None, str | None]] = set()
    skipped = Counter[str]()
    for case in suites.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add((case.get("classname"), case.get("name")))  # its call and its teardown are cases of their own
        elif (reason := case.find("skipped")) is not None:
            skipped[without_paths(reason.get("message", ""), root)] += 1
    # A test that was interrupted is a case like one that passed, but the suite doesn't count it.
    passed = 0
    for suite in suites.iter("testsuite"):
        ended, *others = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
        passed += max(0, ended - sum(others))
    return passed, len(failed), skipped


def without_paths(text: str, root: Path) -> str:
    """One line without the paths of this machine; what lies in the tree keeps its name there."""
    inside = text.replace(f"{root}/", "")
    return " ".join(re.sub(r"(?<![\w.:/-])/[^\s'\",;:()]+", "a path", inside).split())


# --- Showing -----------------------------------------------------------------------------------------------------


def shown(record: Record) -> str:
    counts = f"{record['passed']:,} passed, {record['failed']:,} failed, {sum(record['skipped'].values()):,} skipped"
    problem = f" ({record['problem']})" if "problem" in record else ""
    return f"{counts}{problem} in {duration(record['seconds'])}"


def duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def status(tier: Tier, records: dict[str, Record], root: Path) -> tuple[str, str]:
    """fresh, stale, failed or absent, and the reason."""
    record = records.get(tier.name)
    if record is None:
        return "absent", ""
    now, then = contents(root, tier.covers), record["contents"]
    changed = sorted(path for path in {*now, *then} if now.get(path) != then.get(path))
    about = f"{record['date']}, {shown(record)}"
    if changed:
        about = f"{about}; changed since: {', '.join(changed)}"
    if record["failed"]:
        return "failed", about
    return ("stale" if changed else "fresh"), about


def print_statuses(tiers: Sequence[Tier], root: Path) -> None:
    records = read_records(root)
    for tier in tiers:
        word, about = status(tier, records, root)
        missing = tier.missing(root) if word != "fresh" else ""
        parts = filter(None, (about, f"cannot run here: {missing}" if missing else ""))
        print(f"{tier.name:24s} {word:7s} {'; '.join(parts)}".rstrip())


def record_all(tiers: Sequence[Tier], root: Path) -> int:
    """Those without a fresh record that can run here; 0 where all of these passed."""
    code = 0
    for tier in tiers:
        word, _ = status(tier, read_records(root), root)
        if word == "fresh":
            print(f"{tier.name}: its record is fresh", file=sys.stderr)
        elif missing := tier.missing(root):
            print(f"{tier.name} cannot run here: {missing}", file=sys.stderr)
        else:
            found = record(tiers, tier.name, root)
            if found > 1:  # interrupted
                return found
            code = max(code, found)
    return code


def tables(tiers: Sequence[Tier], records: dict[str, Record]) -> str:
    """The tiers, their last records, and what those skipped."""
    lines = ["| tier | proves | needs |", "|---|---|---|"]
    for tier in tiers:
        lines.append(f"| `make {tier.name}` | {tier.proves} | {', '.join(dict.fromkeys(map(str, tier.needs)))} |")
    lines += ["", "| tier | passed | failed | skipped | took | date | machine |", "|---|--:|--:|--:|--:|---|---|"]
    for tier in tiers:
        record = records.get(tier.name)
        if record is None:
            lines.append(f"| `{tier.name}` | no record | | | | | |")
            continue
        failed = f"{record['failed']:,}" + (f" ({record['problem']})" if "problem" in record else "")
        skipped = sum(record["skipped"].values())
        cells = (f"{record['passed']:,}", failed, f"{skipped:,}", duration(record["seconds"]), record["date"])
        lines.append(f"| `{tier.name}` | {' | '.join(cells)} | {record['machine']} |")
    reasons = [
        f"- `{tier.name}`: {reason} ({count:,})"
        for tier in tiers
        for reason, count in sorted(records.get(tier.name, {}).get("skipped", {}).items())
    ]
    lines += ["", "Skipped in these runs:", "", *reasons] if reasons else []
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, tiers: Sequence[Tier] = TIERS, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("record")
    one.add_argument("tier", choices=[tier.name for tier in tiers])
    commands.add_parser("record-all")
    commands.add_parser("document")
    args = parser.parse_args(arguments)
    if args.command == "record":
        return record(tiers, args.tier, root)
    if args.command == "record-all":
        return record_all(tiers, root)
    if args.command == "document":
        write_document(tiers, root)
    else:
        print_statuses(tiers, root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
