"""A request's times."""

from __future__ import annotations

import pytest

from minicpm.engine.request import _Clock


@pytest.mark.parametrize(
    ("tokens", "seconds", "rate"),
    [(0, 0.0, 0.0), (1, 0.0, 0.0), (2, 1e-5, 0.0), (4, 2e-4, 0.0), (2, 0.5, 2.0), (101, 0.25, 400.0)],
)
def test_a_speed_needs_two_tokens_and_a_time_that_can_be_measured(tokens: int, seconds: float, rate: float):
    clock = _Clock(start=1.0, first=2.0, last=2.0 + seconds, count=tokens)
    assert clock.timings(8).decode_tokens_per_s == pytest.approx(rate)
