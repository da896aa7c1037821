"""When another reading of a model's files is believed: not by a few tokens, not by a little, not by chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm.doctor.measured import LEAST_DEVIATIONS, LEAST_NATS, is_better

T = 400
SEEDS = st.integers(0, 1 << 30)


def some_losses(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).exponential(3.0, T)


@given(SEEDS)
def test_the_same_losses_are_no_better(seed: int):
    losses = some_losses(seed)
    assert not is_better(losses, losses)


@given(SEEDS, st.floats(0.1, 5.0))
def test_losses_that_are_lower_everywhere_are_better(seed: int, gain: float):
    losses = some_losses(seed)
    assert is_better(losses, losses - gain) and not is_better(losses, losses + gain)


@given(SEEDS, st.integers(1, int(LEAST_DEVIATIONS * T**0.5) - 1))
def test_a_few_tokens_that_are_much_better_do_not_make_a_reading_better(seed: int, count: int):
    """Fewer than five standard deviations of the sign test, whatever the mean says."""
    before = some_losses(seed)
    after = before.copy()
    after[:count] -= 1000.0
    assert (before - after).mean() > LEAST_NATS
    assert not is_better(before, after)


@given(SEEDS, st.floats(0.0, LEAST_NATS, exclude_max=True))
def test_a_little_at_every_token_does_not_make_a_reading_better(seed: int, gain: float):
    assert not is_better(some_losses(seed), some_losses(seed) - gain * 0.999)


@settings(max_examples=50)
@given(SEEDS)
def test_two_readings_that_differ_by_chance_are_as_good_as_each_other(seed: int):
    assert not is_better(some_losses(seed), some_losses(seed + 1))


@pytest.mark.parametrize(
    ("better", "worse", "expected"), [(100, 0, True), (99, 0, False), (250, 150, True), (249, 151, False)]
)
def test_five_standard_deviations_of_the_sign_test_are_needed(better: int, worse: int, expected: bool):
    """Of 400 tokens: the root of 400 is 20, so 100 more must be better than worse."""
    before = np.zeros(T)
    after = np.concatenate([np.full(better, -1.0), np.full(worse, 0.1), np.zeros(T - better - worse)])
    assert is_better(before, after) is expected
