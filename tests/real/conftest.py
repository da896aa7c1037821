"""A trained model as a GGUF file and as a folder, and what other programs compute of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import benchmark_scripts
import byte_level
from environments import ROOT, TRAINED_MODEL


@pytest.fixture(scope="session")
def gguf_file() -> Path:
    return TRAINED_MODEL


@pytest.fixture(scope="session")
def weights() -> ModuleType:
    """benchmarks/real_weights.py: the reference, the texts, llama.cpp."""
    return benchmark_scripts.load("real_weights")


@pytest.fixture(scope="session")
def float_folder(weights: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder in float32 that transformers wrote."""
    return weights.float_folder(TRAINED_MODEL, tmp_path_factory.mktemp("real") / "float")


@pytest.fixture(scope="session")
def folder(float_folder: Path) -> Path:
    """The same in bfloat16, as models are published."""
    destination = float_folder.parent / "bfloat16"
    minicpm("convert", float_folder, destination, "--to", "llama", "--dtype", "bfloat16")
    return destination


@pytest.fixture(scope="session")
def reference(weights: ModuleType, float_folder: Path) -> object:
    return weights.Reference(float_folder)


@pytest.fixture(params=["gguf", "folder"])
def model(request: pytest.FixtureRequest) -> Path:
    """The model in both forms that people bring."""
    return request.getfixturevalue("gguf_file" if request.param == "gguf" else "folder")


@pytest.fixture(scope="session")
def llamacpp() -> Callable[[Path, list[str]], list[list[int]]]:
    """What llama.cpp makes of texts: ids by its own tokenizer."""

    def ids_of(file: Path, texts: list[str]) -> list[list[int]]:
        script = ROOT / "tests" / "peers" / "llamacpp_tokenizes.py"
        python = ROOT / ".venv-llamacpp" / "bin" / "python"
        request = json.dumps({"file": str(file), "texts": texts})
        done = subprocess.run([python, script], input=request, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return ids_of


def minicpm(*arguments: str | Path, stdin: str = "") -> str:
    """The stdout of a verb that ends well."""
    command = [sys.executable, "-m", "minicpm", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def odd_texts() -> list[str]:
    return byte_level.odd_texts(10_000)
