"""Makes small changes in a room, one at a time, and counts those that the room's tests notice.

    make mutate ROOM=server/guard.py                 # 40 mutations of one file
    make mutate ROOM=sampling COUNT=10 RECORD=1      # 10 of a folder, and its figure into tests/mutations.json
    make mutate ROOM=doctor TESTS=tests/cli/test_doctor.py

ROOM is a folder or file of src/minicpm. The operators are mutmut's. Its runner cannot import a package with a native
extension from a src folder, so only the operators are used. A fixed seed chooses the mutations: the same tree gives the
same ones. A string with a space in it is a message, whose wording no test fixes; it is left alone.

Every mutation is made in a copy of the package, which PYTHONPATH puts first; nothing in src is written. The tests are
those of the room: tests/ROOM, with the file of the same name first. They stop at the first failure, or after three
times the time that they take without a mutation, or when a process wants more than MEMORY_BYTES.

A mutation that no test notices is printed as a difference. Either a test is missing, or the program does the same with
the mutation and without it. An equivalent one is listed with its reason under "equivalent" in tests/mutations.json and
is not chosen again. The figures in that file are a record, no gate.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "mutations.json"
SEED = 2024
LEAST_TIMEOUT_S, TIMES_CLEAN = 20.0, 3.0
MEMORY_BYTES = 4 << 30  # of a process: a mutated size can ask for any amount
# Rooms whose tests, or some of them, stand in another folder than tests/ROOM.
ALSO_TESTED_IN = {
    "doctor": ("cli/test_doctor.py",),
    "eval/verification.py": ("cli/test_verify.py",),
    "files.py": ("test_files.py",),
    "formats": ("export/test_convert.py",),
    "hub/packed_files.py": ("engine/backends/test_packed.py",),
    "quant": ("export/test_quantize.py",),
    "sandbox": ("chat/test_hostile_templates.py",),
}


@dataclass(frozen=True)
class Mutation:
    """One change: line `line` of `file` (under the package) reads `new` in place of `old`; `source` is the whole."""

    file: str
    line: int
    old: str
    new: str
    source: str

    @property
    def key(self) -> str:
        """What names it in the record, wherever its line moves to."""
        return f"{self.file}: {self.old} -> {self.new}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n  - {self.old}\n  + {self.new}"


@dataclass(frozen=True)
class Report:
    survivors: tuple[Mutation, ...]
    total: int

    @property
    def killed(self) -> int:
        return self.total - len(self.survivors)


def mutations_of(package: Path, files: Sequence[Path], seed: int) -> Iterator[Mutation]:
    """The mutations of `files` by mutmut's operators, in a random order, without messages and annotations."""
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    makers = [(path, line, make) for path, source in sources.items() for line, make in _mutators(source)]
    random.Random(seed).shuffle(makers)
    seen = set(sources.values())
    for path, line, make in makers:
        mutated = make()
        if mutated not in seen and _compiles(mutated):
            yield mutation(path.relative_to(package).as_posix(), sources[path], mutated, line)
        seen.add(mutated)


def mutation(file: str, source: str, mutated: str, line: int | None = None) -> Mutation:
    """The change from one source to another; its lines are the first and the last that differ, joined."""
    old, new = source.splitlines(), mutated.splitlines()
    start = next(i for i, pair in enumerate(zip([*old, ""], [*new, ""])) if pair[0] != pair[1])
    end = next(i for i, pair in enumerate(zip(reversed(old), reversed(new))) if pair[0] != pair[1])
    end = min(end, len(old) - start, len(new) - start)
    joined = [" ".join(part.strip() for part in lines[start : len(lines) - end]) for lines in (old, new)]
    return Mutation(file, line or start + 1, joined[0], joined[1], mutated)


def _mutators(source: str) -> Iterator[tuple[int, Callable[[], str]]]:
    """Of every mutation its line, and what makes its source."""
    import libcst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.file_mutation import IgnoredCode, MutationVisitor, deep_replace, mutation_operators

    wrapper = MetadataWrapper(libcst.parse_module(source))
    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()))
    module = wrapper.visit(visitor)
    positions = wrapper.resolve(PositionProvider)
    for found in visitor.mutations:
        node = found.original_node
        if isinstance(node, libcst.SimpleString) and " " in node.value:
            continue
        position = positions.get(node)
        line = position.start.line if position else 1
        yield line, lambda found=found: deep_replace(module, found.original_node, found.mutated_node).code


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutated", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def judge(package: Path, mutations: Sequence[Mutation], command: Sequence[str], cwd: Path) -> Report:
    """Run `command` for each mutation, in a copy of `package`; those for which it succeeds are the survivors."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Path(folder, "src", package.name)
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy.parent),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder, "hypothesis")),
        }
        started_s = time.monotonic()
        clean = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, preexec_fn=_limit_memory
        )
        timeout_s = max(LEAST_TIMEOUT_S, TIMES_CLEAN * (time.monotonic() - started_s))
        if clean.returncode:
            raise SystemExit(f"the tests fail without a mutation:\n{clean.stdout[-4000:]}{clean.stderr[-4000:]}")
        survivors = []
        for number, one in enumerate(mutations, start=1):
            with _applied(one, copy):
                is_noticed = _fails(command, cwd, environment, timeout_s)
            print(f"{number}/{len(mutations)} {'killed' if is_noticed else 'SURVIVED'} {one}", file=sys.stderr)
            if not is_noticed:
                survivors.append(one)
    return Report(tuple(survivors), len(mutations))


@contextlib.contextmanager
def _applied(one: Mutation, copy: Path) -> Iterator[None]:
    path = copy / one.file
    source = path.read_bytes()
    try:
        _write(path, one.source.encode())
        yield
    finally:
        _write(path, source)


def _write(path: Path, source: bytes) -> None:
    """Python checks a compiled file by its source's size and time in seconds, which a mutation may share."""
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()
    path.write_bytes(source)


def _fails(command: Sequence[str], cwd: Path, environment: dict[str, str], timeout_s: float) -> bool:
    """Whether the command ends with an error, or not at all; the programs it started end with it."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,
        preexec_fn=_limit_memory,
    ) as process:
        try:
            return process.wait(timeout_s) != 0
        except subprocess.TimeoutExpired:
            return True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def tests_of(room: str) -> list[str]:
    """The tests of a room, under tests/, those that are named like its file first."""
    path = Path(room)
    folder = path if path.suffix != ".py" else path.parent
    found = [str(folder / f"test_{path.stem}.py"), str(folder)] if str(folder) != "." else []
    found += [file for place, files in ALSO_TESTED_IN.items() if path.is_relative_to(place) for file in files]
    return [str(Path("tests", name)) for name in found if (ROOT / "tests" / name).exists()]


def read_record() -> dict[str, dict[str, object]]:
    if not RECORD.exists():
        return {"figures": {}, "equivalent": {}}
    found: dict[str, dict[str, object]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def write_record(room: str, report: Report, seed: int) -> None:
    record = read_record()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    record["figures"][room] = {
        "killed": report.killed,
        "total": report.total,
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
    }
    record = {name: dict(sorted(entries.items())) for name, entries in record.items()}
    RECORD.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Which small changes of a room its tests do not notice.")
    parser.add_argument("room", help="a folder or file of src/minicpm")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the tests")
    parser.add_argument("--count", type=int, default=40, help="how many mutations are tried (40)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"chooses them ({SEED})")
    parser.add_argument("--tests", nargs="*", help="what to run in place of the room's own tests")
    parser.add_argument("--record", action="store_true", help="write the figure into tests/mutations.json")
    arguments = parser.parse_args()
    package = ROOT / "src" / "minicpm"
    room = Path(arguments.room.removeprefix("src/minicpm/"))
    files = [package / room] if room.suffix == ".py" else sorted((package / room).rglob("*.py"))
    if not files or not all(path.is_file() for path in files):
        parser.error(f"src/minicpm has no room {room}")
    tests = arguments.tests or tests_of(str(room))
    if not tests:
        parser.error(f"{room} has no tests of its own; name some with --tests")
    equivalent = read_record()["equivalent"]
    found = (one for one in mutations_of(package, files, arguments.seed) if one.key not in equivalent)
    chosen = list(itertools.islice(found, arguments.count))
    command = [arguments.python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    report = judge(package, chosen, command, ROOT)
    for one in report.survivors:
        print(one)
    print(f"{room}: {report.killed} of {report.total} mutations killed (seed {arguments.seed})")
    if arguments.record:
        write_record(str(room), report, arguments.seed)


if __name__ == "__main__":
    main()
