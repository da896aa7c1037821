"""Eight thousand tokens on MiniCPM-nano's weights, stretched by dynamic NTK: the engine against the torch model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minicpm import LLM, native
from minicpm.export.expand import expand
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded
from minicpm.models import MiniCPMForCausalLM

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}")

TOKENS = 8192


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano in bfloat16, made for four times its 2,048 positions."""
    path = tmp_path_factory.mktemp("nano")
    with open_checkpoint(embedded.folder(), allow_quantized=True) as checkpoint:
        expand(checkpoint, path, "bfloat16")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["rope_scaling"] = {"type": "dynamic", "factor": 4.0}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ids() -> list[int]:
    """One long text."""
    llm = LLM(context=64)
    text = Path(__file__).parents[2].joinpath("docs", "numerics.md").read_text(encoding="utf-8")
    found = llm.tokenizer.encode(text, add_bos=True)
    return (found * (TOKENS // len(found) + 1))[:TOKENS]


@pytest.fixture(scope="module")
def expected(folder: Path, ids: list[int]) -> np.ndarray:
    """Log-probabilities (T, vocab) of the torch model in float32, with the base of 8,192 tokens."""
    model = MiniCPMForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), rope_length=TOKENS, use_cache=False).logits[0]
        return torch.log_softmax(logits, dim=-1).numpy()


def divergences(expected: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(expected || found) of every position, nats."""
    found = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
    return (np.exp(expected) * (expected - found)).sum(axis=1)


@pytest.mark.parametrize(("kv_dtype", "limit"), [("int8", 2e-4), ("bfloat16", 5e-5)])
def test_every_position_of_8192_is_near_the_torch_model(
    folder: Path, ids: list[int], expected: np.ndarray, kv_dtype: str, limit: float
):
    llm = LLM(folder, backend="native", kv_cache_dtype=kv_dtype)
    assert llm.context_length == TOKENS
    kl = divergences(expected, llm.logits(ids))
    for part in np.split(kl, 8):  # no part of the text is worse than the others
        assert part.mean() < limit


def test_without_the_stretched_base_it_is_another_model(folder: Path, ids: list[int], expected: np.ndarray):
    """The test above can fail: it detects a base that is not stretched."""
    model = MiniCPMForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:4096]]), rope_length=2048, use_cache=False).logits[0].numpy()
    assert divergences(expected[:4096], logits)[2048:].mean() > 0.01
