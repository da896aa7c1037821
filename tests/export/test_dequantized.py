"""A quantized model read as floats: exactly the numbers that its codes, or the blocks of its file, stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from minicpm.errors import FormatError
from minicpm.export.dequantized import open_dequantized
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import Q4_0, Q4_K, Q6_K, Q8_0, BlockType
from minicpm.formats.gguf_model import published_rows, stored_name
from minicpm.quant.format import PRESETS, IntWeight, read_weight
from small_gguf import Parts, random_blocks
from small_models import ONE_BLOCK, WIDE, random_weights, write_model

EMBEDDING, Q_PROJ, DOWN = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
)
# Rows of whole blocks of 256.
WIDE_ROWS = replace(ONE_BLOCK, hidden_size=256, intermediate_size=512)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_folder_is_read_as_codes_times_scales(tmp_path: Path, preset: str):
    quantize_folder(write_model(tmp_path / "wide", WIDE, random_weights(WIDE)), tmp_path / "out", preset=preset)
    with open_dequantized(tmp_path / "out") as floats, open_checkpoint(tmp_path / "out", allow_quantized=True) as codes:
        assert not floats.packings and list(floats.tensors) == list(WIDE.parameter_shapes())
        for name in floats.tensors:
            weight = read_weight(codes, name)
            expected = weight.dequantize() if isinstance(weight, IntWeight) else weight.float32()
            assert np.array_equal(floats.read(name).float32(), expected)
        kinds = {"int8": "INT8", "int4-hf": "INT4", "int4-small": "INT4"}
        assert floats.dequantized == kinds.get(preset, "INT4 and INT8")


def test_a_model_of_floats_is_only_opened(tmp_path: Path):
    with open_dequantized(write_model(tmp_path / "wide", WIDE)) as checkpoint:
        assert checkpoint.dequantized is None


@pytest.mark.parametrize("kind", [Q4_0, Q8_0, Q4_K, Q6_K], ids=lambda kind: kind.name)
def test_a_gguf_file_is_read_as_ggml_reads_it(tmp_path: Path, kind: BlockType):
    """Not as the INT8 that the engines run: that would round Q4_K and Q6_K once more."""
    parts, expected = Parts(WIDE_ROWS), {}
    for seed, name in enumerate((EMBEDDING, Q_PROJ, DOWN)):
        N, K = WIDE_ROWS.parameter_shapes()[name]
        blocks = blocks_of(kind, seed, N, K // kind.elements)
        parts.store(stored_name(name), kind, blocks, (N, K))
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind.id))
        order = published_rows(WIDE_ROWS, name)
        expected[name] = values if order is None else values[order]
    with open_dequantized(parts.write(tmp_path / "model.gguf")) as checkpoint:
        assert checkpoint.dequantized == kind.name
        for name, values in expected.items():
            assert np.array_equal(checkpoint.read(name).float32(), values)


def blocks_of(kind: BlockType, seed: int, rows: int, blocks: int) -> np.ndarray:
    if kind not in (Q4_0, Q8_0):
        return random_blocks(kind, seed, [0.01, -0.02, 1.0], rows, blocks)
    made = np.random.default_rng(seed).integers(0, 255, (rows, blocks, kind.nbytes), dtype=np.uint8)
    made[:, :, :2] = np.array([0.01], "<f2").view(np.uint8)
    made[made == 128] = 127  # no code of -128
    return made.reshape(rows, -1)


def test_numbers_of_a_file_that_are_not_finite_are_refused(tmp_path: Path):
    parts = Parts(WIDE_ROWS)
    N, K = WIDE_ROWS.parameter_shapes()[DOWN]
    parts.store(stored_name(DOWN), Q4_K, random_blocks(Q4_K, 0, [np.inf], N, K // 256), (N, K))
    with (
        open_dequantized(parts.write(tmp_path / "model.gguf")) as checkpoint,
        pytest.raises(FormatError, match=r"down_proj\.weight holds numbers that are not finite"),
    ):
        checkpoint.read(DOWN)
