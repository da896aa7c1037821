"""Parameters are what they were given as, in plain types."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm.sampling import SamplingParams


@pytest.mark.parametrize("name", ["max_tokens", "top_k", "seed", "logprobs"])
def test_whole_numbers_of_other_libraries_become_pythons(name: str):
    value = getattr(SamplingParams(**{name: np.int64(7)}), name)
    assert value == 7 and type(value) is int


@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
)
def test_numbers_of_other_libraries_become_pythons(name: str):
    value = getattr(SamplingParams(**{name: np.float32(0.5)}), name)
    assert value == 0.5 and type(value) is float
