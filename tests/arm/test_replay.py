"""The ARM kernels give the bits of this machine's: what the engine's tests ask and get here, asked again of an emulated
processor. `make test-arm` runs this; it needs a cross compiler and qemu's user emulation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import isa_matrix
from minicpm import native

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
MISSING = [tool for tool in (COMPILER, EMULATOR, "cmake", "ninja") if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}"),
]

# What compares with the numpy engine, a chat with nano, and draws: all that the kernels do, and nothing that spoils it.
RECORDED_FILES = ("tests/engine/test_native.py", "tests/test_sampling_native.py")
RECORDED_TESTS = (
    "numpys_bits or extreme_codes or without_any_weight or not_finite or reaches_no_token or change_nothing"
    " or next_turn_of_a_chat or draws_are_those_of_the_reference"
)


@pytest.fixture(scope="module")
def replay() -> Path:
    """The program, for ARM, linked so that it needs no ARM libraries; built again only where something changed."""
    build = ROOT / "build" / "arm-replay"
    options = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "aarch64-linux-gnu.cmake",
        "CMAKE_EXE_LINKER_FLAGS": "-static",
        "MINICPM_REPLAY": "ON",
        "MINICPM_WERROR": "ON",
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defined], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    return build / "replay"


@dataclass(frozen=True)
class Cases:
    """What the tests asked and got, and what of the kernels they proved thereby, each with the tests that did."""

    path: Path
    proved: dict[str, list[str]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """Of this machine's generic kernels; the tests have to pass."""
    path = tmp_path_factory.mktemp("arm") / "cases.bin"
    record = path.with_name("record.json")
    plugin = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([plugin, *filter(None, [os.environ.get("PYTHONPATH")])])}
    environment.pop("MINICPM_ISA", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "recorder", "--record", path]
    command += ["--isa-record", record, "--isa-place", "here", "-k", RECORDED_TESTS]
    subprocess.run([*command, *RECORDED_FILES], check=True, cwd=ROOT, env=environment)
    return Cases(path, isa_matrix.read(record)["here"]["generic"])


def replayed(replay: Path, cases: Path, processor: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([EMULATOR, "-cpu", processor, replay, cases], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("processor", "isas"),
    [
        ("max", ["neoni8mm", "neondot", "generic"]),
        ("cortex-a76", ["neondot", "generic"]),
        ("cortex-a53", ["generic"]),
    ],
)
def test_an_emulated_processor_gives_the_bits_recorded_here(
    replay: Path, cases: Cases, processor: str, isas: list[str], record_property: Callable[[str, object], None]
):
    result = replayed(replay, cases.path, processor)
    assert result.returncode == 0, result.stderr
    first, *compared = result.stdout.splitlines()
    assert first.split() == isas
    assert [line.split(":")[0] for line in compared] == isas
    for line in compared:
        numbers, draws = (int(word) for word in line.split() if word.isdecimal())
        assert numbers > 1_000_000 and draws > 100, line
    for isa in isas:
        for proved, tests in cases.proved.items():
            for test in tests:
                record_property("proves", (f"qemu {processor}", isa, proved, test))


def test_one_wrong_bit_is_found(replay: Path, cases: Cases, tmp_path: Path):
    """The file ends with a draw: its id, the last word, becomes the next one."""
    wrong = bytearray(cases.path.read_bytes())
    wrong[-8] ^= 1
    (tmp_path / "wrong.bin").write_bytes(wrong)
    result = replayed(replay, tmp_path / "wrong.bin", "cortex-a76")
    assert result.returncode == 1
    assert "neondot: record" in result.stderr and "draws" in result.stderr
