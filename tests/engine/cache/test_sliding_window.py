"""Sliding windows with attention sinks, against the published rule, implemented token by token on the torch model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from minicpm import LLM, SamplingParams, native
from minicpm.engine.backend import Row
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.errors import GenerationError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.models import MiniCPMForCausalLM
from small_models import EVEN, write_model

WINDOW = SlidingWindow(32, 16)
TOKENS = 150


class StreamingAttention:
    """Keys as they are before rotation; every query sees those in reach as if they stood at places 0, 1, 2, ...

    The cache of Xiao et al. 2023 for a window of whole blocks: what is out of reach is left out, what remains moves up.
    """

    def __init__(self, window: SlidingWindow, base: float):
        self.window, self.base = window, base

    def __call__(self, module, query, key, value, attention_mask, *, scaling, **kwargs):
        T, groups = query.shape[2], query.shape[1] // key.shape[1]
        key, value = (x[0].double().repeat_interleave(groups, 0) for x in (key, value))  # (H, T, D)
        outputs = []
        for p in range(T):
            first = max(self.window.sinks, (p // 16 - self.window.tokens // 16) * 16)
            seen = [*range(min(self.window.sinks, p + 1)), *range(first, p + 1)]
            places = torch.arange(len(seen))
            q = self.rotated(query[0, :, p : p + 1].double(), places[-1:])
            k = self.rotated(key[:, seen], places)
            weights = torch.softmax(q @ k.transpose(1, 2) * scaling, dim=-1)
            outputs.append((weights @ value[:, seen])[:, 0])
        return torch.stack(outputs)[None].to(query.dtype), None

    def rotated(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        frequencies = self.base ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = places[:, None] * frequencies
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("window") / "even", EVEN)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(0).integers(0, EVEN.vocab_size, TOKENS).tolist()


@pytest.fixture(scope="module")
def expected(folder: Path, ids: list[int]) -> Iterator[np.ndarray]:
    model = MiniCPMForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    AttentionInterface.register("streaming", StreamingAttention(WINDOW, EVEN.rope_theta))
    model.set_attn_implementation("streaming")
    with torch.inference_mode():
        # At place 0 nothing is rotated.
        yield model(torch.tensor([ids]), position_ids=torch.zeros(1, TOKENS, dtype=torch.long)).logits[0].numpy()


def logits(backend: NumpyBackend, ids: list[int], chunks: list[int]) -> np.ndarray:
    sequence, parts = backend.new_sequence(len(ids)), []
    for chunk in chunks:
        parts.append(backend.forward([Row(sequence, ids[sequence.length : sequence.length + chunk], "all")])[0])
    return np.concatenate(parts)


@pytest.mark.proves("sliding window", isa="numpy")
def test_the_window_is_that_of_the_paper(folder: Path, ids: list[int], expected: np.ndarray):
    backend = NumpyBackend(open_checkpoint(folder), window=WINDOW)
    found = logits(backend, ids, [TOKENS])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    whole = logits(NumpyBackend(open_checkpoint(folder)), ids, [TOKENS])
    assert np.abs(whole[:48] - expected[:48]).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(whole[-1] - expected[-1]).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
def test_the_rounded_caches_are_near_the_exact_one(folder: Path, ids: list[int], expected: np.ndarray, kv_dtype: str):
    backend = NumpyBackend(open_checkpoint(folder), is_exact=True, kv_dtype=kv_dtype, window=WINDOW)
    found = logits(backend, ids, [TOKENS])
    assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < 0.02


@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_the_bits_do_not_depend_on_the_steps(folder: Path, ids: list[int], kv_dtype: str, window: SlidingWindow | None):
    backend = NumpyBackend(open_checkpoint(folder), is_exact=True, kv_dtype=kv_dtype, window=window)
    whole = logits(backend, ids, [TOKENS])
    for chunks in ([1] * TOKENS, [40, 7, 64, 39], [17, 1, 1, 100, 31]):
        assert logits(backend, ids, chunks).tobytes() == whole.tobytes()


# --- LLM ---------------------------------------------------------------------------------------------------------


def load(backend: str) -> LLM:
    """Nano with a context ten times its own; the native engine holds two windows of it."""
    if backend == "native" and native.why_missing() is not None:
        pytest.skip(f"no native engine: {native.why_missing()}")
    bytes_of_a_token = LLM(backend=backend, context=64).backend.cache_bytes_per_token
    tokens = 2 * SlidingWindow(128).held_tokens if backend == "native" else 40_000
    return LLM(
        backend=backend, context=20_000, sliding_window=128, max_batch=2, kv_cache_bytes=tokens * bytes_of_a_token
    )


@pytest.fixture(scope="module", params=["native", "numpy"])
def llm(request: pytest.FixtureRequest) -> LLM:
    return load(request.param)


GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, ignore_eos=True, max_tokens=8)


def test_a_conversation_goes_on_past_the_context_and_each_turn_computes_what_is_new():
    llm = load("native")
    ids = np.random.default_rng(1).integers(1000, 6000, 6000).tolist()
    first = llm.generate([ids], GREEDY)[0]
    ids += first.ids
    second = llm.generate([[*ids, 5, 6, 7]], GREEDY)[0]
    assert second.usage.cached_tokens >= len(ids) - 1
    fresh = LLM(context=20_000, sliding_window=128)
    assert fresh.generate([[*ids, 5, 6, 7]], GREEDY)[0].ids == second.ids
    assert llm.steps.cache.usage().tokens == 2 * SlidingWindow(128).held_tokens


def test_texts_in_one_batch_are_those_alone(llm: LLM):
    prompts = [np.random.default_rng(n).integers(1000, 6000, 160 + 40 * n).tolist() for n in range(2)]
    together = [answer.ids for answer in llm.generate(prompts, GREEDY)]
    llm.drop_cache()
    assert [llm.generate([prompt], GREEDY)[0].ids for prompt in prompts] == together


def test_scores_are_those_of_the_logits(llm: LLM):
    ids = np.random.default_rng(2).integers(1000, 6000, 300).tolist()
    logits = llm.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1))[:, None]
    [[short, long]] = llm.loglikelihood([(ids[:10], [ids[10:200], ids[10:]])])
    for found, end in ((short, 200), (long, 300)):
        expected = sum(logprobs[place, ids[place + 1]] for place in range(9, end - 1))
        assert found.logprob == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"16 sinks reaches over 2080 positions, more than the 2048"):
        LLM(sliding_window=2048)
    with pytest.raises(ValueError, match="1048576 positions there are under a sliding window"):
        LLM(sliding_window=64, context=1 << 21)
    with pytest.raises(ValueError, match="with a sliding_window it may be longer"):
        LLM(context=4096)
    with pytest.raises(ValueError, match="multiple of 16"):
        LLM(sliding_window=64, attention_sinks=4)
    small = LLM(sliding_window=128, context=9000, kv_cache_bytes=1 << 19)
    with pytest.raises(GenerationError, match=f"may take {SlidingWindow(128).held_tokens} tokens"):
        small.generate([[5] * 3000], GREEDY)
