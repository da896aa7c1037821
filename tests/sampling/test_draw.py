"""Scores equal Hugging Face's, tokens equal a plain inverse CDF, random numbers equal Philox's own vectors."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

import minicpm.sampling
from minicpm.errors import GenerationError
from minicpm.sampling import SampledToken, Sampler, SamplingParams, draw_reference, uniform53
from minicpm.sampling.deprecated import PRESETS_2024
from sampling.warping import warped_scores

PLAIN = SamplingParams(temperature=1.0, top_p=1.0, repetition_penalty=1.0)
V = 122_753


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()


def model_like_logits(seed: int, size: int = V) -> np.ndarray:
    """A few likely tokens above a broad floor, as a language model gives."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(size) * 2
    logits[rng.integers(0, size, 20)] += rng.uniform(5, 14, 20)
    return logits.astype(np.float32)


# --- Warpers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS_2024)
def test_golden_scores_are_equal_and_probabilities_close(golden: Path, name: str):
    expected = load_file(golden / "sampling" / "warpers.safetensors")
    for row, logits in enumerate(expected["logits"]):
        scores = warped_scores(Sampler(PRESETS_2024[name], 0, expected["context_ids"][row]), logits)
        np.testing.assert_array_equal(scores, expected[f"{name}.scores"][row])
        np.testing.assert_allclose(softmax(scores), expected[f"{name}.probs"][row], atol=1e-6)


def test_presets_have_the_values_of_the_golden_settings(golden: Path):
    settings_of = json.loads((golden / "sampling" / "warpers.json").read_text())
    assert PRESETS_2024.keys() == settings_of.keys()
    for name, expected in settings_of.items():
        params = PRESETS_2024[name]
        assert params.repetition_penalty == (expected["repetition_penalty"] or 1.0)
        assert params.top_k == (expected["top_k"] or 0)
        assert (params.temperature, params.top_p) == (expected["temperature"], expected["top_p"])


@pytest.mark.parity
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_scores_equal_those_of_transformers_warpers(data: st.DataObject):
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers.generation.logits_process")
    size = data.draw(st.integers(3, 200))
    logits = np.random.default_rng(data.draw(st.integers(0, 1 << 32))).standard_normal(size).astype(np.float32) * 4
    context = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    params = SamplingParams(
        temperature=data.draw(st.sampled_from([0.1, 0.5, 0.8, 1.0, 2.0])),
        top_k=data.draw(st.sampled_from([0, 1, 5, 50])),
        top_p=data.draw(st.sampled_from([0.0, 0.3, 0.8, 0.95, 1.0])),
        min_p=data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.02, 1.3, 0.7])),
    )
    ids, scores = torch.tensor([context], dtype=torch.long), torch.tensor(logits)[None]
    processors = [hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)]
    processors.append(hf.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(hf.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        processors.append(hf.MinPLogitsWarper(params.min_p))
    for processor in processors:
        scores = processor(ids, scores)
    np.testing.assert_array_equal(warped_scores(Sampler(params, 0, context), logits), scores[0].numpy())


def test_presence_and_frequency_count_the_answer_and_not_the_prompt():
    sampler = Sampler(replace(PLAIN, presence_penalty=0.5, frequency_penalty=0.25), 0, prompt_ids=[0, 0, 1])
    for token_id in (1, 2, 2, 2):
        sampler.accept(token_id)
    assert warped_scores(sampler, np.zeros(4, np.float32)).tolist() == [0.0, -0.75, -1.25, 0.0]


def test_repetition_counts_prompt_and_answer_once_each():
    sampler = Sampler(replace(PLAIN, repetition_penalty=2.0), 0, prompt_ids=[0, 0])
    sampler.accept(1)
    sampler.accept(1)
    logits = np.array([4, -4, 4, -4], np.float32)
    assert warped_scores(sampler, logits).tolist() == [2.0, -8.0, 4.0, -4.0]


def test_penalties_hold_for_contexts_of_any_length():
    ids = np.random.default_rng(0).integers(0, 5000, 3000)
    logits = model_like_logits(1, 5000)
    expected = logits.copy()
    seen = np.unique(ids)
    expected[seen] = np.where(logits[seen] < 0, logits[seen] * np.float32(1.3), logits[seen] / np.float32(1.3))
    sampler = Sampler(replace(PLAIN, repetition_penalty=1.3), 0, ids)
    np.testing.assert_array_equal(warped_scores(sampler, logits), expected)


def test_a_bias_can_force_and_ban_a_token():
    logits = np.zeros(10, np.float32)
    forced = Sampler(replace(PLAIN, logit_bias={7: 100}), 0)
    banned = Sampler(replace(PLAIN, logit_bias={7: -100}), 0)
    assert {forced.sample(logits, i).token_id for i in range(50)} == {7}
    assert 7 not in {banned.sample(logits, i).token_id for i in range(200)}


def test_sampling_leaves_the_logits_as_they_are():
    logits = model_like_logits(3, 1000)
    before = logits.copy()
    Sampler(SamplingParams(logit_bias={1: 3.0}, frequency_penalty=1.0), 0, [1, 2]).sample(logits, 0)
    np.testing.assert_array_equal(logits, before)


# --- Drawing ---------------------------------------------------------------------------------------------------


def drawn_by_definition(scores: np.ndarray, fraction: float) -> tuple[int, float]:
    """Inverse CDF over candidates sorted by (-probability, id), in float64; and how far the nearest border is."""
    order = np.lexsort((np.arange(len(scores)), -scores.astype(np.float64)))
    cumulative = np.cumsum(softmax(scores)[order])
    rank = min(int(np.searchsorted(cumulative, fraction, side="right")), len(order) - 1)
    return int(order[rank]), float(np.abs(cumulative - fraction).min())


logit_arrays = hnp.arrays(
    np.float32,
    st.integers(1, 80),
    elements=st.one_of(
        st.floats(-30, 30, width=32), st.sampled_from([0.0, -0.0, 1.0, -5.0, -np.inf])  # ties and bans
    ),
)  # fmt: skip


@pytest.mark.proves("draws", isa="numpy")
@settings(max_examples=250, deadline=None)
@given(
    logits=logit_arrays,
    temperature=st.sampled_from([0.3, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 40]),
    top_p=st.sampled_from([0.0, 0.5, 0.8, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, (1 << 64) - 1),
    position=st.integers(0, 1 << 20),
)
def test_a_drawn_token_is_the_inverse_cdf_of_the_warped_scores(
    logits, temperature, top_k, top_p, min_p, seed, position
):
    assume(np.isfinite(logits.max()))
    params = replace(PLAIN, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    scores = warped_scores(Sampler(params, seed), logits)
    expected, distance = drawn_by_definition(scores, uniform53(seed, 0, position) / 2**53)
    assume(distance > 1e-6)
    assert Sampler(params, seed).sample(logits, position).token_id == expected
    assert draw_reference(logits.copy(), params, seed, 0, position) == expected


@pytest.mark.parametrize("params", [SamplingParams(), PLAIN, PRESETS_2024["minicpm_chat"]], ids=["ours", "plain", "k"])
def test_a_whole_vocabulary_draws_like_a_small_one(params: SamplingParams):
    for seed in range(8):
        logits = model_like_logits(seed)
        scores = warped_scores(Sampler(params, seed), logits)
        expected, distance = drawn_by_definition(scores, uniform53(seed, 0, 5) / 2**53)
        assert distance > 1e-7  # else choose other seeds
        assert Sampler(params, seed).sample(logits, 5).token_id == expected


def test_frequencies_are_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    draws = 8_000
    counts = Counter(Sampler(PLAIN, 11).sample(logits, i).token_id for i in range(draws))
    for token_id, probability in enumerate((0.5, 0.3, 0.15, 0.05)):
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[token_id] - draws * probability) < 4 * spread


def test_equal_scores_are_ordered_by_id():
    logits = np.zeros(1000, np.float32)
    for position in range(50):
        expected = uniform53(3, 0, position) * 1000 >> 53
        assert Sampler(PLAIN, 3).sample(logits, position).token_id == expected
    nucleus = warped_scores(Sampler(replace(PLAIN, top_p=0.1), 3), logits)
    assert np.flatnonzero(nucleus > -np.inf).tolist() == list(range(100))


def test_minus_zero_and_zero_are_equal_scores():
    logits = np.array([-0.0, 0.0, -0.0, 0.0], np.float32)
    tokens = [Sampler(PLAIN, 3).sample(logits, i).token_id for i in range(40)]
    assert tokens == [Sampler(PLAIN, 3).sample(np.zeros(4, np.float32), i).token_id for i in range(40)]


def test_temperature_zero_takes_the_best_and_the_lowest_id_of_equals():
    sampler = Sampler(replace(PLAIN, temperature=0), 0)
    assert sampler.sample(np.array([1, 3, 2, 3], np.float32), 0).token_id == 1
    np.testing.assert_array_equal(
        warped_scores(sampler, np.array([1, 3, 3], np.float32)), np.array([-np.inf, 3, -np.inf], np.float32)
    )


def test_greedy_heeds_penalties_and_biases():
    logits = np.array([2.0, 1.9, 0.0], np.float32)
    assert Sampler(replace(PLAIN, temperature=0, repetition_penalty=1.2), 0, [0]).sample(logits, 0).token_id == 1
    assert Sampler(replace(PLAIN, temperature=0, logit_bias={2: 5}), 0).sample(logits, 0).token_id == 2


def test_scores_far_apart_leave_the_best_alone():
    logits = np.array([3e38, -3e38, 0], np.float32)
    assert {Sampler(PLAIN, 1).sample(logits, i).token_id for i in range(20)} == {0}
    with pytest.raises(GenerationError, match="too large for this temperature"):
        Sampler(replace(PLAIN, temperature=0.01), 1).sample(logits, 0)


# --- Randomness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "choice", "position", "word"),
    [
        # Random123's published vectors of philox4x64-10: (key 0, counter 0), and one of ours per remaining field.
        (0, 0, 0, 0x16554D9ECA36314C),
        (20240201, 0, 17, None),
        (20240201, 3, 17, None),
        ((1 << 64) - 1, (1 << 64) - 1, (1 << 40) + 1, None),
    ],
)
def test_random_numbers_are_philox_4x64(seed: int, choice: int, position: int, word: int | None):
    first = philox4x64(key=(seed, choice), counter=(position, 0, 0, 0))[0]
    assert word is None or word == first
    assert uniform53(seed, choice, position) == first >> 11


def philox4x64(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Salmon et al. 2011, ten rounds, written from the paper: what a C++ core has to compute."""
    mask = (1 << 64) - 1
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (right >> 64) ^ c1 ^ k0, right & mask, (left >> 64) ^ c3 ^ k1, left & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return c0, c1, c2, c3


def test_the_paper_version_of_philox_gives_the_published_words():
    ones = (1 << 64) - 1
    assert philox4x64((ones, ones), (ones,) * 4) == (
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    )  # fmt: skip


KNOWN_TOKENS = [20, 6, 27, 6, 6, 5, 13, 12, 6, 41, 20, 6]


def test_known_tokens_of_a_known_seed():
    # Fails when the random numbers, the order of candidates or the arithmetic change: then every user's seed does.
    logits = (np.arange(50) % 7 - np.arange(50) * 0.05).astype(np.float32)
    sampler = Sampler(SamplingParams(), 2024, [6, 13])
    assert [sampler.sample(logits, position).token_id for position in range(2, 14)] == KNOWN_TOKENS


def test_the_same_seed_gives_the_same_tokens_alone_and_among_others():
    rows = [model_like_logits(i, 5000) for i in range(12)]
    alone = Sampler(SamplingParams(), 5, [1, 2])
    expected = [alone.sample(row, i).token_id for i, row in enumerate(rows)]
    batch = [Sampler(SamplingParams(), seed, [1, 2]) for seed in (4, 5, 6)]
    stacked = np.stack(rows)
    together = [[s.sample(stacked[i], i).token_id for s in batch] for i in range(len(rows))]
    assert [row[1] for row in together] == expected
    assert [row[0] for row in together] != expected


def test_choices_of_one_seed_differ():
    logits = model_like_logits(0, 5000)
    first, second = (
        [Sampler(PLAIN, 5, choice=choice).sample(logits, i).token_id for i in range(20)] for choice in (0, 1)
    )
    assert first != second


# --- Log-probabilities -----------------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_distribution():
    logits = model_like_logits(2, 3000)
    expected = np.log(softmax(logits))
    params = SamplingParams(temperature=0.2, top_k=3, repetition_penalty=1.3, logprobs=5)
    sampled = Sampler(params, 1, [int(logits.argmax())]).sample(logits, 0)
    assert sampled.logprob == pytest.approx(expected[sampled.token_id], abs=1e-6)
    order = np.argsort(-logits, kind="stable")[:5]
    assert [i for i, _ in sampled.top_logprobs] == order.tolist()
    assert [p for _, p in sampled.top_logprobs] == pytest.approx(expected[order], abs=1e-6)


def test_logprobs_are_given_only_when_asked_for():
    logits = np.zeros(8, np.float32)
    assert Sampler(SamplingParams(), 0).sample(logits, 0) == SampledToken(
        Sampler(SamplingParams(), 0).sample(logits, 0).token_id
    )
    only_own = Sampler(SamplingParams(logprobs=0), 0).sample(logits, 0)
    assert (only_own.logprob, only_own.top_logprobs) == (pytest.approx(-math.log(8)), ())


def test_top_logprobs_of_equals_are_the_lowest_ids_and_never_more_than_there_are():
    sampled = Sampler(SamplingParams(logprobs=3), 0).sample(np.zeros(100, np.float32), 0)
    assert [i for i, _ in sampled.top_logprobs] == [0, 1, 2]
    sampled = Sampler(SamplingParams(logprobs=20), 0).sample(np.array([0, -np.inf], np.float32), 0)
    assert sampled.top_logprobs == ((0, 0.0), (1, -math.inf))


# --- Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "complaint"),
    [
        ([1.0, math.nan, math.nan], r"NaN for 2 of 3 logits \(first: token 1\)"),
        ([-math.inf] * 4, "-inf for every logit"),
        ([1.0, math.inf], "infinity for a logit"),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_distribution_are_a_clear_error(logits: list[float], complaint: str, temperature: float):
    sampler = Sampler(SamplingParams(temperature=temperature), 0)
    with pytest.raises(GenerationError, match=complaint):
        sampler.sample(np.array(logits, np.float32), 0)


def test_wrong_shapes_and_ids_are_a_clear_error():
    with pytest.raises(ValueError, match=r"shape \(vocab,\), got \(1, 4\)"):
        Sampler(SamplingParams(), 0).sample(np.zeros((1, 4), np.float32), 0)
    with pytest.raises(ValueError, match=r"shape \(vocab,\), got \(0,\)"):
        Sampler(SamplingParams(), 0).sample(np.zeros(0, np.float32), 0)
    with pytest.raises(ValueError, match="token id 9 of the prompt is beyond the 4 logits"):
        Sampler(SamplingParams(), 0, [9]).sample(np.zeros(4, np.float32), 0)
    with pytest.raises(ValueError, match="must not be negative"):
        Sampler(SamplingParams(), 0, [-1])
    with pytest.raises(ValueError, match="logit_bias names token 9"):
        Sampler(SamplingParams(logit_bias={9: 1}), 0).sample(np.zeros(4, np.float32), 0)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_tokens", (0, -1, 1.5, True, "1", INF)),
        ("temperature", (-0.1, 1e-9, 101, NAN, INF, "0.8", None, True, 10**400)),
        ("top_p", (-0.1, 1.1, NAN, "x", None, False)),
        ("top_k", (-1, 1.0, True, None, NAN)),
        ("min_p", (-0.1, 1.1, NAN, None)),
        ("repetition_penalty", (0, -1, 11, NAN, INF, None, True)),
        ("presence_penalty", (-2.1, 2.1, NAN, None)),
        ("frequency_penalty", (-2.1, 2.1, NAN, "1")),
        ("logit_bias", ({1: 101}, {1: NAN}, {-1: 1}, {"a": 1}, {True: 1}, [1], dict.fromkeys(range(1025), 0))),
        ("seed", (-1, 1 << 64, 1.0, True, "7")),
        ("stop", (("",), ("x" * 257,), (1,), 7, ["a"] * 33, {"a": 1})),
        ("stop_token_ids", ((-1,), ("a",), 5, "12", [0] * 129, (True,))),
        ("ignore_eos", (1, None, "no")),
        ("logprobs", (-1, 21, True, 1.0)),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, bad: tuple[Any, ...]):
    for value in bad:
        with pytest.raises(ValueError, match=f"{name.replace('stop_token_ids', 'stop.token.id').split('_')[0]}.* got "):
            SamplingParams(**{name: value})


def test_borders_of_the_ranges_are_allowed():
    for values in (
        {"temperature": 0, "top_p": 0, "min_p": 1, "seed": 0, "max_tokens": 1, "logprobs": 0},
        {"temperature": 100, "top_p": 1, "repetition_penalty": 10, "seed": (1 << 64) - 1, "logprobs": 20},
        {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint64(2**63)},
    ):
        params = SamplingParams(**values)
        Sampler(params, 1).sample(np.arange(5, dtype=np.float32), 0)


def test_stop_takes_a_string_or_a_list_and_keeps_its_own_copy():
    assert SamplingParams(stop="</s>").stop == ("</s>",)
    stops, bias = ["a", "b"], {1: 2}
    params = SamplingParams(stop=stops, logit_bias=bias, stop_token_ids=[3])
    stops.append("c")
    bias[5] = 5
    assert (params.stop, params.logit_bias, params.stop_token_ids) == (("a", "b"), {1: 2.0}, (3,))


def test_parameters_survive_pickle_and_cannot_be_changed():
    params = SamplingParams(logit_bias={1: 2}, stop=["a"])
    assert pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(AttributeError):
        params.seed = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="top_p"):
        replace(params, top_p=2)


def test_defaults_are_the_readme_example_and_the_authors_penalty():
    defaults = SamplingParams()
    assert (defaults.temperature, defaults.top_p, defaults.repetition_penalty) == (0.8, 0.8, 1.02)
    assert (defaults.top_k, defaults.min_p, defaults.presence_penalty, defaults.frequency_penalty) == (0, 0, 0, 0)


def test_the_old_name_of_the_presets_of_2024_still_works_and_warns():
    with pytest.warns(DeprecationWarning, match="PRESETS_2024 is deprecated"):
        assert minicpm.sampling.PRESETS_2024 is PRESETS_2024
