"""Prompt-lookup decoding: the same answers to the last bit, accepted drafts, and no drafts if they are not faster."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm import LLM, SamplingParams, native
from minicpm.engine import scheduler
from minicpm.engine.lookup import (
    MOST_STEP_TOKENS,
    WORTHWHILE_GAIN,
    Chance,
    Guesses,
    StepTimes,
    draft_lengths,
)
from minicpm.engine.request import Completion
from minicpm.export.quantize import quantize_folder

BACKENDS = ["numpy"] if native.why_missing() else ["native", "numpy"]
REPEATED = "the cat sat on the mat and the dog sat on the cat and the cat sat on the"


@pytest.fixture(scope="module")
def quantized(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookup") / "int4"
    quantize_folder(golden / "minicpm2b_tied", folder)
    return folder


@pytest.fixture(scope="module", params=BACKENDS)
def llms(quantized: Path, request: pytest.FixtureRequest) -> tuple[LLM, LLM]:
    """With lookup and without."""
    with_lookup, without = (LLM(quantized, backend=request.param, lookup=lookup) for lookup in ("auto", "off"))
    return with_lookup, without


def drafts_of_any_length(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Draft a random number of tokens, whatever their cost: a test must not depend on measured times."""
    dice = random.Random(seed)

    def lengths(times: StepTimes, chances: list[Chance]) -> list[int]:
        return [dice.randint(0, min(chance.count, 9)) for chance in chances]

    monkeypatch.setattr(scheduler, "draft_lengths", lengths)


def without_counters(completion: Completion) -> Completion:
    # The cached tokens depend on which answer of a batch ends last, so they are not compared.
    usage = replace(completion.usage, drafted_tokens=0, accepted_tokens=0, cached_tokens=0)
    return replace(completion, usage=usage, timings=None)  # type: ignore[arg-type]


def assert_same(llms: tuple[LLM, LLM], prompts: list, params: SamplingParams) -> list[Completion]:
    """Ids, log-probabilities, text, reason and seed are equal."""
    found, expected = (llm.generate(prompts, params) for llm in llms)
    assert [without_counters(one) for one in found] == [without_counters(one) for one in expected]
    assert all(one.usage.drafted_tokens == 0 for one in expected)
    return found


# --- The same answers --------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    temperature=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    top_p=st.sampled_from([0.8, 1.0]),
    top_k=st.sampled_from([0, 2]),
    repetition_penalty=st.sampled_from([1.0, 1.02, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    logprobs=st.sampled_from([None, 0, 3]),
    max_tokens=st.integers(1, 40),
    stop=st.sampled_from([(), ("a",), (" the", "zz")]),
    prompts=st.lists(
        st.sampled_from([REPEATED, "hello", "a a a a a a", "山东省最高的山", "x y x y x"]), min_size=1, max_size=4
    ),
)
def test_answers_are_those_of_plain_decoding(llms, seed, prompts, **options):
    with pytest.MonkeyPatch.context() as monkeypatch:
        drafts_of_any_length(monkeypatch, seed)
        assert_same(llms, prompts, SamplingParams(seed=seed, **options))


def test_right_guesses_are_taken(llms, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 1)
    prompts = [[5, 6, 7, 8] * 6, [9, 10, 11] * 5]
    params = SamplingParams(temperature=0, seed=1, repetition_penalty=1.0, ignore_eos=True, max_tokens=60, logprobs=2)
    for completion in assert_same(llms, prompts, params):
        assert 10 < completion.usage.accepted_tokens <= completion.usage.drafted_tokens


def test_right_guesses_are_taken_of_sampled_answers(llms, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 1)
    # A bias makes an answer of few words, so the past is often right and often wrong.
    words = dict.fromkeys((300, 301, 302), 12.0)
    params = SamplingParams(
        temperature=1, top_p=1, seed=3, max_tokens=120, logit_bias=words, logprobs=0, ignore_eos=True
    )
    (completion,) = assert_same(llms, [REPEATED], params)
    assert 10 < completion.usage.accepted_tokens < completion.usage.drafted_tokens - 10


def test_wrong_guesses_leave_nothing_in_the_cache(llms, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 5)
    lookup = llms[0]
    greedy = SamplingParams(temperature=0, seed=1, repetition_penalty=1.3, ignore_eos=True, max_tokens=30)
    first = assert_same(llms, [REPEATED], greedy)[0]
    assert first.usage.accepted_tokens < first.usage.drafted_tokens
    following = [*lookup.tokenizer.encode(REPEATED), *first.ids, 7, 8]
    second = assert_same(llms, [following], greedy)[0]
    assert second.usage.cached_tokens >= len(following) - 3


def test_a_stop_string_inside_a_right_guess_ends_the_answer(llms, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 2)
    greedy = SamplingParams(temperature=0, seed=1, repetition_penalty=1.0, ignore_eos=True, max_tokens=60)
    whole = llms[1].generate([[5, 6, 7, 8] * 6], greedy)[0].text
    for start in range(10, len(whole) - 3, 19):
        (cut,) = assert_same(llms, [[5, 6, 7, 8] * 6], replace(greedy, stop=(whole[start : start + 3],)))
        assert cut.finish_reason == "stop"


def test_pieces_of_an_accepted_draft_come_one_by_one(llms, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 2)
    greedy = SamplingParams(temperature=0, seed=1, repetition_penalty=1.0, ignore_eos=True, max_tokens=60)
    found, expected = ([piece.text for piece in llm.stream_batch([REPEATED], greedy)] for llm in llms)
    assert found == expected


def test_the_last_tokens_of_the_context_can_be_guessed(quantized: Path, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 3)
    llms = (LLM(quantized, backend="numpy", context=40), LLM(quantized, backend="numpy", context=40, lookup="off"))
    greedy = SamplingParams(temperature=0, seed=1, repetition_penalty=1.0, ignore_eos=True)
    (completion,) = assert_same(llms, [[5, 6, 7, 8] * 6], greedy)
    assert completion.usage.accepted_tokens and len(completion.ids) == 40 - 24


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_built_in_model_says_the_same_as_without(backend: str, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 4)
    llms = (LLM(backend=backend), LLM(backend=backend, lookup="off"))
    question = [{"role": "user", "content": "Say it again: red, green, blue, red, green, blue, red, green, blue, red,"}]
    for params in (SamplingParams(seed=5, max_tokens=40), SamplingParams(temperature=0, seed=1, max_tokens=40)):
        found, expected = (llm.chat(question, params) for llm in llms)
        assert without_counters(found) == without_counters(expected)
        assert found.usage.drafted_tokens


def test_as_it_comes_lookup_changes_no_answer(llms):
    params = SamplingParams(seed=8, temperature=0.2, max_tokens=80, ignore_eos=True)
    assert_same(llms, [[5, 6, 7, 8] * 6, REPEATED, "hello"], params)


def test_a_backend_without_equal_bits_never_guesses(golden: Path, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 1)
    llm = LLM(golden / "minicpm2b_tied", backend="numpy")
    assert not llm.backend.is_exact
    greedy = SamplingParams(temperature=0, seed=1, repetition_penalty=1.0, ignore_eos=True, max_tokens=40)
    assert llm.generate([[5, 6, 7, 8] * 6], greedy)[0].usage.drafted_tokens == 0


def test_beside_a_prompt_nothing_is_guessed(llms, monkeypatch: pytest.MonkeyPatch):
    drafts_of_any_length(monkeypatch, 6)
    lookup = llms[0]
    steps = []
    forward = lookup.backend.forward

    def watched(rows):
        steps.append([(row.logits, len(row.token_ids)) for row in rows])
        return forward(rows)

    monkeypatch.setattr(lookup.backend, "forward", watched, raising=False)
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK_TOKENS", 8)
    params = SamplingParams(temperature=0, seed=1, repetition_penalty=1.0, ignore_eos=True, max_tokens=30)
    lookup.generate([[5, 6, 7, 8] * 2, list(range(10, 130))], params)
    drafting = [step for step in steps if any(kind == "all" for kind, _ in step)]
    assert drafting
    assert all(kind == "all" or count == 1 for step in drafting for kind, count in step)


def test_lookup_is_auto_or_off(quantized: Path):
    with pytest.raises(ValueError, match="lookup must be one of auto, off, got 'on'"):
        LLM(quantized, lookup="on")


# --- Guesses -----------------------------------------------------------------------------------------------------


def proposal(ids: list[int], most: int = 8) -> list[int]:
    guesses = Guesses()
    guesses.read(ids)
    return guesses.propose(most)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([1], []),
        ([1, 2, 3, 4, 5], []),
        ([1, 2, 3, 9, 8, 1, 2, 3], [9, 8, 1, 2, 3, 9, 8, 1]),
        ([7, 2, 3, 9, 5, 2, 3], [9, 5, 2, 3, 9, 5, 2, 3]),  # two tokens are enough
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], [5, 1, 2, 3, 5, 1, 2, 3]),  # the latest counts
        ([1, 2, 3, 4, 8, 2, 3, 6, 1, 2, 3], [4, 8, 2, 3, 6, 1, 2, 3]),  # the longer match counts
        ([4, 4, 4], [4] * 8),
    ],
)
def test_what_followed_the_last_time_is_proposed(ids: list[int], expected: list[int]):
    assert proposal(ids) == expected


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 12))
def test_proposals_are_those_of_a_plain_search(ids: list[int], most: int):
    expected: list[int] = []
    for count in (3, 2):
        places = [end for end in range(count, len(ids)) if ids[end - count : end] == ids[-count:]]
        if len(ids) >= count and places:
            text = list(ids)
            for place in range(places[-1], places[-1] + most):
                text.append(text[place])
            expected = text[len(ids) :]
            break
    assert proposal(ids, most) == expected
    guesses = Guesses()
    for token_id in ids:
        guesses.read([token_id])
    assert guesses.propose(most) == expected and guesses.length == len(ids)


def test_a_chance_follows_what_came_true():
    guesses = Guesses()
    first = guesses.chance
    guesses.learn([1, 2, 3], [1, 2, 9])
    assert guesses.chance != first
    for _ in range(60):
        guesses.learn([1, 2], [1, 2])
    assert guesses.chance > 0.95
    for _ in range(60):
        guesses.learn([1, 2], [9])
    assert guesses.chance < 0.05
    guesses.learn([], [4])
    assert guesses.chance < 0.05


# --- Whether it pays ---------------------------------------------------------------------------------------------


def times_of(**seconds: float) -> StepTimes:
    times = StepTimes()
    for tokens, value in seconds.items():
        times.learn(int(tokens[1:]), value)
    return times


def test_nothing_is_drafted_before_a_plain_step_was_timed():
    assert draft_lengths(StepTimes(), [Chance(1.0, 8)]) == [0]
    assert draft_lengths(times_of(t4=1.0), [Chance(1.0, 8)]) == [0]


def test_a_likely_draft_is_long_and_an_unlikely_one_is_none():
    times = times_of(t1=1.0, t8=2.0, t16=3.0)
    likely, unsure, unlikely = (draft_lengths(times, [Chance(p, 15)])[0] for p in (0.95, 0.5, 0.05))
    assert likely > unsure > unlikely == 0


def test_nothing_is_drafted_where_tokens_cost_what_they_bring():
    assert draft_lengths(times_of(t1=1.0, t2=2.0, t16=16.0), [Chance(0.99, 15)]) == [0]


@given(
    st.lists(st.builds(Chance, st.floats(0, 1), st.integers(0, 15)), min_size=1, max_size=20),
    st.lists(st.floats(0.01, 10), min_size=20, max_size=20),
)
def test_drafts_are_expected_to_pay_and_fit_into_a_step(chances: list[Chance], seconds: list[float]):
    times = StepTimes()
    for tokens, value in enumerate(seconds, start=1):
        times.learn(tokens, value)
    counts = draft_lengths(times, chances)
    assert len(counts) == len(chances)
    assert all(0 <= count <= chance.count for count, chance in zip(counts, chances))
    if any(counts):
        assert len(chances) + sum(counts) <= MOST_STEP_TOKENS
        expected = len(chances) + sum(
            sum(chance.probability**k for k in range(1, count + 1)) for count, chance in zip(counts, chances)
        )
        plain = times.seconds(len(chances))
        drafting = times.seconds(len(chances) + sum(counts))
        assert expected / drafting > WORTHWHILE_GAIN * len(chances) / plain * (1 - 1e-9)


def test_the_likeliest_drafts_of_a_batch_go_first():
    times = times_of(t2=1.0, t4=1.05, t8=4.0)
    assert draft_lengths(times, [Chance(0.2, 15), Chance(0.9, 15)])[0] == 0
    assert draft_lengths(times, [Chance(0.2, 15), Chance(0.9, 15)])[1] > 0


def test_a_step_that_was_slow_by_accident_is_tried_again():
    times = times_of(t1=1.0, t2=50.0)
    assert draft_lengths(times, [Chance(0.9, 1)]) == [0]
    for _ in range(10_000):
        times.learn(1, 1.0)
    assert draft_lengths(times, [Chance(0.9, 1)]) == [1]


def test_times_between_measured_ones_are_between_them():
    times = times_of(t1=1.0, t5=3.0)
    one, three, five = (times.seconds(tokens) for tokens in (1, 3, 5))
    assert one < three < five
    assert three == pytest.approx((one + five) / 2)
    assert times.seconds(9) > five
    assert np.isfinite(times.seconds(16))


@given(st.floats(1e-4, 1.0), st.floats(2.0, 1e6))
def test_a_step_that_was_interrupted_counts_as_one_of_the_doubled_time(seconds: float, times_slower: float):
    interrupted, doubled = times_of(t1=seconds), times_of(t1=seconds)
    interrupted.learn(1, times_slower * seconds)
    doubled.learn(1, 2 * seconds)
    assert interrupted.seconds(1) == doubled.seconds(1) > seconds


@given(st.floats(1e-4, 1.0), st.floats(0.0, 2.0))
def test_a_time_moves_a_quarter_of_the_way_to_a_new_one(seconds: float, factor: float):
    times = times_of(t1=seconds)
    times.learn(1, factor * seconds)
    assert times.seconds(1) == pytest.approx(0.75 * seconds + 0.25 * factor * seconds)


def test_an_interrupted_step_keeps_no_draft_away():
    """One step of eight tokens that took a second for once; the others take hardly more than a plain one."""
    times = times_of(t1=0.010, t8=0.011)
    before = draft_lengths(times, [Chance(0.9, 7)])
    times.learn(8, 1.0)
    assert before[0] > 0 and draft_lengths(times, [Chance(0.9, 7)]) == before


def test_beyond_the_largest_measured_step_every_token_costs_more():
    times = times_of(t1=1.0)
    costs = [times.seconds(tokens) for tokens in range(1, 9)]
    assert all(a < b for a, b in pairwise(costs))


@given(st.floats(0.01, 1), st.lists(st.floats(0.01, 10), min_size=16, max_size=16))
def test_no_other_length_of_a_draft_promises_more_tokens_a_second(probability: float, seconds: list[float]):
    times = StepTimes()
    for tokens, value in enumerate(seconds, start=1):
        times.learn(tokens, value)
    (count,) = draft_lengths(times, [Chance(probability, 15)])
    expected = [sum(probability**k for k in range(n + 1)) / times.seconds(1 + n) for n in range(16)]
    if max(expected) > WORTHWHILE_GAIN * expected[0] * (1 + 1e-9):
        assert expected[count] >= max(expected) * (1 - 1e-9)
