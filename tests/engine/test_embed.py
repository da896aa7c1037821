"""Embeddings: the mean of the last hidden states, the same bits on the integer backends and close to them on torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm import LLM, native
from minicpm.errors import GenerationError
from minicpm.export.quantize import quantize_folder

BACKENDS = ["numpy"] if native.why_missing() else ["native", "numpy"]
TEXTS = ["hello", "Which city is the capital?", "山东省最高的山", "a b c"]


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "minicpm2b_tied"


@pytest.fixture(scope="module")
def quantized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("embed") / "int8"
    quantize_folder(folder, destination, preset="int8")
    return destination


def some_ids(count: int) -> list[int]:
    return np.random.default_rng(count).integers(3, 1000, count).tolist()


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_an_embedding_is_the_mean_of_the_last_hidden_states(folder: Path, backend: str):
    torch = pytest.importorskip("torch")
    from minicpm.models import load_model

    llm = LLM(folder, backend=backend, dtype="float32")
    model = load_model(folder, dtype="float32")
    vectors = llm.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), model.config.hidden_size) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors):
        with torch.no_grad():
            states = model(torch.tensor([llm.tokenizer.encode(text)]), output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(vector, states.mean(dim=0).numpy(), rtol=1e-4, atol=1e-4)


def test_the_head_of_hidden_states_gives_the_logits(quantized: Path):
    llm = LLM(quantized, backend="numpy")
    ids = some_ids(9)
    from minicpm.engine.backend import Row

    (states,) = llm.backend.hidden_states([Row(llm.backend.new_sequence(9), ids)])
    logits = llm.backend._head(states * np.float32(llm.backend.config.logit_scale))
    np.testing.assert_array_equal(logits, llm.logits(ids))


@pytest.mark.skipif(len(BACKENDS) == 1, reason="no native engine")
def test_the_native_engine_gives_the_bits_of_the_numpy_engine(quantized: Path):
    texts = [*TEXTS, some_ids(700)]
    one, other = (LLM(quantized, backend=backend).embed(texts) for backend in BACKENDS)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_alone_together_and_in_chunks_the_vectors_are_the_same(quantized: Path, backend: str):
    llm = LLM(quantized, backend=backend)
    texts = [*TEXTS, some_ids(600), *TEXTS, some_ids(500), some_ids(13)]
    together = llm.embed(texts)
    for text, vector in zip(texts, together):
        np.testing.assert_array_equal(llm.embed([text])[0], vector)
    np.testing.assert_array_equal(llm.embed("hello"), together[:1])
    np.testing.assert_array_equal(llm.embed([llm.tokenizer.encode("hello")]), together[:1])


def test_quantized_embeddings_are_near_those_of_the_model(folder: Path, quantized: Path):
    exact, near = LLM(folder, backend="numpy").embed(TEXTS), LLM(quantized, backend="numpy").embed(TEXTS)
    cosines = (exact * near).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    assert (cosines > 0.99).all()


def test_texts_that_cannot_be_embedded_are_refused(quantized: Path):
    llm = LLM(quantized, backend="numpy", context=20)
    with pytest.raises(ValueError, match="no texts"):
        llm.embed([])
    with pytest.raises(GenerationError, match="empty"):
        llm.embed(["hello", ""])
    with pytest.raises(GenerationError, match="text 2 has 21 tokens, more than the context's 20"):
        llm.embed(["hello", [5] * 21])
