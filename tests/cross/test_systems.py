"""The engine, compiled for Windows, gives the bits of this machine's under wine; for macOS it compiles and links.

`make test-cross` runs this. It needs the compiler that `make cross` sets up, and wine; it is the engine without Python,
since a Python for those systems cannot be had here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from environments import needing, python_of
from minicpm import native
from replaying import BUILD_TOOLS, ROOT, Cases, built_replay, recorded_cases, require_equal

EMULATOR = "wine"
MISSING = [tool for tool in BUILD_TOOLS if shutil.which(tool) is None]

pytestmark = [
    *needing("zig", "zig", mark="cross", target="cross"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}"),
]


def built_for(system: str, processor: str, target: str) -> Path:
    build = ROOT / "build" / f"{system.lower()}-replay"
    compiler = f"{python_of('zig')};{Path(__file__).with_name('zig_cxx.py')}"
    options = {"CMAKE_SYSTEM_NAME": system, "CMAKE_SYSTEM_PROCESSOR": processor, "CMAKE_CXX_COMPILER": compiler}
    built_replay(build, {**options, "CMAKE_CXX_COMPILER_TARGET": target})
    return build


@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"not installed: {EMULATOR}")
def test_windows_gives_the_bits_recorded_here(tmp_path: Path):
    program = built_for("Windows", "AMD64", "x86_64-windows-gnu") / "replay.exe"
    cases: Cases = recorded_cases(tmp_path)
    environment = {**os.environ, "WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}
    result = subprocess.run([EMULATOR, program, cases.path], capture_output=True, text=True, env=environment)
    assert require_equal(result) == native.extension().runnable_isas()


def test_macos_compiles_and_links():
    program = built_for("Darwin", "arm64", "aarch64-macos.11.0") / "replay"
    assert program.read_bytes().startswith(bytes.fromhex("cffaedfe 0c000001"))  # Mach-O, 64-bit ARM
