"""A short part of the fuzzer's work, always the same; `make fuzz` does the rest. And that it sees what it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
CASES = 96  # eight of each seed


def test_damaged_files_are_answered_or_refused(tmp_path: Path):
    command = [sys.executable, str(RUN), "--cases", str(CASES), "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{CASES} cases in" in done.stdout and done.stdout.endswith(" 0 findings\n")
    # Most are refused, for many reasons; some change nothing that matters.
    assert done.stdout.count("answered") > 5 and done.stdout.count("refused") > 8


FAULTS = {
    "ctypes.string_at(1)": "crash",
    "os.abort()": "crash",
    "os._exit(7)": "crash",
    "exec('while True: pass')": "hang",
    "time.sleep(60)": "hang",
    "bytearray(1 << 28)": "over-allocation",
    "[0] * (1 << 28)": "over-allocation",
    "{}['a']": "error",
    "int('x')": "error",
    "sys.exit(0)": "error",
    "open_checkpoint('nowhere')": "refused",
    "None": "answered",
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the fuzzer says of each fault."""
    code = (
        "import ctypes, json, os, pathlib, sys, time\n"
        f"sys.path.insert(0, {str(RUN.parents[1])!r})\n"
        "from fuzz import run\n"
        "from minicpm.formats.checkpoint import open_checkpoint\n"
        "run.CPU_LIMIT_S, run.WALL_LIMIT_S = 1, 5\n"
        "def outcome(fault):\n"
        f"    return run.run_case(lambda: eval(fault), pathlib.Path({str(tmp_path_factory.mktemp('none'))!r})).kind\n"
        "print(json.dumps({fault: outcome(fault) for fault in json.loads(sys.argv[1])}))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(list(FAULTS))]
    kinds: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return kinds


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_seen(fault: str, seen: dict[str, str]):
    assert seen[fault] == FAULTS[fault]
