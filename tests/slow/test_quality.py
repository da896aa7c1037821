"""The quality bounds of the presets on MiniCPM-nano with outlier channels, on held-out text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmark_scripts import load
from minicpm import LLM, native
from minicpm.export.quantize import quantize_folder
from minicpm.hub import embedded
from minicpm.quant.format import PRESETS
from minicpm.quant.quality import Comparison

outliers = load("outliers")

pytestmark = pytest.mark.slow

HELD_OUT = Path(__file__).parents[2] / "nano" / "held-out.jsonl"
TEXT_TOKENS = 100
ENGINE = "numpy" if native.why_missing() else "native"  # the same bits
SEED = 1  # not that of benchmarks/quality.py


def predictions(folder: Path, backend: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits, and the tokens that came, of the beginnings of held-out texts."""
    llm = LLM(folder, backend=backend)
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "text" in record:
            ids = llm.tokenizer.encode(record["text"])[:TEXT_TOKENS]
            yield llm.logits(ids[:-1]), np.array(ids[1:])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    outliers.write_unrounded(embedded.folder(), folder / "float", SEED)
    for scale in (1, 100):
        outliers.write_outlier_copy(folder / "float", folder / f"scaled-{scale}", scale, SEED)
    return folder


@pytest.fixture(scope="module")
def reference(work: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(predictions(work / "float", "numpy"))


def compared(folder: Path, backend: str, reference: list[tuple[np.ndarray, np.ndarray]]) -> Comparison:
    comparison = Comparison()
    for (expected, targets), (found, _) in zip(reference, predictions(folder, backend)):
        comparison.add(expected, found, targets)
    return comparison


def test_a_scaled_copy_of_nano_predicts_what_nano_predicts(work: Path, reference: list[tuple[np.ndarray, np.ndarray]]):
    found = compared(work / "scaled-100", "numpy", reference)
    assert found.tokens > 1000
    assert found.max_kl < 1e-8
    assert found.top1_agreement > 0.999


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_loses_no_more_with_outliers_than_without(
    work: Path, reference: list[tuple[np.ndarray, np.ndarray]], preset: str
):
    found = {}
    for scale in (1, 100):
        quantize_folder(work / f"scaled-{scale}", work / f"{preset}-{scale}", preset=preset)
        found[scale] = compared(work / f"{preset}-{scale}", ENGINE, reference)
    # docs/quantization.md calls this surviving. Chance alone moves a KL by a tenth.
    assert found[100].kl <= 2 * found[1].kl
    assert found[1].kl < {"int4": 0.06, "int4-small": 0.16, "int4-hf": 0.1, "int8": 0.002}[preset]
