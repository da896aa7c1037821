"""tests/arm/replay.cc, the engine without Python: built for another processor or system, asked what tests ask here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import isa_matrix

ROOT = Path(__file__).parents[1]
BUILD_TOOLS = ("cmake", "ninja")

# What compares with the numpy engine, a chat with nano, and draws: all that the kernels do, and nothing that spoils it.
RECORDED_FILES = ("tests/engine/backends/test_native.py", "tests/sampling/test_native.py")
RECORDED_TESTS = (
    "numpys_bits or extreme_codes or without_any_weight or not_finite or reaches_no_token or change_nothing"
    " or next_turn_of_a_chat or draws_are_those_of_the_reference"
)


def built_replay(build: Path, options: dict[str, str | Path]) -> None:
    """Build the program in a folder, warnings being errors; built again only where something changed."""
    defined = [
        f"-D{name}={value}" for name, value in {"MINICPM_REPLAY": "ON", "MINICPM_WERROR": "ON", **options}.items()
    ]
    subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defined], check=True)
    subprocess.run(["cmake", "--build", build], check=True)


@dataclass(frozen=True)
class Cases:
    """What the tests asked and got, and what of the kernels they proved thereby, each with the tests that did."""

    path: Path
    proved: dict[str, list[str]]


def recorded_cases(folder: Path) -> Cases:
    """Of this machine's generic kernels; the tests have to pass."""
    path, record = folder / "cases.bin", folder / "record.json"
    plugin = str(ROOT / "tests" / "arm")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([plugin, *filter(None, [os.environ.get("PYTHONPATH")])])}
    for name in ("MINICPM_ISA", "PYTEST_ADDOPTS"):  # the latter may name the report of the run that this one is part of
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "recorder", "--record", path]
    command += ["--isa-record", record, "--isa-place", "here", "-k", RECORDED_TESTS]
    subprocess.run([*command, *RECORDED_FILES], check=True, cwd=ROOT, env=environment)
    return Cases(path, isa_matrix.read(record)["here"]["generic"])


def require_equal(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The sets of kernels the program ran, all of them with the recorded bits."""
    assert result.returncode == 0, result.stderr
    first, *compared = result.stdout.splitlines()
    isas = first.split()
    assert [line.split(":")[0] for line in compared] == isas
    for line in compared:
        numbers, draws = (int(word) for word in line.split() if word.isdecimal())
        assert numbers > 1_000_000 and draws > 100, line
    return isas
