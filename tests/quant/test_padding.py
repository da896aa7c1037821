"""Widths that are no multiple of a group or word: padding after the last feature is zero, in the file and in sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm.errors import ModelError
from minicpm.formats.compressed_tensors import Packing
from minicpm.quant import rtn
from minicpm.quant.format import LARGEST_SCALE, SMALLEST_SCALE, WEIGHT_TYPES, IntWeight, round_scales

BITS = (4, 8)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 200), st.sampled_from([32, 64, 128]))


def some_codes(bits: int, N: int, K: int, seed: int = 0) -> np.ndarray:
    kind = WEIGHT_TYPES[bits]
    return np.random.default_rng(seed).integers(kind.low, kind.high + 1, (N, K)).astype(np.int8)


def packed(bits: int, codes: np.ndarray, G: int) -> IntWeight:
    N, K = codes.shape
    return WEIGHT_TYPES[bits].pack(codes, np.ones((N, -(-K // G)), np.float16), G)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1 << 30))
def test_stored_rows_are_whole_words_with_zeros_behind_the_last_code(bits: int, shape, seed: int):
    N, K, G = shape
    rows = packed(bits, some_codes(bits, N, K, seed), G).packed
    assert rows.shape == (N, 4 * -(-K * bits // 32))
    stored = np.stack([rows & 15, rows >> 4], axis=2).reshape(N, -1) if bits == 4 else rows
    assert not stored[:, K:].any()


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1 << 30))
def test_grouped_codes_are_the_codes_and_zeros_behind_them(bits: int, shape, seed: int):
    N, K, G = shape
    codes = some_codes(bits, N, K, seed)
    grouped = packed(bits, codes, G).grouped_codes()
    assert grouped.shape == (N, -(-K // G), G)
    flat = grouped.reshape(N, -1)
    assert np.array_equal(flat[:, :K], codes) and not flat[:, K:].any()


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1 << 30), is_weighted=st.booleans())
def test_a_width_is_rounded_as_if_zeros_filled_its_last_group(bits: int, shape, seed: int, is_weighted: bool):
    N, K, G = shape
    random = np.random.default_rng(seed)
    weight = random.standard_normal((N, K)).astype(np.float32)
    importance = random.uniform(0, 2, K).astype(np.float32) if is_weighted else None
    found = rtn.quantize(weight, Packing(bits, G), importance)
    whole = rtn.quantize(
        np.pad(weight, ((0, 0), (0, -K % G))),
        Packing(bits, G),
        None if importance is None else np.pad(importance, (0, -K % G), constant_values=1),
    )
    assert np.array_equal(found.codes(), whole.codes()[:, :K])
    assert np.array_equal(found.scales, whole.scales)


@pytest.mark.parametrize("bits", BITS)
def test_the_whole_range_of_codes_and_nothing_beyond_is_stored(bits: int):
    kind = WEIGHT_TYPES[bits]
    every = np.arange(kind.low, kind.high + 1, dtype=np.int8)[None]
    assert np.array_equal(packed(bits, every, 32).codes(), every)
    for code in (kind.low - 1, kind.high + 1):
        if -128 <= code <= 127:
            with pytest.raises(ValueError, match="outside"):
                packed(bits, np.full((1, 4), code, np.int8), 32)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 2.0**-24), (1e-30, 2.0**-24), (1e30, 65280.0), (65500.0, 65280.0)]
)
def test_scales_stay_within_what_both_halves_hold(value: float, expected: float):
    assert round_scales(np.array([value], np.float32)).astype(np.float32).tolist() == [expected]
    assert float(SMALLEST_SCALE) <= expected <= float(LARGEST_SCALE)


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_refused_only_where_the_largest_scale_and_code_do_not_reach(bits: int):
    reach = float(LARGEST_SCALE) * WEIGHT_TYPES[bits].high
    for factor in (0.5, 1.0):
        weight = np.full((1, 32), factor * reach, np.float32)
        assert np.allclose(rtn.quantize(weight, Packing(bits, 32)).dequantize(), weight, rtol=0.02)
    with pytest.raises(ModelError, match="finite values only"):
        rtn.quantize(np.full((1, 32), 1.01 * reach, np.float32), Packing(bits, 32))


# --- importance ----------------------------------------------------------------------------------------------

WEIGHTED = Packing(4, 32)


def weighted_errors(weight: np.ndarray, dequantized: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Of every group: (N, K / 32)."""
    return (np.square(dequantized - weight) * importance).reshape(len(weight), -1, 32).sum(axis=2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), spread=st.floats(0.5, 4))
def test_no_scale_of_the_grid_has_less_weighted_error_than_the_chosen_one(seed: int, spread: float):
    random = np.random.default_rng(seed)
    weight = random.standard_normal((8, 64)).astype(np.float32)
    importance = np.exp(spread * random.standard_normal(64)).astype(np.float32)
    chosen = weighted_errors(weight, rtn.quantize(weight, WEIGHTED, importance).dequantize(), importance)
    largest = np.abs(weight.reshape(8, -1, 32)).max(axis=2)
    for steps in np.arange(6.5, 9.01, 0.25):
        scales = np.repeat(round_scales(largest / np.float32(steps)).astype(np.float32), 32, axis=1)
        plain = np.clip(np.rint(weight / scales), -8, 7) * scales
        assert (chosen <= weighted_errors(weight, plain, importance) * (1 + 1e-5)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_a_feature_without_importance_has_no_say_in_the_scale(seed: int):
    random = np.random.default_rng(seed)
    weight = random.standard_normal((4, 32)).astype(np.float32)
    weight[:, 0] = 4.0  # the largest one, which the search begins with, stays
    importance = random.uniform(0.5, 2, 32).astype(np.float32)
    ignored = random.permutation(np.arange(1, 32))[:16]
    importance[ignored] = 0
    other = weight.copy()
    other[:, ignored] = random.standard_normal((4, 16))
    one, two = (rtn.quantize(values, WEIGHTED, importance) for values in (weight, other))
    assert np.array_equal(one.scales, two.scales)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), factor=st.sampled_from([0.25, 1.0, 1024.0]))
def test_equal_importance_of_all_features_is_none(seed: int, factor: float):
    weight = np.random.default_rng(seed).standard_normal((4, 100)).astype(np.float32)
    one = rtn.quantize(weight, WEIGHTED, np.full(100, factor, np.float32))
    two = rtn.quantize(weight, WEIGHTED)
    assert np.array_equal(one.scales, two.scales) and np.array_equal(one.codes(), two.codes())
