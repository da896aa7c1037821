"""Outlier-scaled copies compute the same as their source, and the quantizer equalizes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from benchmark_scripts import load
from minicpm.engine.backend import Row
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.errors import ModelError
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.quant.equalize import block_scales
from minicpm.quant.format import PRESETS, IntWeight, read_weight
from minicpm.quant.rescaling import BlockScales
from small_models import EVEN, ODD, write_model

outliers = load("outliers")

IDS = np.random.default_rng(0).integers(0, 203, 40).tolist()


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("even") / "even", EVEN)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("odd") / "odd", ODD)


def logits(folder: Path) -> np.ndarray:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        backend = NumpyBackend(checkpoint)
    return backend.forward([Row(backend.new_sequence(len(IDS)), IDS, "all")])[0]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


# --- outlier-scaled copies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["even", "odd"])
@pytest.mark.parametrize("factor", [30, 100, 300])
def test_a_scaled_copy_computes_the_same_as_its_source(
    request: pytest.FixtureRequest, tmp_path: Path, shape: str, factor: float
):
    source = request.getfixturevalue(shape)
    outliers.write_outlier_copy(source, tmp_path / "scaled", factor, seed=0)
    expected, found = logits(source), logits(tmp_path / "scaled")
    # Every rescaled number is rounded two or three times more, by 2**-24 of itself each.
    assert 0 < np.abs(found - expected).max() < 16 * 2.0**-24 * np.abs(expected).max()


@pytest.mark.parametrize("shape", ["even", "odd"])
def test_a_copy_scaled_by_a_power_of_two_has_the_bits_of_its_source(
    request: pytest.FixtureRequest, tmp_path: Path, shape: str
):
    source = request.getfixturevalue(shape)
    outliers.write_outlier_copy(source, tmp_path / "scaled", 128, seed=0)
    assert np.array_equal(logits(source), logits(tmp_path / "scaled"))


def test_every_place_has_outliers_and_only_so_many(even: Path, tmp_path: Path):
    outliers.write_outlier_copy(even, tmp_path / "scaled", 100, seed=0)
    before, after = weights(even), weights(tmp_path / "scaled")
    changed = {name: np.abs(after[name] / before[name]) for name in before}
    block = "model.layers.1"
    for name, axis, count in (
        (f"{block}.input_layernorm", None, 1),
        (f"{block}.post_attention_layernorm", None, 1),
        (f"{block}.mlp.down_proj", 0, 2),
        (f"{block}.self_attn.v_proj", 1, None),
    ):
        ratios = changed[f"{name}.weight"]
        ratios = ratios if axis is None else np.median(ratios, axis=axis)
        is_outlier = ~np.isclose(ratios, 1, rtol=1e-3)
        assert np.allclose(np.abs(np.log(ratios[is_outlier])), np.log(100), rtol=1e-3)
        assert is_outlier.sum() == (count or 1)
    assert np.array_equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_the_same_seed_makes_the_same_copy(even: Path):
    one, same, other = (outliers.outlier_scales(EVEN, 100, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.inner, same.inner)
    assert not np.array_equal(one.inner, other.inner)


def test_a_weight_outside_the_blocks_cannot_be_rescaled():
    with pytest.raises(ValueError, match="no weight of a decoder block"):
        BlockScales.ones(EVEN).apply("lm_head.weight", np.ones((2, 2), np.float32), EVEN)


# --- the float model that a quantized one may have been ----------------------------------------------------------


@pytest.mark.parametrize("preset", ["int4", "int8"])
def test_an_unrounded_model_rounds_to_the_codes_that_it_was_made_of(odd: Path, tmp_path: Path, preset: str):
    quantize_folder(odd, tmp_path / "quantized", preset=preset)
    outliers.write_unrounded(tmp_path / "quantized", tmp_path / "float", seed=0)
    found = weights(tmp_path / "float")
    with open_checkpoint(tmp_path / "quantized", allow_quantized=True) as checkpoint:
        for name in checkpoint.packings:
            weight = read_weight(checkpoint, name)
            assert isinstance(weight, IntWeight)
            scales = np.repeat(weight.scales.astype(np.float32), weight.group_size, axis=1)[:, : weight.in_features]
            steps = found[name] / scales - weight.codes()
            assert np.abs(steps).max() <= 0.5001
            assert abs(float(np.square(steps).mean()) - 1 / 12) < 0.01  # equal up to rounding errors


def test_a_float_model_needs_no_unrounding(odd: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="a float model already"):
        outliers.write_unrounded(odd, tmp_path / "out", seed=0)


# --- equalization ------------------------------------------------------------------------------------------------


def evened(folder: Path, config: DecoderConfig, destination: Path) -> list[BlockScales]:
    """Write the model with its channels equalized; return the scales."""
    found = weights(folder)
    blocks = [block_scales(lambda name: found[name], config, index) for index in range(config.num_hidden_layers)]
    destination.mkdir()
    for index, scales in enumerate(blocks):
        for name in [name for name in found if name.startswith(f"model.layers.{index}.")]:
            found[name] = scales.apply(name, found[name], config)
    save_file(found, destination / "model.safetensors", metadata={"format": "pt"})
    (destination / "config.json").write_bytes((folder / "config.json").read_bytes())
    return blocks


@pytest.mark.parametrize("factor", [30, 100, 300])
def test_equalization_undoes_the_scaling_to_half_an_octave_and_changes_no_bit_of_what_it_computes(
    even: Path, tmp_path: Path, factor: float
):
    outliers.write_outlier_copy(even, tmp_path / "scaled", factor, seed=0)
    blocks = evened(tmp_path / "scaled", EVEN, tmp_path / "evened")
    for index, scales in enumerate(blocks):
        grown = outliers.outlier_scales(EVEN, factor, (0, index))
        for one, other in (
            (grown.attention, scales.attention),
            (grown.keys, scales.keys),
            (grown.values, scales.values),
            (grown.mlp, scales.mlp),
            (grown.inner, scales.inner),
        ):
            is_outlier = one != 1
            assert np.array_equal(is_outlier, other != 1)
            assert np.abs(np.log2(one * other))[is_outlier].max() < 0.7  # rounding to a power of two, and chance
    assert np.array_equal(logits(tmp_path / "scaled"), logits(tmp_path / "evened"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_copy_scaled_by_a_power_of_two_is_quantized_to_the_bytes_of_its_source(
    even: Path, tmp_path: Path, preset: str
):
    outliers.write_outlier_copy(even, tmp_path / "scaled", 64, seed=0)
    done = {
        name: quantize_folder(source, tmp_path / name, preset=preset)
        for name, source in (("a", even), ("b", tmp_path / "scaled"))
    }
    assert done["a"].evened_channels == 0 < done["b"].evened_channels
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_model_in_line_is_rounded_as_it_is(odd: Path, tmp_path: Path):
    for name, equalize in (("a", True), ("b", False)):
        quantize_folder(odd, tmp_path / name, equalize=equalize)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_scaled_copy_survives_only_when_equalized(even: Path, tmp_path: Path):
    outliers.write_outlier_copy(even, tmp_path / "scaled", 100, seed=0)
    expected = logits(even)
    errors = {}
    for name, source, equalize in (
        ("original", even, True),
        ("evened", tmp_path / "scaled", True),
        ("plain", tmp_path / "scaled", False),
    ):
        quantize_folder(source, tmp_path / name, equalize=equalize)
        errors[name] = float(np.square(logits(tmp_path / name) - expected).mean())
    assert errors["evened"] < 1.5 * errors["original"]
    assert errors["plain"] > 2 * errors["original"]


def test_a_norm_in_float16_is_rescaled_only_as_far_as_it_reaches(even: Path, tmp_path: Path):
    source = tmp_path / "half"
    source.mkdir()
    found = weights(even)
    name = "model.layers.0.input_layernorm.weight"
    for part in "qkv":
        found[f"model.layers.0.self_attn.{part}_proj.weight"][:, :2] *= 64
    found[name][0] = 60_000  # times 64 is beyond float16
    save_file({key: value.astype(np.float16) for key, value in found.items()}, source / "model.safetensors")
    (source / "config.json").write_text((even / "config.json").read_text())
    quantize_folder(source, tmp_path / "out")
    with open_checkpoint(tmp_path / "out", allow_quantized=True) as checkpoint:
        assert checkpoint.tensors[name].dtype == "float16"
        norm = checkpoint.read(name).float32()
    assert norm[0] == np.float16(60_000)
    assert norm[1] == 64 * np.float16(found[name][1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weights_of_zeros_and_of_any_size_give_powers_of_two(seed: int):
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in ODD.parameter_shapes().items():
        found[name] = np.ldexp(random.standard_normal(shape), random.integers(-30, 30, shape[-1])).astype(np.float32)
        found[name][..., random.random(shape[-1]) < 0.3] = 0
        found[name][random.random(shape[0]) < 0.3] = 0
    found["model.layers.0.mlp.down_proj.weight"][:] = 0
    scales = block_scales(lambda name: found[name], ODD, 0)
    for part in (scales.attention, scales.keys, scales.values, scales.mlp, scales.inner):
        mantissas, exponents = np.frexp(part)
        assert np.all(mantissas == 0.5)
        assert np.abs(exponents - 1).max() <= 10
    assert np.all(scales.inner == 1)
