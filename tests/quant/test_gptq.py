"""GPTQ: what its definition says, against a solver of the same greedy steps that works on the whole inverse."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm.errors import ModelError
from minicpm.formats.compressed_tensors import Packing
from minicpm.quant import gptq, rtn
from minicpm.quant.format import WEIGHT_TYPES, Int4Weight, IntWeight

Matrix = npt.NDArray[np.float64]


def inputs(K: int, seed: int, rows: int = 600) -> Matrix:
    """Correlated inputs (rows, K) with a few large channels, as a model's activations are."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, K)) @ (np.eye(K) + 0.5 * random.standard_normal((K, K)) / np.sqrt(K))
    return mixed * np.where(random.random(K) < 0.05, 12.0, 1.0)


def loss(weight: npt.NDArray[np.float32], made: IntWeight, moments: Matrix) -> float:
    """The squared error of the outputs: trace(E H E^T)."""
    error = made.dequantize().astype(np.float64) - weight
    return float(((error @ moments) * error).sum())


def solved(weight: Matrix, moments: Matrix, order: npt.NDArray[np.int64], scales: Matrix, bits: int, G: int) -> Matrix:
    """Codes by the optimal brain surgeon's step: after each column its row and column leave the inverse."""
    kind = WEIGHT_TYPES[bits]
    left, inverse, codes = weight.copy(), np.linalg.inv(moments), np.zeros(weight.shape)
    for column in order:
        step = scales[:, column // G]
        codes[:, column] = np.clip(np.rint(left[:, column] / step), kind.low, kind.high)
        error = (left[:, column] - codes[:, column] * step) / inverse[column, column]
        left -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@pytest.mark.parametrize(("bits", "K", "G"), [(4, 128, 64), (4, 96, 32), (8, 128, 64), (4, 100, 64)])
def test_codes_are_those_of_the_surgeon_with_the_same_scales(bits: int, K: int, G: int):
    weight = np.random.default_rng(1).standard_normal((24, K)).astype(np.float32)
    X = inputs(K, seed=2)
    moments = X.T @ X
    made = gptq.quantize(weight, Packing(bits, G), moments, rounds=0)
    damped = moments + gptq.DAMPING * np.diagonal(moments).mean() * np.eye(K)
    order = gptq.rounding_order(np.diagonal(moments), G)
    expected = solved(weight.astype(np.float64), damped, order, made.scales.astype(np.float64), bits, G)
    # A tie of rounding may fall otherwise in float32, and then columns behind it differ, too.
    assert (made.codes() == expected).mean() > 0.99


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 20), G=st.sampled_from([32, 64, 128]), bits=st.sampled_from([4, 8]))
def test_outputs_lose_less_than_by_rounding_to_nearest(seed: int, G: int, bits: int):
    weight = np.random.default_rng(seed).standard_normal((32, 256)).astype(np.float32)
    X = inputs(256, seed)
    moments = X.T @ X
    packing = Packing(bits, G)
    before = loss(weight, rtn.quantize(weight, packing), moments)
    assert loss(weight, gptq.quantize(weight, packing, moments), moments) < 0.8 * before


def test_it_helps_on_inputs_that_it_has_not_seen():
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    X = inputs(128, seed=5, rows=2000)
    seen, unseen = X[:1000].T @ X[:1000], X[1000:].T @ X[1000:]
    made = gptq.quantize(weight, Packing(4, 64), seen)
    assert loss(weight, made, unseen) < 0.8 * loss(weight, rtn.quantize(weight, Packing(4, 64)), unseen)


def test_independent_inputs_of_one_size_leave_rounding_to_nearest():
    weight = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    made = gptq.quantize(weight, Packing(4, 64), np.eye(128) * 7.0, rounds=0)
    plain = rtn.quantize(weight, Packing(4, 64))
    assert np.array_equal(made.codes(), plain.codes()) and np.array_equal(made.scales, plain.scales)


def damped(moments: Matrix) -> Matrix:
    return moments + gptq.DAMPING * np.diagonal(moments).mean() * np.eye(len(moments))


@pytest.mark.parametrize(("K", "G"), [(128, 64), (100, 64), (96, 32)])
def test_fitted_scales_are_those_of_least_squares_on_the_inputs(K: int, G: int):
    weight = np.random.default_rng(1).standard_normal((8, K)).astype(np.float32)
    X = inputs(K, seed=2)
    made = gptq.quantize(weight, Packing(4, G), X.T @ X, rounds=0)
    codes = made.codes()
    found = gptq.fitted_scales(weight, (X.T @ X).astype(np.float32), codes, made.scales, G)
    for row in range(len(weight)):
        parts = [X[:, start : start + G] @ codes[row, start : start + G] for start in range(0, K, G)]
        expected, *_ = np.linalg.lstsq(np.stack(parts, axis=1), X @ weight[row], rcond=None)
        assert found[row] == pytest.approx(expected, rel=2**-8)  # rounded to what float16 and bfloat16 both hold


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 20), G=st.sampled_from([32, 64, 128]), K=st.sampled_from([96, 128, 200]))
def test_neither_step_makes_the_outputs_worse(seed: int, G: int, K: int):
    weight = np.random.default_rng(seed).standard_normal((16, K)).astype(np.float32)
    X = inputs(K, seed)
    moments = damped(X.T @ X)
    made = rtn.quantize(weight, Packing(4, G))
    codes, scales, losses = made.codes(), made.scales, [loss(weight, made, moments)]
    for _ in range(3):
        scales = gptq.fitted_scales(weight, moments.astype(np.float32), codes, scales, G)
        losses.append(loss(weight, Int4Weight.pack(codes, scales, G), moments))
        codes = gptq.descended(weight, moments.astype(np.float32), codes, scales, G, -8, 7)
        losses.append(loss(weight, Int4Weight.pack(codes, scales, G), moments))
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_descent_ends_where_no_single_code_can_be_better():
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    X = inputs(64, seed=1)
    moments = damped(X.T @ X)
    made = rtn.quantize(weight, Packing(4, 32))
    codes = made.codes()
    for _ in range(50):
        codes = gptq.descended(weight, moments.astype(np.float32), codes, made.scales, 32, -8, 7)
    best = loss(weight, Int4Weight.pack(codes, made.scales, 32), moments)
    for column in range(64):
        for step in (-1, 1):
            for row in range(len(weight)):
                if -8 <= codes[row, column] + step <= 7:
                    other = codes.copy()
                    other[row, column] += step
                    changed = loss(weight, Int4Weight.pack(other, made.scales, 32), moments)
                    assert changed >= best * (1 - 1e-5)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([32, 64]))
def test_groups_stay_together_and_the_heaviest_comes_first(importance: list[float], G: int):
    order = gptq.rounding_order(np.array(importance), G)
    assert sorted(order) == list(range(len(importance)))
    groups = [int(column) // G for column in order]
    first = list(dict.fromkeys(groups))
    assert groups == sorted(groups, key=first.index)
    sums = [sum(importance[g * G : (g + 1) * G]) for g in first]
    assert all(a >= b or np.isclose(a, b) for a, b in itertools.pairwise(sums))


def test_inputs_that_are_always_zero_or_repeat_others_do_no_harm():
    weight = np.random.default_rng(3).standard_normal((16, 128)).astype(np.float32)
    X = inputs(128, seed=3)
    X[:, 7], X[:, 9] = 0, X[:, 8]
    moments = X.T @ X
    made = gptq.quantize(weight, Packing(4, 64), moments)
    assert np.isfinite(made.dequantize()).all()
    assert loss(weight, made, moments) < loss(weight, rtn.quantize(weight, Packing(4, 64)), moments)
    silent = gptq.quantize(weight, Packing(4, 64), np.zeros((128, 128)))
    assert np.abs(silent.dequantize() - weight).max() < 1


def test_bad_numbers_are_refused_by_name():
    weight = np.ones((4, 64), np.float32)
    with pytest.raises(ModelError, match="second moments of its inputs are not finite"):
        gptq.quantize(weight, Packing(4, 64), np.full((64, 64), np.nan))
    with pytest.raises(ModelError, match="largest weight is inf"):
        gptq.quantize(weight * np.inf, Packing(4, 64), np.eye(64))
    with pytest.raises(ValueError, match="do not match 64 input features"):
        gptq.quantize(weight, Packing(4, 64), np.eye(32))
