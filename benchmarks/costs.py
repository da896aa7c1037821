"""Run a command as a whole process and record what it cost; write results with the machine they came from."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("minicpm", "torch", "transformers", "tokenizers", "safetensors", "numpy")
SAMPLE_INTERVAL_S = 0.02
# Written by nano/stages.py while a model trains in the background: "pid start-ticks what".
TRAINING = ROOT / "runs" / "training.pid"


@dataclass(frozen=True)
class Cost:
    """Of one process: wall-clock, CPU of it and its children, and the two kinds of memory at their peaks.

    File pages (memory-mapped weights) are shared with every other process and can be dropped by the system;
    private memory cannot.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_private_bytes: int
    stdout: str


def measure(command: list[str], *, stdin: str = "", timeout_s: float = 3600) -> Cost:
    """Run `command` to its end. Raises RuntimeError with the end of its output if it fails."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        peaks = {"VmHWM": 0, "RssAnon": 0}
        sampler = threading.Thread(target=_sample, args=(process, peaks), daemon=True)
        sampler.start()
        before = os.times()
        out, err = process.communicate(stdin, timeout=timeout_s)
    sampler.join()
    after = os.times()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {err[-2000:]}")
    cpu_s = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return Cost(time.perf_counter() - start, cpu_s, peaks["VmHWM"], peaks["RssAnon"], out)


def _sample(process: subprocess.Popen[str], peaks: dict[str, int]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)
        time.sleep(SAMPLE_INTERVAL_S)


def require_idle_machine() -> None:
    """Exit with a sentence if a model is being trained in this checkout, unless it is paused."""
    try:
        pid, ticks, what = TRAINING.read_text(encoding="utf-8").strip().split(" ", 2)
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):
        return
    if fields[18] == ticks and state not in "TtZX":  # the same process, and neither stopped nor ended
        sys.exit(
            f"{what} is running in process {pid} and would disturb what is measured; pause it first: "
            "python nano/stages.py pause (afterwards: continue)"
        )


def machine() -> dict[str, object]:
    """The machine, and the versions of everything besides our code."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_results(
    name: str, rows: list[dict[str, object]], note: str, *, is_preparation: bool = False, **more: object
) -> Path:
    """Write benchmarks/results/NAME.json, whole or not at all; `more` is kept beside the rows, which are the report.

    A preparation run only tries a benchmark. It gets a file of its own, NAME.preparation.json, which git ignores and
    report.py leaves out.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'.preparation' if is_preparation else ''}.json"
    content = {
        "benchmark": name,
        "commit": commit_of(ROOT),
        "command": shlex.join(["python", *map(_portable, sys.argv)]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "note": note,
        "preparation": is_preparation,
        "rows": rows,
        **more,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def commit_of(tree: Path) -> str:
    """The commit of a checkout, with "-dirty" behind it where files differ from it that a measurement depends on."""
    git = ["git", "-C", str(tree)]
    found = subprocess.run(
        [*git, "describe", "--always", "--exclude", "*"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        return "unknown"
    code = ["--", ".", ":!benchmarks/results", ":!tests/tiers.json", ":!*.md"]
    is_dirty = subprocess.run([*git, "diff", "--quiet", "HEAD", *code], check=False).returncode
    return found.stdout.strip() + ("-dirty" if is_dirty else "")


def _portable(word: str) -> str:
    """An argument as anyone may type it: of an absolute path what lies in this checkout, or else its name."""
    option, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    return option + equals + (path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name)


def row(what: str, cost: Cost, **more: object) -> dict[str, object]:
    """A result row of `cost` without what the process printed."""
    numbers = asdict(cost)
    del numbers["stdout"]
    return {"what": what, **{name: round(value, 2) for name, value in numbers.items()}, **more}
