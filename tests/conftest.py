"""Data that tests share: golden tensors and the real tokenizer, unpacked once a session."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import pytest

pytest_plugins = ("isa_matrix",)

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
CONFIGS = TESTS / "data" / "configs"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of reference tensors; its README tells what wrote them."""
    return GOLDEN


@pytest.fixture(scope="session")
def real_configs() -> Path:
    """The configurations of 2024, a folder per model; SOURCE.md tells which are exact."""
    return CONFIGS


@pytest.fixture(scope="session")
def real_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the official MiniCPM-2B tokenizer files (122,753 pieces)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for file in (TESTS / "data" / "tokenizer" / "MiniCPM-2B").iterdir():
        if file.suffix == ".xz":
            (folder / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        else:
            shutil.copy(file, folder / file.name)
    return folder
