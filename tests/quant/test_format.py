"""Codes, scales and packing: identities, ranges, and oracles that read the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm.errors import FormatError
from minicpm.formats.compressed_tensors import PACKED, SCALE, SHAPE, Packing
from minicpm.formats.config import DecoderConfig
from minicpm.formats.tensor import STORAGE_DTYPES, TensorView, round_to_bfloat16
from minicpm.quant import rtn
from minicpm.quant.format import WEIGHT_TYPES, Int4Weight, Int8Weight, IntWeight, read_weight, round_scales

BITS = (4, 8)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 300), st.sampled_from([32, 64, 128]))


def random_weight(bits: int, N: int, K: int, G: int, seed: int = 0):
    """Codes over the whole range and scales of many magnitudes."""
    random = np.random.default_rng(seed)
    kind = WEIGHT_TYPES[bits]
    codes = random.integers(kind.low, kind.high + 1, (N, K)).astype(np.int8)
    scales = round_scales(np.exp2(random.uniform(-20, 10, (N, -(-K // G)))).astype(np.float32))
    return codes, scales, kind.pack(codes, scales, G)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1 << 30))
def test_packing_then_unpacking_is_identity(bits: int, shape: tuple[int, int, int], seed: int):
    codes, scales, weight = random_weight(bits, *shape, seed=seed)
    assert np.array_equal(weight.codes(), codes)
    wide = np.repeat(scales.astype(np.float64), shape[2], axis=1)[:, : shape[1]]
    assert np.array_equal(weight.dequantize(), codes * wide)  # exact: equal to the product in float64


def test_a_slice_of_rows_is_a_view_of_them():
    codes, _, weight = random_weight(4, 8, 70, 32)
    part = weight.rows(slice(2, 5))
    assert np.shares_memory(part.packed, weight.packed)
    assert np.array_equal(part.codes(), codes[2:5])


@given(st.floats(2.0**-30, 1e6, width=32))
def test_scales_are_exact_in_float16_and_bfloat16(scale: float):
    rounded = round_scales(np.array([scale], np.float32))
    wide = rounded.astype(np.float32)
    assert np.array_equal((round_to_bfloat16(wide).astype(np.uint32) << 16).view(np.float32), wide)
    assert 0 < wide[0] < np.inf
    if 2.0**-14 <= scale <= 65000:
        assert abs(wide[0] - scale) <= 2.0**-8 * scale


@pytest.mark.parametrize(("kind", "code"), [(Int4Weight, 8), (Int4Weight, -9), (Int8Weight, -128)])
def test_codes_out_of_range_are_refused(kind, code: int):
    with pytest.raises(ValueError, match="outside"):
        kind.pack(np.full((1, 32), code, np.int8), np.ones((1, 1), np.float16), 32)


@pytest.mark.parametrize("packed, scales", [((2, 12), (2, 1)), ((2, 16), (2, 2)), ((2, 16), (1, 1))])
def test_shapes_that_contradict_each_other_are_refused(packed: tuple[int, int], scales: tuple[int, int]):
    with pytest.raises(ValueError, match=r"packed|scales"):
        Int4Weight(np.zeros(packed, np.uint8), np.ones(scales, np.float16), 32, 32)


class TestRounding:
    """rtn.quantize."""

    @pytest.mark.parametrize("bits", BITS)
    @settings(max_examples=25, deadline=None)
    @given(shape=SHAPES, seed=st.integers(0, 1 << 30), spread=st.floats(1e-4, 100))
    def test_no_code_can_be_chosen_better_and_zeros_stay(self, bits, shape, seed, spread):
        N, K, G = shape
        weight = (np.random.default_rng(seed).standard_normal((N, K)) * spread).astype(np.float32)
        weight[0, : K // 2] = 0
        made = rtn.quantize(weight, Packing(bits, G))
        error = np.abs(made.dequantize() - weight)
        scales = np.repeat(made.scales.astype(np.float32), G, axis=1)[:, :K]
        codes = made.codes()
        inside = (codes > made.low) & (codes < made.high)
        assert (error[inside] <= scales[inside] * 0.50001).all()
        assert (made.dequantize()[weight == 0] == 0).all()

    def test_the_search_beats_the_largest_magnitude_alone(self):
        weight = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
        searched = np.square(rtn.quantize(weight, Packing(4, 64)).dequantize() - weight).sum()
        scales = round_scales(np.abs(weight.reshape(64, -1, 64)).max(axis=2) / np.float32(7))
        wide = np.repeat(scales.astype(np.float32), 64, axis=1)
        plain = np.square(np.clip(np.rint(weight / wide), -8, 7) * wide - weight).sum()
        assert searched < 0.9 * plain

    def test_importance_moves_the_error_to_where_it_matters_less(self):
        weight = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
        importance = np.where(np.arange(128) % 2, 100, 0.01).astype(np.float32)

        def error(made):
            return np.square(made.dequantize() - weight)[:, 1::2].sum()

        assert error(rtn.quantize(weight, Packing(4, 64), importance)) < error(rtn.quantize(weight, Packing(4, 64)))

    def test_constant_and_zero_groups_are_exact(self):
        weight = np.repeat(np.array([[0.0, 1.75, -0.4375, 2.0**-20]], np.float32).T, 64, axis=1)
        for bits in BITS:
            found = rtn.quantize(weight, Packing(bits, 64)).dequantize()
            assert np.abs(found - weight).max() <= 0.01 * 1.75
            assert (found[0] == 0).all()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
    def test_weights_without_a_scale_are_refused(self, bad: float):
        weight = np.ones((2, 64), np.float32)
        weight[1, 3] = bad
        with pytest.raises(Exception, match="largest weight"):
            rtn.quantize(weight, Packing(4, 64))


class TestGguf:
    """gguf-py, an oracle we did not write, reads our codes and scales as Q4_0 and Q8_0 blocks of 32."""

    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("G", [32, 64, 128])
    def test_blocks_of_32_have_our_numbers_bit_for_bit(self, bits: int, G: int):
        quants = pytest.importorskip("gguf.quants", reason="gguf-py is not installed")
        from gguf import GGMLQuantizationType

        codes, scales, weight = random_weight(bits, 6, 256, G)
        blocks = np.repeat(scales, G // 32, axis=1)[:, :, None].view(np.uint8).reshape(6, 8, 2)
        parts = codes.reshape(6, 8, 32)
        if bits == 4:
            nibbles = (parts + 8).astype(np.uint8)
            body, kind = nibbles[:, :, :16] | nibbles[:, :, 16:] << 4, GGMLQuantizationType.Q4_0
        else:
            body, kind = parts.view(np.uint8), GGMLQuantizationType.Q8_0
        raw = np.concatenate([blocks, body], axis=2).reshape(6, -1)
        assert np.array_equal(quants.dequantize(raw, kind), weight.dequantize())

    @pytest.mark.parametrize(
        ("bits", "name", "distribution", "margin"),
        [
            (4, "Q4_0", "standard_normal", 1.0),
            # Q4_0 gives its scale the sign that puts the largest weight on the side with 8 steps; ours is positive.
            (4, "Q4_0", "laplace", 1.05),
            (8, "Q8_0", "standard_normal", 1.02),  # our scales have 8 significant bits, Q8_0's 11
        ],
    )
    def test_our_rounding_is_as_good_at_equal_size(self, bits: int, name: str, distribution: str, margin: float):
        quants = pytest.importorskip("gguf.quants", reason="gguf-py is not installed")
        from gguf import GGMLQuantizationType

        kind = getattr(GGMLQuantizationType, name)
        weight = getattr(np.random.default_rng(2), distribution)(size=(256, 1024)).astype(np.float32)
        theirs = np.square(quants.dequantize(quants.quantize(weight, kind), kind) - weight).sum()
        ours = np.square(rtn.quantize(weight, Packing(bits, 32)).dequantize() - weight).sum()
        assert ours <= margin * theirs


# --- reading a stored weight --------------------------------------------------------------------------------------

NAME = "model.layers.0.mlp.down_proj.weight"


class InMemory:
    """One packed weight of a model that has no file."""

    config = DecoderConfig(
        vocab_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, scale_emb=1, scale_depth=1, dim_model_base=32,
    )  # fmt: skip

    def __init__(self, weight: IntWeight, *, has_signed_scales: bool = False, shape: tuple[int, int] = (32, 64)):
        self.packings = {NAME: Packing(weight.bits, weight.group_size)}
        self.has_signed_scales = has_signed_scales
        self._stored = {
            NAME + PACKED: weight.packed.view(np.int32),
            NAME + SCALE: weight.scales,
            NAME + SHAPE: np.array(shape, np.int64),
            "model.norm.weight": np.ones(32, np.float32),
        }

    def read(self, name: str) -> TensorView:
        values = np.ascontiguousarray(self._stored[name])
        dtype = next(dtype for dtype, storage in STORAGE_DTYPES.items() if storage == values.dtype)
        return TensorView(name, dtype, values.shape, values.data.cast("B"))

    def damaged(self, problem: str) -> FormatError:
        return FormatError("memory", problem)


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_is_read_from_any_object_that_holds_its_tensors(bits: int):
    codes, scales, weight = random_weight(bits, 32, 64, 32)
    read = read_weight(InMemory(weight), NAME)
    assert isinstance(read, IntWeight)
    assert np.array_equal(read.codes(), codes) and np.array_equal(read.scales, scales)
    assert isinstance(read_weight(InMemory(weight), "model.norm.weight"), TensorView)


def test_a_negative_scale_is_read_only_where_scales_are_signed():
    codes, scales, _ = random_weight(4, 32, 64, 32)
    weight = Int4Weight.pack(codes, -scales, 32)
    with pytest.raises(FormatError, match=r"memory: .*_scale holds a scale that is negative or not finite"):
        read_weight(InMemory(weight), NAME)
    read = read_weight(InMemory(weight, has_signed_scales=True), NAME)
    assert isinstance(read, IntWeight) and np.array_equal(read.scales, -scales)
    scales[3, 1] = np.inf
    with pytest.raises(FormatError, match="negative or not finite"):
        read_weight(InMemory(Int4Weight.pack(codes, scales, 32), has_signed_scales=True), NAME)


def test_a_stored_shape_that_contradicts_the_configuration_is_refused():
    _, _, weight = random_weight(4, 32, 64, 32)
    with pytest.raises(FormatError, match=r"_shape contradicts the configuration's \[32, 64\]"):
        read_weight(InMemory(weight, shape=(64, 32)), NAME)
