"""Prompts with embeddings in place of token ids: their parts, and their treatment by the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.test_lookup import drafts_of_any_length
from minicpm import LLM, SamplingParams, native
from minicpm.engine.backend import KVSequence, Row, flat_ids
from minicpm.engine.lookup import Guesses
from minicpm.engine.prompt import EmbeddingSpan, MixedIds, checked_ids, embeddings_of, token_ids_of
from minicpm.engine.request import Completion
from minicpm.engine.service import Service
from minicpm.errors import GenerationError
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint

BACKENDS = ["numpy"] if native.why_missing() else ["native", "numpy"]
GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, ignore_eos=True, seed=1)


def numbers(positions: int, hidden: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((positions, hidden), np.float32)


# --- Spans and ids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("embeddings", "key", "message"),
    [
        (numbers(3).astype(np.float64), b"k", r"must be a float32 array \(positions, hidden\), got float64 \(3, 4\)"),
        (numbers(3)[0], b"k", r"must be a float32 array \(positions, hidden\), got float32 \(4,\)"),
        ([[1.0]], b"k", "must be a float32 array"),
        (numbers(0), b"k", "1 to 16777216 positions, got 0"),
        (np.float32([[1, np.nan]]), b"k", "must be finite"),
        (np.float32([[1, -np.inf]]), b"k", "must be finite"),
        (numbers(3), b"", "key must be one or more bytes"),
        (numbers(3), "k", "key must be one or more bytes"),
    ],
)
def test_a_span_of_anything_else_is_refused(embeddings, key, message: str):
    with pytest.raises(ValueError, match=message):
        EmbeddingSpan(embeddings, key)


def test_a_span_keeps_numbers_of_its_own():
    source = numbers(3)
    span = EmbeddingSpan(source, b"k")
    source[:] = 7
    assert np.array_equal(span.embeddings, numbers(3))
    with pytest.raises(ValueError, match="read-only"):
        span.embeddings[0, 0] = 1


def test_content_ids_are_those_of_key_length_and_place():
    spans = {(key, n): EmbeddingSpan(numbers(n), key).content_ids for key in (b"a", b"b") for n in (5, 6)}
    assert spans[b"a", 5] == EmbeddingSpan(numbers(5, seed=1), b"a").content_ids
    ids = [i for span in spans.values() for i in span]
    assert len({*ids}) == len(ids) == 22
    assert max(ids) < 0


def test_a_prompt_of_token_ids_is_a_list():
    assert checked_ids([1, 2, np.int64(3)], 9, 4) == [1, 2, 3]


@pytest.mark.parametrize(
    ("parts", "embedding_size", "message"),
    [
        ([], 4, "there are no token ids"),
        ([1, 9], 4, "token id 9 is outside the vocabulary of 9"),
        ([1, -1], 4, "token id -1 is outside the vocabulary of 9"),
        (EmbeddingSpan(numbers(2), b"k").content_ids, 4, "is outside the vocabulary"),
        ([1, EmbeddingSpan(numbers(2, 5), b"k")], 4, "have 5 numbers per position, but this model's hidden size is 4"),
        (
            [1, EmbeddingSpan(numbers(2), b"k")],
            None,
            "takes only token ids; for embeddings use the backend native, torch",
        ),
    ],
)
def test_a_prompt_that_a_model_cannot_read_is_refused(parts, embedding_size, message: str):
    with pytest.raises(GenerationError, match=message):
        checked_ids(parts, 9, embedding_size)


parts = st.lists(
    st.integers(0, 8)
    | st.builds(
        lambda n, seed: EmbeddingSpan(numbers(n, seed=seed), bytes([seed])), st.integers(1, 6), st.integers(0, 3)
    ),
    min_size=1,
    max_size=8,
)


@given(parts=parts, data=st.data())
def test_slices_keep_the_embeddings_of_their_positions(parts, data):
    whole = checked_ids(parts, 9, 4)
    vectors = [v for part in parts for v in (part.embeddings if isinstance(part, EmbeddingSpan) else [None])]
    start, stop = (data.draw(st.integers(-len(whole), len(whole))) for _ in range(2))
    part = whole[start:stop]
    expected = [v for v in vectors[start:stop] if v is not None]
    assert [*part] == [*whole][start:stop]
    assert isinstance(part, MixedIds) == bool(expected)
    if expected:
        assert np.array_equal(embeddings_of(part), expected)
        more = [1, 2]
        longer = part + more
        assert [*longer] == [*part, *more] and np.array_equal(embeddings_of(longer), expected)
    assert token_ids_of(whole) == [part for part in parts if isinstance(part, int)]


@given(st.lists(parts, min_size=1, max_size=3))
def test_a_batch_counts_its_content_ids_through(prompts):
    rows = [Row(KVSequence(9), checked_ids(prompt, 9, 4)) for prompt in prompts]
    ids, embeddings = flat_ids(rows)
    wanted = [v for prompt in prompts for part in prompt for v in getattr(part, "embeddings", [part])]
    assert len(ids) == len(wanted)
    for i, expected in zip(ids, wanted):
        assert np.array_equal(embeddings[-1 - i], expected) if i < 0 else i == expected
    assert (embeddings is None) == all(isinstance(part, int) for prompt in prompts for part in prompt)


# --- What a model computes of them -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spans") / "int4"
    quantize_folder(golden / "minicpm2b_tied", folder)
    return folder


def loaded(folder: Path, backend: str, **options) -> LLM:
    return LLM(folder, backend=backend, threads=1 if backend == "native" else None, **options)


@pytest.fixture(scope="module", params=BACKENDS)
def llm(quantized: Path, request: pytest.FixtureRequest) -> LLM:
    return loaded(quantized, request.param)


@pytest.fixture(scope="module")
def span_of(quantized: Path) -> Callable[..., EmbeddingSpan]:
    """A span with the embeddings of tokens, multiplied by scale_emb."""
    checkpoint = open_checkpoint(quantized, allow_quantized=True)
    from minicpm.engine.backends.numpy import NumpyBackend

    backend = NumpyBackend(checkpoint)
    return lambda ids, key=b"k": EmbeddingSpan(backend._embed(list(ids), None), key)


def answers(completion: Completion) -> Completion:
    return replace(
        completion, timings=None, usage=replace(completion.usage, cached_tokens=0, drafted_tokens=0, accepted_tokens=0)
    )  # type: ignore[arg-type]


TEXT = [5, 6, 7, 8, 300, 301, 302, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 5, 6]


def test_a_span_of_scaled_token_embeddings_answers_like_the_tokens(llm: LLM, span_of, monkeypatch: pytest.MonkeyPatch):
    """Chunks cut the span in the middle."""
    monkeypatch.setattr("minicpm.engine.scheduler.PREFILL_CHUNK_TOKENS", 5)
    mixed = [*TEXT[:4], span_of(TEXT[4:20]), *TEXT[20:]]
    params = replace(GREEDY, temperature=1.0, max_tokens=12, logprobs=2)
    found, expected = llm.generate([mixed], params)[0], llm.generate([TEXT], params)[0]
    assert answers(found) == answers(expected)
    assert found.usage.prompt_tokens == len(TEXT)
    assert np.array_equal(llm.logits(mixed), llm.logits(TEXT))
    assert np.array_equal(llm.embed([mixed]), llm.embed([TEXT]))


def test_the_same_picture_is_reused_and_another_is_not(llm: LLM, span_of):
    """Whatever stands behind it, across requests; equal tokens never stand in for it."""
    cat, dog = span_of(range(60, 90), b"cat"), span_of(range(100, 130), b"dog")
    llm.drop_cache()
    llm.generate([[5, cat, 7, 8]], GREEDY, max_tokens=4)
    for prompt, cached in (
        ([5, dog, 7, 8], 1),
        ([5, *range(60, 90), 7, 8], 1),
        ([5, cat, 7, 9, 9], 32),
    ):
        found = llm.generate([prompt], GREEDY, max_tokens=4)[0]
        # numpy reuses an idle text only as a whole, and only if enough of it is in common.
        assert found.usage.cached_tokens == (cached if cached > 1 or llm.backend.name == "native" else 0)
        fresh = loaded(llm.folder, llm.backend.name).generate([prompt], GREEDY, max_tokens=4)[0]
        assert found.ids == fresh.ids


def test_an_answer_to_a_picture_continues_in_the_next_turn(llm: LLM, span_of):
    cat = span_of(range(60, 90), b"cat")
    llm.drop_cache()
    first = llm.generate([[5, cat, 7, 8]], GREEDY, max_tokens=9)[0]
    again = llm.generate([[5, cat, 7, 8, *first.ids, 20, 21]], GREEDY, max_tokens=2)[0]
    assert again.usage.cached_tokens == 33 + 8  # the last token's keys and values were never computed


def test_penalties_count_the_tokens_of_a_prompt_and_no_span(llm: LLM, span_of):
    prompt = [5, 6, span_of([300, 301, 302]), 7]
    logits = llm.logits(prompt)[-1]
    seen = [5, 6, 7]
    # So strong that what counts as seen is never taken.
    penalized = logits.copy()
    penalized[seen] = np.where(logits[seen] < 0, logits[seen] * 2, logits[seen] / 2)
    found = llm.generate([prompt], GREEDY, max_tokens=1, repetition_penalty=2.0, logprobs=0)[0]
    assert found.ids == (int(penalized.argmax()),)
    counted = llm.new_request(prompt, replace(GREEDY, repetition_penalty=2.0), is_chat=False)._sampler._context
    assert counted is not None and sorted(counted.ids_below(llm.backend.vocab_size)) == seen


def test_prompt_logprobs_leave_a_span_out(llm: LLM, span_of):
    """What `echo` shows: the prompt's tokens, those behind a span predicted by it."""

    def scores(prompt):
        work = llm.prompt_logprobs_in_steps([prompt], 2, lambda: 7)
        while True:
            try:
                next(work)
            except StopIteration as done:
                return done.value[0]

    whole = scores(TEXT)
    assert scores([*TEXT[:4], span_of(TEXT[4:20]), *TEXT[20:]]) == [*whole[:4], *whole[20:]]
    assert scores([span_of(TEXT[:20]), *TEXT[20:]]) == whole[20:]
    assert scores([*TEXT[:20], span_of(TEXT[20:])]) == whole[:20]


def test_continuations_of_a_span_are_scored_and_a_span_is_none(llm: LLM, span_of):
    span = span_of(TEXT[2:])
    continuations = [[9], [10, 11]]
    expected = llm.loglikelihood([(TEXT, continuations)])
    assert llm.loglikelihood([([*TEXT[:2], span], continuations)]) == expected
    with pytest.raises(GenerationError, match="a continuation must have only token ids"):
        llm.loglikelihood([([5], [[span]])])


def test_a_span_that_the_context_cannot_hold_is_refused(llm: LLM, span_of):
    span = span_of([5] * llm.context_length)
    with pytest.raises(GenerationError, match=f"has {llm.context_length + 1} tokens, but the context holds"):
        llm.generate([[5, span]])
    with pytest.raises(GenerationError, match="hidden size is"):
        llm.generate([[5, EmbeddingSpan(numbers(2), b"k")]])
    with pytest.raises(GenerationError, match="token id -5 is outside"):
        llm.generate([[5, -5]])


def test_a_backend_without_embeddings_refuses_spans(llm: LLM, span_of, monkeypatch: pytest.MonkeyPatch):
    from minicpm.engine.backends.vllm import VllmBackend

    monkeypatch.setattr(llm, "backend", SimpleNamespace(vocab_size=400, embedding_size=VllmBackend.embedding_size))
    with pytest.raises(
        GenerationError, match="takes only token ids; for embeddings use the backend native, torch or numpy"
    ):
        llm.new_request([5, span_of([6])], GREEDY, is_chat=False)


def test_requests_with_spans_that_give_way_for_lack_of_memory_say_what_they_say_alone(llm: LLM, span_of):
    spans = [span_of(range(60, 90), b"cat"), span_of(range(100, 125), b"dog")]
    prompts = [[5, spans[0], 6, 7], [spans[1], 8], [5, spans[0], 12]]
    params = replace(GREEDY, temperature=1.0, max_tokens=100, logprobs=1)
    crowded = loaded(llm.folder, llm.backend.name, kv_cache_bytes=256 * llm.backend.cache_bytes_per_token)
    scheduler = crowded.new_scheduler()
    for index, prompt in enumerate(prompts):
        scheduler.add(crowded.new_request(prompt, params, is_chat=False, index=index))
    found = {}
    while scheduler.is_busy:
        found |= {piece.index: piece.completion for _, piece in scheduler.step() if piece.completion is not None}
    assert scheduler.work.preemptions > 0
    for index, prompt in enumerate(prompts):
        assert answers(found[index]) == answers(llm.generate([prompt], params)[0])


def test_a_service_takes_spans(llm: LLM, span_of):
    prompt = [5, span_of(range(60, 90)), 7]
    expected = llm.generate([prompt], GREEDY, max_tokens=5)[0]
    pieces, errors = [], []
    with Service(llm) as service:
        service.submit(
            prompt, replace(GREEDY, max_tokens=5), on_piece=pieces.append, on_error=errors.append, is_chat=False
        )
    assert not errors and pieces[-1].completion.ids == expected.ids


# --- Prompt lookup -----------------------------------------------------------------------------------------------


def test_no_guess_goes_from_or_into_a_span():
    span = EmbeddingSpan(numbers(3), b"k").content_ids
    guesses = Guesses()
    guesses.read([1, 2, 3, *span, 4, 5, 6, 1, 2])
    assert guesses.propose(9) == [3]
    guesses.read([3])
    assert guesses.propose(9) == []
    guesses.read(span)
    assert guesses.propose(9) == []  # although 4, 5, 6 followed the last time
    guesses.read([4])
    assert guesses.propose(9) == []
    guesses.read([5])
    assert guesses.propose(3) == [6, 1, 2]


def test_answers_with_lookup_are_those_without(quantized: Path, span_of, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 3)
    prompts = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, span_of([7, 8] * 5), 5, 6], [9, 10, 11, 9, 10, 11, span_of([9, 10])]]
    params = replace(GREEDY, max_tokens=40, logprobs=1)
    found, expected = (LLM(quantized, threads=1, lookup=lookup).generate(prompts, params) for lookup in ("auto", "off"))
    assert sum(one.usage.drafted_tokens for one in found) > 0
    assert [*map(answers, found)] == [*map(answers, expected)]
