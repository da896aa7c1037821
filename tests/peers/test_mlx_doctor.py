"""MLX folders with the known faults in real mlx-lm, before and after doctor. `make test-peers`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from broken_models import as_floats, nano_of_2024, spoil
from environments import needing, python_of
from minicpm.cli.main import main
from minicpm.export.convert import convert
from minicpm.tokenizer import Tokenizer

PYTHON = python_of("mlx")
TEXT = (
    "Pip was a brave little owl who lived by a quiet river. Every summer the others swam in the lake, but Pip stayed "
    "on the sand."
)

pytestmark = needing("mlx", "mlx-lm")


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nano")
    return as_floats(nano_of_2024(root / "int4"), root / "nano")


def asked(folder: Path, ids: list[int], quantized: Path | None = None) -> float | str:
    """Nats a token, or mlx-lm's error."""
    request = json.dumps({"folder": str(folder), "ids": ids, "quantized": quantized and str(quantized)})
    command = [PYTHON, Path(__file__).with_name("mlx_answers.py")]
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=600, check=False)
    return done.stderr if done.returncode else float(json.loads(done.stdout.splitlines()[-1])["nats"])


def repaired(broken: Path, destination: Path) -> Path:
    assert main(["doctor", str(broken), "--fix", str(destination)]) == 0
    return destination


def test_a_folder_of_mlx_says_what_mlx_lm_needs_after_the_repair(nano: Path, tmp_path: Path):
    ids = Tokenizer.from_folder(nano).encode(TEXT)
    convert(nano, tmp_path / "granite", to="granite")
    sound = asked(tmp_path / "granite", ids, tmp_path / "sound")
    assert isinstance(sound, float)

    # As the releases of 2024 are: no word of the head and of the base.
    spoil(nano, tie_word_embeddings=..., rope_theta=...)
    before = asked(nano, ids, tmp_path / "2024")
    assert isinstance(before, float) and before > sound + 0.04
    # Its head was rounded to 4 bits by itself, where granite's is the embedding: 0.817 nats for 0.825, before 0.888.
    assert asked(repaired(tmp_path / "2024", tmp_path / "2024-repaired"), ids) == pytest.approx(sound, abs=0.015)

    # A tied head.
    kept = json.loads((tmp_path / "sound" / "config.json").read_text())
    spoil(nano, tie_word_embeddings=True, quantization=kept["quantization"])
    (tmp_path / "sound" / "config.json").write_bytes((nano / "config.json").read_bytes())
    assert "lm_head.weight" in str(asked(tmp_path / "sound", ids))
    assert asked(repaired(tmp_path / "sound", tmp_path / "tied-repaired"), ids) == sound
