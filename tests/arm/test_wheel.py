"""The wheel for ARM, in Debian's Python for ARM under qemu, answers as the engine of this machine does.

`make test-arm` builds the wheel and unpacks that Python. What the wheel needs besides comes as pip on such a machine
gets it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm import native

ROOT = Path(__file__).parents[2]
EMULATOR = "qemu-aarch64-static"
SYSTEM = ROOT / "build" / "arm-root"
PYTHON = SYSTEM / "usr" / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
WHEELS = sorted((ROOT / "dist" / "arm").glob("*_aarch64.whl"))
PROCESSORS = {"max": "neoni8mm", "cortex-a76": "neondot", "cortex-a53": "generic"}

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"not installed: {EMULATOR}"),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON.name} for ARM in {SYSTEM} (make test-arm)"),
    pytest.mark.skipif(len(WHEELS) != 1, reason="not one wheel in dist/arm (make wheel-arm)"),
    pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}"),
]

ANSWER = ("-m", "minicpm", "run", "--backend", "native", "--temperature", "0", "What is the capital of Japan?")
LOGITS = (
    "-c",
    "import hashlib, minicpm; logits = minicpm.LLM(backend='native').logits(list(range(5, 75)));"
    "print(logits.shape, hashlib.sha256(logits.tobytes()).hexdigest())",
)
SMALL_PLAN = ("--prefill", "16", "--decode", "", "--batch", "", "--verify", "0", "--repeats", "1")
BENCH = ("-m", "minicpm", "bench", "--backend", "native", "--json", *SMALL_PLAN)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def ran(command: list[str | Path], home: Path, **variables: str | Path) -> str:
    """What a Python that must succeed prints, in an environment that knows nothing of this tree but `variables`."""
    environment = {"PATH": os.environ["PATH"], "HOME": home, "MINICPM_HOME": home, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(
        list(map(str, command)),
        cwd=home,
        env={name: str(value) for name, value in environment.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(*arguments: str, home: Path) -> str:
    return ran([sys.executable, *arguments], home, PYTHONPATH=ROOT / "src")


def emulated(processor: str, *arguments: str, home: Path, **variables: str | Path) -> str:
    return ran([EMULATOR, "-cpu", processor, "-L", SYSTEM, PYTHON, *arguments], home, **variables)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """A folder with the wheel and what it needs, chosen by pip for a machine with that system's glibc."""
    folder = tmp_path_factory.mktemp("installed")
    glibc = emulated("max", "-c", "import os; print(os.confstr('CS_GNU_LIBC_VERSION'))", home=home)
    newest = int(glibc.split(".")[1])
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, newest + 1))]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
    install += ["--only-binary=:all:", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, *(f"--platform={platform}" for platform in platforms), WHEELS[0]], check=True)
    return folder


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_wheel_answers_as_the_engine_here_does(installed: Path, home: Path, processor: str):
    answer = here(*ANSWER, home=home)
    assert "Tokyo" in answer
    assert emulated(processor, *ANSWER, home=home, PYTHONPATH=installed) == answer


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_wheels_logits_have_the_bits_of_the_engine_here(installed: Path, home: Path, processor: str):
    assert emulated(processor, *LOGITS, home=home, PYTHONPATH=installed) == here(*LOGITS, home=home)


@pytest.mark.parametrize(("processor", "isa"), PROCESSORS.items())
def test_bench_names_the_instruction_set_that_the_processor_has(installed: Path, home: Path, processor: str, isa: str):
    record = json.loads(emulated(processor, *BENCH, home=home, PYTHONPATH=installed))
    assert record["isa"] == isa
