"""GGUF's other block types: ggml's numbers to the last bit, and INT8 of them with the loss that is promised."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm.errors import FormatError, ModelError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import BLOCK_TYPES, IQ4_NL, Q2_K, Q4_K, Q5_0, Q5_K, Q6_K, BlockType
from minicpm.formats.gguf_blocks import BLOCK_TYPES_OF_BITS
from minicpm.formats.gguf_model import FLOAT_TYPES, rows_to_store, stored_name
from minicpm.formats.gguf_widening import int8_of, widen
from minicpm.quant.format import Int8Weight, read_weight
from small_gguf import HALVES, Parts, random_blocks
from small_models import WIDE

# All that are read and not kept as they are: one more has to widen, too.
AS_THEY_ARE = [*FLOAT_TYPES.values(), *BLOCK_TYPES_OF_BITS.values()]
KINDS = [kind for kind in BLOCK_TYPES.values() if kind not in AS_THEY_ARE]
EXACT = [Q5_0, IQ4_NL]
# The ends of float16, its subnormal numbers, zeros of both signs, and what a model has.
SCALES = [0.0, -0.0, 6e-8, -6e-8, 1e-7, 3e-5, 6.104e-5, 1e-3, -1e-3, 0.02, 1.0, -7.5, 100.0]
DAMAGED_SCALES = [np.inf, -np.inf, np.nan, 65504.0]


def by_name(kinds: list[BlockType]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


def ggml(blocks: np.ndarray, kind: BlockType) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind.id))


def int8_numbers(blocks: np.ndarray, kind: BlockType) -> tuple[np.ndarray, np.ndarray]:
    """What the INT8 codes mean, and every number's step."""
    codes, scales = int8_of(blocks, kind)
    weight = Int8Weight(codes, scales, codes.shape[1], 32)
    assert weight.codes().min() >= -127
    return weight.dequantize(), np.repeat(np.abs(scales.astype(np.float64)), 32, axis=1)


def test_sizes_are_ggmls():
    for number, kind in BLOCK_TYPES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.elements, kind.nbytes)


@by_name(KINDS)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=20, deadline=None)
def test_blocks_widen_to_the_numbers_of_ggml(kind: BlockType, seed: int):
    blocks = random_blocks(kind, seed, SCALES + DAMAGED_SCALES)
    found, expected = widen(blocks, kind), ggml(blocks, kind)
    assert found.dtype == np.float32
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    is_number = ~np.isnan(expected)
    assert np.array_equal(found.view(np.uint32)[is_number], expected.view(np.uint32)[is_number])


@by_name([kind for kind in KINDS if kind not in EXACT])
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=20, deadline=None)
def test_int8_loses_at_most_half_a_step(kind: BlockType, seed: int):
    blocks = random_blocks(kind, seed, SCALES)
    found, steps = int8_numbers(blocks, kind)
    expected = ggml(blocks, kind).astype(np.float64)
    assert (np.abs(found - expected) <= steps * (0.5 + 1e-5)).all()
    largest = np.repeat(np.abs(expected).reshape(len(blocks), -1, 32).max(axis=2), 32, axis=1)
    # A step is the largest number's 127th part, rounded up to the next float16.
    assert (steps <= largest / 127 * (1 + 2.0**-10) + 2.0**-24).all()


@by_name(EXACT)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=20, deadline=None)
def test_whole_numbers_times_a_scale_lose_nothing(kind: BlockType, seed: int):
    blocks = random_blocks(kind, seed, [*SCALES, 65504.0, -65504.0])
    assert np.array_equal(int8_numbers(blocks, kind)[0], ggml(blocks, kind))


@by_name(KINDS)
@pytest.mark.parametrize("bad", [np.inf, np.nan], ids=str)
def test_a_scale_that_is_no_number_is_refused(kind: BlockType, bad: float):
    blocks = random_blocks(kind, 0, [0.01])
    at = HALVES[kind][0]
    blocks[3, kind.nbytes + at : kind.nbytes + at + 2] = np.array([bad], "<f2").view(np.uint8)
    with pytest.raises(ModelError, match="not finite"):
        int8_of(blocks, kind)


@pytest.mark.parametrize("kind", [Q4_K, Q5_K, Q2_K, Q6_K], ids=lambda kind: kind.name)
def test_numbers_beyond_every_step_are_refused(kind: BlockType):
    blocks = np.full((1, kind.nbytes), 0x7B, np.uint8)  # 0x7b7b is 61,280 as a float16
    with np.errstate(over="ignore"):
        largest = np.abs(ggml(blocks, kind)).max()
    if largest <= 65504 * 127:
        assert np.isfinite(int8_numbers(blocks, kind)[0]).all()
    else:
        with pytest.raises(ModelError, match="too large"):
            int8_of(blocks, kind)


@by_name(KINDS)
def test_a_file_of_such_weights_opens_as_int8(kind: BlockType, tmp_path):
    """q, whose rows are stored in another order, and down, of a model as wide as a block of 256."""
    config = replace(WIDE, hidden_size=256, intermediate_size=512, vocab_size=12)
    parts = Parts(config)
    blocks = {}
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        N, K = config.parameter_shapes()[name]
        blocks[name] = random_blocks(kind, N, [0.001, -0.002], rows=N, blocks=K // kind.elements)
        parts.store(stored_name(name), kind, blocks[name], (N, K))
    with open_checkpoint(parts.write(tmp_path / "model.gguf"), allow_quantized=True) as checkpoint:
        for name, stored in blocks.items():
            weight = read_weight(checkpoint, name)
            assert isinstance(weight, Int8Weight)
            order = rows_to_store(config, name)
            found = weight.dequantize() if order is None else weight.dequantize()[order]
            assert np.array_equal(found, int8_numbers(stored, kind)[0])


@by_name([kind for kind in KINDS if kind.elements == 32])
def test_a_file_whose_scales_are_damaged_is_refused_by_name(kind: BlockType, tmp_path):
    parts = Parts()
    name = "model.layers.0.mlp.down_proj.weight"
    parts.store(stored_name(name), kind, random_blocks(kind, 0, [np.inf], 32, 2), (32, 64))
    parts.write(tmp_path / "model.gguf")
    with (
        open_checkpoint(tmp_path / "model.gguf", allow_quantized=True) as checkpoint,
        pytest.raises(FormatError, match=r"blk\.0\.ffn_down\.weight: .* not finite"),
    ):
        read_weight(checkpoint, name)


@by_name(KINDS)
def test_a_file_that_ends_inside_a_block_is_refused(kind: BlockType, tmp_path):
    parts = Parts()
    parts.tensors.clear()
    parts.store("token_embd.weight", kind, random_blocks(kind, 0, [0.01], 4, 1), (4, kind.elements))
    path = parts.write(tmp_path / "model.gguf")
    whole = path.read_bytes()
    end = whole.index(b"token_embd.weight")
    for cut in (1, kind.nbytes // 2, kind.nbytes, 3 * kind.nbytes):
        padding = -4 * kind.nbytes % 32
        path.write_bytes(whole[: len(whole) - padding - cut])
        assert path.stat().st_size > end
        with pytest.raises(FormatError, match="truncated"):
            open_checkpoint(path, allow_quantized=True)
