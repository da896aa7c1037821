"""The tokens that penalties count: presence and frequency only the answer, repetition also the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm import native
from minicpm.sampling import Sampler, SamplingParams

V = 40
IDS = st.integers(0, V - 1)
PROMPTS = st.lists(IDS, max_size=20)
PENALTY = st.floats(-2, 2, width=32)


@pytest.fixture(scope="module", params=["native", "numpy"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which of the two draws: C++, or its reference in numpy."""
    if request.param == "native" and native.why_missing():
        pytest.skip(f"no native engine: {native.why_missing()}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "numpy":
            monkeypatch.setattr(native, "why_missing", lambda: "left out by the test")
        yield str(request.param)


def answer(params: SamplingParams, prompt_ids: list[int], logits: np.ndarray, count: int = 30) -> list[int]:
    """Tokens sampled one after another from the same logits (V,), at places that don't depend on the prompt."""
    sampler = Sampler(params, 11, prompt_ids)
    return [sampler.sample(logits, position).token_id for position in range(count)]


def some_logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(V).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(prompt=PROMPTS, presence=PENALTY, frequency=PENALTY, temperature=st.sampled_from([0.0, 1.0]), seed=IDS)
def test_a_prompt_changes_nothing_for_presence_and_frequency(engine, prompt, presence, frequency, temperature, seed):
    params = SamplingParams(
        temperature=temperature,
        top_p=1.0,
        repetition_penalty=1.0,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    assert answer(params, prompt, some_logits(seed)) == answer(params, [], some_logits(seed))


@settings(max_examples=40, deadline=None)
@given(prompt=PROMPTS, token_ids=st.lists(IDS, min_size=1, max_size=20), presence=PENALTY, frequency=PENALTY)
def test_beside_a_repetition_penalty_they_count_the_answer_alone(engine, prompt, token_ids, presence, frequency):
    """The scores are found from outside: a greedy token is the best of logits less their penalties."""
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.5, presence_penalty=presence, frequency_penalty=frequency
    )
    sampler = Sampler(params, 0, prompt)
    for token_id in token_ids:
        sampler.accept(token_id)
    logits = some_logits(len(prompt))
    expected = logits.copy()
    seen = np.unique([*prompt, *token_ids])
    expected[seen] = np.where(logits[seen] < 0, logits[seen] * np.float32(1.5), logits[seen] / np.float32(1.5))
    counts = np.bincount(token_ids, minlength=V).astype(np.float32)
    expected -= np.where(counts > 0, counts * np.float32(frequency) + np.float32(presence), np.float32(0))
    assert sampler.sample(logits, 0).token_id == int(expected.argmax())


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_either_penalty_alone_keeps_an_answer_from_saying_a_word_twice(engine: str, name: str):
    logits = np.linspace(0.0, 1.0, V, dtype=np.float32)
    params = replace(SamplingParams(temperature=0.0, repetition_penalty=1.0), **{name: 2.0})
    assert answer(params, [0, 1], logits, V) == [*range(V - 1, -1, -1)]


def test_frequency_grows_with_every_occurrence_and_presence_does_not(engine: str):
    logits = np.array([1.0, 0.0], np.float32)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.0)
    assert answer(replace(params, frequency_penalty=0.3), [], logits, 5) == [0, 0, 0, 0, 1]
    assert answer(replace(params, presence_penalty=0.9), [], logits, 5) == [0, 0, 0, 0, 0]


def test_a_logit_of_zero_is_not_moved_by_a_repetition_penalty(engine: str):
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    assert answer(params, [0], np.array([0.0, -0.5], np.float32), 1) == [0]
