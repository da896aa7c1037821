"""Another reading of a model's files is accepted only if many tokens are better, by enough, and not by chance."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broken_models import spoil
from minicpm.doctor import measured
from minicpm.doctor.faults import Correction
from minicpm.doctor.measured import LEAST_DEVIATIONS, LEAST_NATS, is_better, measure
from minicpm.formats.checkpoint import Checkpoint
from minicpm.hub import embedded

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


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Half of one text is read, which is enough; by every reading once, since it takes seconds."""
    losses, computed = measured._losses, {}

    def once(checkpoint: Checkpoint, reading: Correction, rows: list[list[int]]) -> list[np.ndarray]:
        if (checkpoint.path, reading) not in computed:
            computed[checkpoint.path, reading] = losses(checkpoint, reading, rows)
        return computed[checkpoint.path, reading]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(measured, "NAMES", ("owl",))
        monkeypatch.setattr(measured, "MOST_TOKENS", 64)
        monkeypatch.setattr(measured, "_losses", once)
        yield


@pytest.fixture(scope="module")
def misread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a rotary base that it was not trained with."""
    folder = Path(shutil.copytree(embedded.folder(), tmp_path_factory.mktemp("misread") / "model"))
    spoil(folder, rope_theta=100.0)
    return folder


def test_a_wrong_base_is_found_and_its_cure_is_the_right_one(misread: Path):
    found = measure(misread, can_reorder_rows=True)
    assert [fault.name for fault in found.faults] == ["wrong-rope-theta"] and found.silence is None
    assert found.correction.config.rope_theta == 10_000 and not found.correction.reorders_rows


@pytest.mark.parametrize("limit", ["LEAST_NATS", "LEAST_DEVIATIONS"])
def test_nothing_is_said_of_a_reading_that_is_not_better_by_enough(
    misread: Path, monkeypatch: pytest.MonkeyPatch, limit: str
):
    monkeypatch.setattr(measured, limit, 1e6)
    found = measure(misread, can_reorder_rows=True)
    assert (found.faults, found.correction, found.silence) == ((), None, None)


def test_a_model_that_knows_none_of_the_texts_is_not_judged(misread: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured, "KNOWN_NATS", 0.0)
    found = measure(misread, can_reorder_rows=True)
    assert found.faults == () and "not judged" in found.silence
