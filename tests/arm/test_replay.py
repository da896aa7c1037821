"""The ARM kernels give the bits of this machine's: what the engine's tests ask and get here, asked again of an emulated
processor. `make test-arm` runs this; it needs a cross compiler and qemu's user emulation.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm import native
from replaying import BUILD_TOOLS, ROOT, Cases, built_replay, recorded_cases, require_equal

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
MISSING = [tool for tool in (COMPILER, EMULATOR, *BUILD_TOOLS) if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}"),
]


@pytest.fixture(scope="module")
def replay() -> Path:
    """The program, for ARM, linked so that it needs no ARM libraries; built again only where something changed."""
    build = ROOT / "build" / "arm-replay"
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    built_replay(build, {"CMAKE_TOOLCHAIN_FILE": toolchain, "CMAKE_EXE_LINKER_FLAGS": "-static"})
    return build / "replay"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return recorded_cases(tmp_path_factory.mktemp("arm"))


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
    assert require_equal(replayed(replay, cases.path, processor)) == isas
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
