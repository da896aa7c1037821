"""Damages model files and opens each through the public door, in a process of its own with limits.

    python tests/fuzz/run.py --seconds 600            # as `make fuzz` does
    python tests/fuzz/run.py --case int4:17           # one again, with its traceback

A case is a seed's name and a number, and always the same damage. Whatever a file holds, opening, reading every tensor,
and (where all that succeeds) computing a token must end in an answer or in a MiniCPMError: anything else is a finding,
and so are a crash, a hang, memory beyond what the size of the file explains, and bits that differ between the native
and the numpy engine. Findings are kept beside a copy of the damaged file.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import faulthandler
import functools
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# A child of fork has one thread, so the libraries here must have no more. Set before they are imported.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from fuzz import mutations
from fuzz.seeds import make_seeds
from minicpm import LLM, native
from minicpm.errors import MiniCPMError
from minicpm.formats.checkpoint import open_checkpoint

Target = Callable[[], None]

ANSWERED, REFUSED, FOUND = 0, 3, 4  # how a case's process ends
IS_SANITIZED = "san.so" in os.environ.get("LD_PRELOAD", "")
CPU_LIMIT_S, WALL_LIMIT_S = (40, 300) if IS_SANITIZED else (5, 60)
_PR_SET_PDEATHSIG = 1
# What a model may take: so much, and so many times its bytes on the disk, and its mapped size.
BASE_BYTES, BYTES_PER_BYTE = 64 << 20, 40


@dataclass(frozen=True)
class Outcome:
    """`kind` is answered, refused or a kind of finding; `text` the error's message or traceback."""

    kind: str
    text: str = ""

    @property
    def is_finding(self) -> bool:
        return self.kind not in ("answered", "refused")


def load_and_answer(path: Path, is_exact: bool = True) -> None:
    """What a user does with a model: open, read all of it, split a text, compute a token, on both engines.

    Both give the same bits if `is_exact`.
    """
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name).float32().sum()
            checkpoint.release(name)
        is_quantized = bool(checkpoint.packings)
    backend = "native" if is_quantized and native.why_missing() is None else "numpy"
    llm = LLM(path, backend=backend, threads=1 if backend == "native" else None)
    llm.tokenizer.decode(llm.tokenizer.encode("ab c"))
    found = llm.logits([0])
    if backend == "native" and is_exact:
        expected = LLM(path, backend="numpy").logits([0])
        if not np.array_equal(found, expected, equal_nan=True):
            raise AssertionError("the native and the numpy engine give different bits")


# --- cases -------------------------------------------------------------------------------------------------------


def make_case(seeds: dict[str, Path], name: str, number: int, root: Path) -> Target:
    """What a user does with the damaged copy of a seed. MINICPM_HOME is set for it."""
    rng = random.Random(f"{name}:{number}")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    os.environ["MINICPM_HOME"] = str(root / "home")
    seed = seeds[name]
    if name == "packed":  # the cache is damaged: it belongs to this very folder
        shutil.copytree(seed.parent / "packed-home", root / "home")
        path, files = seed, sorted((root / "home" / "packed").iterdir())
    elif seed.is_dir():
        path = Path(shutil.copytree(seed, root / "model"))
        files = sorted(path.iterdir())
    else:
        path = Path(shutil.copy(seed, root / "model.gguf"))
        files = [path]
    # Weights, and the lists of them, oftener than the small files beside them.
    likely = [3 if file.suffix in (".safetensors", ".gguf") or file.name == "config.json" else 1 for file in files]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutations.damage_file(rng, rng.choices(files, likely)[0])
    # The weights in a packed file that carries the right key are not looked at again: they may be wrong, not unsafe.
    is_exact = name != "packed" or not has_same_key(seed.parent / "packed-home", root / "home")
    return functools.partial(load_and_answer, path, is_exact)


def has_same_key(home: Path, other: Path) -> bool:
    """Whether the packed files of two homes begin alike and are as long."""
    one, two = (_key_and_size(next((folder / "packed").glob("*.bin"), folder)) for folder in (home, other))
    return one is not None and one == two


def _key_and_size(file: Path) -> tuple[bytes, int] | None:
    if file.is_symlink() or not file.is_file():
        return None
    with file.open("rb") as opened:
        return opened.read(4096), file.stat().st_size


def cases(names: list[str]) -> Iterator[tuple[str, int]]:
    """Every seed in turn, for ever."""
    number = 0
    while True:
        for name in names:
            yield name, number
        number += 1


# --- processes ---------------------------------------------------------------------------------------------------


def run_case(target: Target, root: Path) -> Outcome:
    """What `target` comes to in a process with limits; the files under `root` explain its memory."""
    reader, writer = os.pipe()
    limit_bytes = _mapped_bytes() + BASE_BYTES + _allowance(root)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_a_case(writer, target, limit_bytes)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        handle = os.pidfd_open(child)
        is_over = bool(select.select([handle], [], [], WALL_LIMIT_S)[0])
        os.close(handle)
        if not is_over:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        text = pipe.read(1 << 16).decode("utf-8", "replace")
    if not is_over:
        return Outcome("hang", f"no end within {WALL_LIMIT_S} s; " + text)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind = "hang" if number in (signal.SIGXCPU, signal.SIGALRM) else "crash"
        return Outcome(kind, f"{signal.Signals(number).name}\n{text}")
    known = {ANSWERED: "answered", REFUSED: "refused", FOUND: "error"}
    code = os.WEXITSTATUS(status)
    if code not in known:
        return Outcome("crash", f"exit status {code}\n{text}")
    kind = "over-allocation" if code == FOUND and "MemoryError" in text else known[code]
    return Outcome(kind, text)


def _be_a_case(writer: int, target: Target, limit_bytes: int) -> None:
    """The child: it never returns."""
    code = FOUND
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a fuzzer that is killed leaves no child behind
        os.dup2(writer, 2)
        faulthandler.enable(file=2)
        # A sanitizer reserves address space without end; it is there for other faults.
        if not IS_SANITIZED:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            target()
            code = ANSWERED
        except MiniCPMError as error:
            code = REFUSED
            os.write(writer, str(error).encode("utf-8", "backslashreplace")[:4000])
        except MemoryError:
            os.write(writer, b"MemoryError\n" + traceback.format_exc(limit=-6).encode()[:8000])
        except BaseException:
            os.write(writer, traceback.format_exc().encode("utf-8", "backslashreplace")[:16000])
    finally:
        os._exit(code)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _allowance(root: Path) -> int:
    """Memory that the files explain: a mapping of each, and a multiple of what really lies on the disk."""
    statuses = [file.lstat() for file in root.rglob("*") if file.is_symlink() or not file.is_dir()]
    return sum(2 * s.st_size + BYTES_PER_BYTE * 512 * s.st_blocks for s in statuses)


# --- a run -------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    counts: collections.Counter[tuple[str, str]]
    refusals: set[str]
    findings: list[tuple[str, Outcome]]
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        names = sorted({name for name, _ in self.counts})
        for name in names:
            yield f"{name:16s}" + "".join(
                f" {kind} {count:6d}" for (of, kind), count in sorted(self.counts.items()) if of == name
            )
        total = sum(self.counts.values())
        rate = total / max(self.seconds, 1e-9)
        yield f"{total} cases in {self.seconds:.0f} s ({rate:.0f} a second)"
        yield f"{len(self.refusals)} different refusals, {len(self.findings)} findings"


def fuzz(
    seeds: dict[str, Path],
    root: Path,
    is_enough: Callable[[int, float], bool],
    keep: Path | None = None,
    first: int = 0,
) -> Report:
    """Run cases until `is_enough(cases, seconds)`."""
    report = Report(collections.Counter(), set(), [])
    start_s = time.monotonic()
    for done, (name, number) in enumerate(cases(list(seeds))):
        report.seconds = time.monotonic() - start_s
        if is_enough(done, report.seconds):
            return report
        target = make_case(seeds, name, number + first, root / "case")
        outcome = run_case(target, root / "case")
        report.counts[name, outcome.kind] += 1
        if outcome.kind == "refused":
            report.refusals.add("".join(c for c in outcome.text.replace(str(root), "") if not c.isdigit())[:90])
        if outcome.is_finding:
            label = f"{name}:{number + first}"
            report.findings.append((label, outcome))
            if keep is not None:
                print(f"FOUND {label} {outcome.kind}\n{outcome.text}", flush=True)
                with suppress(OSError, shutil.Error):
                    shutil.copytree(root / "case", keep / label.replace(":", "-"), symlinks=True, dirs_exist_ok=True)
    raise AssertionError("cases never end")


def warm_up(seeds: dict[str, Path], root: Path) -> None:
    """Import and allocate once, before the fork, what every case needs; and see that the seeds are good."""
    for name, seed in seeds.items():
        os.environ["MINICPM_HOME"] = str(root / "home")
        try:
            load_and_answer(seed)
        except MiniCPMError as error:
            raise AssertionError(f"the seed {name} is refused: {error}") from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--cases", type=int, help="so many instead")
    parser.add_argument("--only", nargs="+", metavar="SEED", help="damage these only")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each seed")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for damaged files that were found")
    parser.add_argument("--case", help="run this one only, in this process")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="minicpm-fuzz-") as folder:
        root = Path(folder)
        seeds = make_seeds(root)
        warm_up(seeds, root)
        seeds = {name: seed for name, seed in seeds.items() if not args.only or name in args.only}
        if args.case:
            name, number = args.case.rsplit(":", 1)
            make_case(seeds, name, int(number), root / "case")()
            return 0
        limit, seconds = args.cases, args.seconds
        report = fuzz(
            seeds, root, lambda done, s: done == limit or (limit is None and s >= seconds), args.keep, args.first
        )
    print(*report.lines(), sep="\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
