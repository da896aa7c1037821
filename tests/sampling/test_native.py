"""csrc/sampling.cc draws the tokens of its numpy reference, on every instruction set that runs here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isas import every_isa, runnable_isas
from minicpm import native
from minicpm.errors import GenerationError
from minicpm.sampling import Sampler, SamplingParams, draw_reference, uniform53
from sampling.warping import warped_scores

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}")

ISAS, EVERY_ISA = runnable_isas(), every_isa()
V = 122_753
MAX_WORD = (1 << 64) - 1


def drawn(isa: str, scores: np.ndarray, params: SamplingParams, seed: int, choice: int, position: int) -> int:
    token_id: int = native.extension().draw(
        isa, scores.copy(), params.temperature, params.top_k, params.top_p, params.min_p, seed, choice, position
    )
    return token_id


def some_scores(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "equal":
        return np.full(size, rng.standard_normal(), np.float32)
    if kind == "few values":
        return rng.integers(-3, 3, size).astype(np.float32)
    spread = {"flat": 0.01, "usual": 2.0, "wide": 40.0, "huge": 1e30}[kind]
    scores = (rng.standard_normal(size) * spread).astype(np.float32)
    scores[rng.integers(0, size, size // 8)] = -np.inf
    scores[rng.integers(0, size, 3)] = np.abs(scores[np.isfinite(scores)]).max(initial=1) * np.float32(1.5)
    return scores


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.01, 0.3, 0.8, 1.0, 3.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 5000]),
    top_p=st.sampled_from([0.0, 1e-12, 0.5, 0.8, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-9, 0.1, 0.9, 1.0]),
)


@pytest.mark.proves("draws")
@pytest.mark.parametrize("isa", EVERY_ISA)
@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["equal", "few values", "flat", "usual", "wide", "huge"]),
    size=st.one_of(st.integers(1, 70), st.integers(71, 3000)),
    params=params_strategy,
    seed=st.integers(0, MAX_WORD),
    choice=st.integers(0, MAX_WORD),
    position=st.integers(0, 1 << 40),
)
def test_native_draws_are_those_of_the_reference(
    isa: str, kind: str, size: int, params: SamplingParams, seed: int, choice: int, position: int
):
    scores = some_scores(kind, size, seed % 1000)
    with np.errstate(over="ignore"):
        assume(np.isfinite((scores / np.float32(params.temperature)).max()))
        expected = draw_reference(scores.copy(), params, seed, choice, position)
    assert drawn(isa, scores, params, seed, choice, position) == expected


@pytest.mark.proves("draws")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("kind", ["equal", "few values", "flat", "usual", "wide"])
def test_native_draws_from_a_whole_vocabulary_are_those_of_the_reference(isa: str, kind: str):
    scores = some_scores(kind, V, 1)
    for params in (
        SamplingParams(),
        SamplingParams(temperature=1.0, top_p=1.0),
        SamplingParams(top_k=50, min_p=0.01),
        SamplingParams(top_p=1.0, min_p=0.05),
        SamplingParams(top_k=V - 1),
    ):
        for position in range(6):
            expected = draw_reference(scores.copy(), params, 7, 0, position)
            assert drawn(isa, scores, params, 7, 0, position) == expected


@given(seed=st.integers(0, MAX_WORD), choice=st.integers(0, MAX_WORD), position=st.integers(0, MAX_WORD))
def test_native_random_numbers_are_those_of_the_reference(seed: int, choice: int, position: int):
    assert native.extension().uniform53(seed, choice, position) == uniform53(seed, choice, position)


def test_scores_of_the_best_are_not_lost_to_min_p_where_floats_are_coarse():
    # Neighbouring floats differ by 8 here, so best - 0.7 rounds to the best itself.
    scores = np.array([1e8, 0, 1e8], np.float32)
    sampler = Sampler(SamplingParams(temperature=1, top_p=1, min_p=0.5, repetition_penalty=1), 1)
    assert {sampler.sample(scores, position).token_id for position in range(30)} == {0, 2}
    assert np.isfinite(warped_scores(sampler, scores)).tolist() == [True, False, True]


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_scores_too_large_for_the_temperature_are_said(isa: str):
    assert drawn(isa, np.array([3e38, 0], np.float32), SamplingParams(temperature=0.01), 0, 0, 0) == -1
    with pytest.raises(GenerationError, match="too large for this temperature"):
        Sampler(SamplingParams(temperature=0.01), 0).sample(np.array([3e38, 0], np.float32), 0)


def test_the_fallback_without_the_extension_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch):
    scores = some_scores("usual", 2000, 3)
    params = SamplingParams(top_k=60)
    expected = [Sampler(params, 3).sample(scores, position).token_id for position in range(20)]
    monkeypatch.setattr(native, "why_missing", lambda: "for a test")
    monkeypatch.setattr(native, "extension", None)
    assert [Sampler(params, 3).sample(scores, position).token_id for position in range(20)] == expected


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": np.zeros(0, np.float32)}, "1 or more"),
        ({"isa": "abacus"}, "instruction set"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
    ],
)
def test_the_door_refuses_what_would_break_the_house(change: dict, complaint: str):
    whole = {"isa": ISAS[0], "scores": np.zeros(4, np.float32), "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    whole |= {"min_p": 0.0, "seed": 0, "choice": 0, "position": 0} | change
    with pytest.raises(ValueError, match=complaint):
        native.extension().draw(**whole)


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("top_k", [0, 3, 60])
def test_any_number_even_nan_is_survived(isa: str, top_k: int):
    for seed in range(20):
        scores = np.frombuffer(np.random.default_rng(seed).bytes(4 * 100), np.float32).copy()
        scores[::2] = np.nan
        token_id = native.extension().draw(isa, scores, 1.0, top_k, 0.9, 0.1, 1, 2, seed)
        assert -1 <= token_id < len(scores)
        assert not np.isnan(scores).any()  # a NaN ranks last
