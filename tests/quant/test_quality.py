"""What counts as a difference between two models' predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minicpm.quant.quality import Comparison


def compared(reference: list[list[float]], found: list[list[float]], targets: list[int]) -> Comparison:
    """From probabilities, with a constant added to the logits: it must not matter."""
    comparison = Comparison()
    one, other = (
        np.log(np.array(rows, np.float32)) + np.float32(shift) for rows, shift in ((reference, 3), (found, -5))
    )
    comparison.add(one, other, np.array(targets))
    return comparison


def test_a_model_compared_with_itself_differs_by_nothing():
    logits = np.random.default_rng(0).standard_normal((50, 300), np.float32) * 10
    comparison = Comparison()
    comparison.add(logits, logits.copy(), np.arange(50))
    assert (comparison.kl, comparison.max_kl, comparison.top1_agreement, comparison.tokens) == (0, 0, 1, 50)
    assert comparison.perplexity == comparison.reference_perplexity


def test_two_tokens_give_what_paper_and_pencil_give():
    found = compared([[0.5, 0.5, 0.0001], [0.7, 0.2, 0.1]], [[0.25, 0.75, 0.0001], [0.7, 0.2, 0.1]], [1, 0])
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3
    assert found.max_kl == pytest.approx(0.5 * math.log(4 / 3), rel=1e-3)
    assert found.kl == pytest.approx(found.max_kl / 2, rel=1e-6)
    assert found.perplexity == pytest.approx(math.sqrt(1 / (0.75 * 0.7)), rel=1e-3)
    assert found.reference_perplexity == pytest.approx(math.sqrt(1 / (0.5 * 0.7)), rel=1e-3)
    assert found.top1_agreement == 0.5


def test_the_direction_is_from_the_reference():
    one, other = [[0.9, 0.1]], [[0.5, 0.5]]
    assert compared(one, other, [0]).kl == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-5)
    assert compared(other, one, [0]).kl == pytest.approx(0.5 * math.log(1 / 1.8) + 0.5 * math.log(5), rel=1e-5)


def test_texts_add_up_to_what_they_give_together():
    random = np.random.default_rng(1)
    one, other = random.standard_normal((2, 30, 17), np.float32)
    targets = random.integers(0, 17, 30)
    whole, parts = Comparison(), Comparison()
    whole.add(one, other, targets)
    for part in (slice(0, 11), slice(11, 11), slice(11, 30)):
        parts.add(one[part], other[part], targets[part])
    assert parts.kl == pytest.approx(whole.kl, rel=1e-12)
    assert (parts.max_kl, parts.agreed, parts.tokens) == (whole.max_kl, whole.agreed, whole.tokens)


def test_logits_that_do_not_fit_or_are_not_finite_are_refused():
    zeros = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"expected \(T, vocab\) twice"):
        Comparison().add(zeros, zeros, np.array([1]))
    broken = zeros.copy()
    broken[1, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Comparison().add(zeros, broken, np.array([1, 2]))
