"""Nothing allocates on the token path: once the native engine has run a step size, it allocates nothing for it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm import native
from minicpm.export.quantize import quantize_folder
from small_models import EVEN, write_model

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}"),
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heap_calls.c replaces glibc's functions"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler for heap_calls.c"),
]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[int]]]:
    """Calls of the heap within Model::forward, of models with quantized and with float weights, by step."""
    home = tmp_path_factory.mktemp("allocations")
    library = home / "heap_calls.so"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", HERE / "heap_calls.c", "-o", library], check=True)
    quantize_folder(write_model(home / "float32", EVEN), home / "int4-hf", preset="int4-hf")
    floats = write_model(home / "bfloat16", EVEN.with_dtype("bfloat16"))
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, HERE / "heap_steps.py", home / "int4-hf", floats]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    found: list[dict[str, list[int]]] = json.loads(done.stdout)
    return found


def test_a_step_of_a_known_size_asks_for_no_memory(calls):
    for found in calls:
        for name, counts in found.items():
            if name not in ("the first step", "a longer step than before"):
                assert counts and not any(counts), name


def test_the_counter_sees_the_memory_of_a_larger_step(calls):
    """The test above can fail: the engine's memory comes from the functions that are counted."""
    for found in calls:
        assert found["the first step"][0] > 0 and found["a longer step than before"][0] > 0
