"""`quantize_folder`: what is written, that it is read as meant, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicpm.errors import FormatError, MiniCPMError, ModelError
from minicpm.export.convert import convert
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.quant.format import PRESETS, IntWeight, read_weight
from small_models import WIDE, random_weights, write_model


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    return write_model(tmp_path / "wide", WIDE, random_weights(WIDE))


def dequantized(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        found = {}
        for name in checkpoint.config.parameter_shapes():
            weight = read_weight(checkpoint, name)
            found[name] = weight.dequantize() if isinstance(weight, IntWeight) else weight.float32()
        return found


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_written_and_read_near_the_source(wide: Path, tmp_path: Path, preset: str):
    done = quantize_folder(wide, tmp_path / "out", preset=preset)
    source = load_file(wide / "model.safetensors")
    limits = {4: 0.12, 8: 0.01, 16: 0.004, 32: 0.0}
    assert {kind.kind for kind in done.kinds} >= {"embed_tokens", "norms", "mlp.down_proj"}
    for kind in done.kinds:
        assert kind.relative_rmse <= limits[kind.bits]
    for name, found in dequantized(tmp_path / "out").items():
        error = np.sqrt(np.square(found - source[name]).sum() / np.square(source[name]).sum())
        assert error <= 0.12, name
    assert done.nbytes < done.source_bytes / (2 if preset == "int8" else 3)
    assert done.nbytes == sum(kind.nbytes for kind in done.kinds) + 16 * _packed_count(tmp_path / "out")


def _packed_count(folder: Path) -> int:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return len(checkpoint.packings)  # each has a weight_shape of 16 bytes


def test_a_width_that_no_group_divides_is_padded(golden: Path, tmp_path: Path):
    quantize_folder(golden / "minicpm2b_tied", tmp_path / "out", preset="int4-small")
    source = load_file(golden / "minicpm2b_tied" / "model.safetensors")
    for name, found in dequantized(tmp_path / "out").items():
        assert found.shape == source[name].shape
    assert "tokenizer.json" in {path.name for path in (tmp_path / "out").iterdir()}


def test_int4_hf_refuses_a_width_that_vllm_cannot_hold_by_name(golden: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"q_proj.weight has 144 input features, not a multiple of 128"):
        quantize_folder(golden / "minicpm2b_tied", tmp_path / "out", preset="int4-hf")
    assert not (tmp_path / "out").exists()


def test_shards_hold_the_same_weights_as_one_file(wide: Path, tmp_path: Path):
    quantize_folder(wide, tmp_path / "one")
    quantize_folder(wide, tmp_path / "many", max_shard_bytes=60_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = dequantized(tmp_path / "one"), dequantized(tmp_path / "many")
    assert all(np.array_equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("change", [{"preset": "int3"}, {"method": "magic"}])
def test_unknown_presets_and_methods_are_refused(wide: Path, tmp_path: Path, change: dict[str, str]):
    with pytest.raises(ValueError, match="must be one of"):
        quantize_folder(wide, tmp_path / "out", **change)


def test_a_llama_format_source_is_sent_to_convert(golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "llama", to="llama")
    with pytest.raises(ModelError, match="convert it --to hf first"):
        quantize_folder(tmp_path / "llama", tmp_path / "out")


def test_weights_that_are_not_finite_are_refused_by_name_and_nothing_is_left(wide: Path, tmp_path: Path):
    weights = load_file(wide / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(weights, wide / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight: its largest weight is nan"):
        quantize_folder(wide, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


class TestHostile:
    """Quantized folders that lie; each is refused in one sentence."""

    @pytest.fixture
    def folder(self, wide: Path, tmp_path: Path) -> Path:
        quantize_folder(wide, tmp_path / "quantized")
        return tmp_path / "quantized"

    def refuses(self, folder: Path, words: str) -> None:
        with pytest.raises(MiniCPMError, match=words) as caught:
            dequantized(folder)
        assert "\n" not in str(caught.value)

    def edit(self, folder: Path, **changes: object) -> None:
        raw = json.loads((folder / "config.json").read_text())
        weights = raw["quantization_config"]["config_groups"]["group_0"]["weights"]
        for key, value in changes.items():
            weights[key] = value
        (folder / "config.json").write_text(json.dumps(raw))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"num_bits": 3}, "3-bit weights"),
            ({"group_size": 0}, "groups of 0"),
            ({"group_size": 1 << 70}, "a number of 71 bits"),
            ({"group_size": 128}, "fits no packing"),
            ({"group_size": None}, "no num_bits or group_size"),
            ({"symmetric": False}, "not symmetric integers"),
            ({"strategy": "channel"}, "not symmetric integers"),
            ({"actorder": "group"}, "not symmetric integers"),
            ({"type": "float"}, "not symmetric integers"),
        ],
    )
    def test_schemes_it_cannot_read(self, folder: Path, changes: dict[str, object], words: str):
        self.edit(folder, **changes)
        self.refuses(folder, words)

    @pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
    def test_scales_that_are_none(self, folder: Path, value: float):
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.self_attn.k_proj.weight_scale"][1, 1] = value
        save_file(weights, folder / "model.safetensors")
        self.refuses(folder, "negative or not finite")

    def test_an_int8_code_of_minus_128(self, folder: Path):
        weights = load_file(folder / "model.safetensors")
        weights["model.embed_tokens.weight_packed"].view(np.uint8)[7, 9] = 0
        save_file(weights, folder / "model.safetensors")
        self.refuses(folder, "holds the code -128")

    def test_a_shape_that_contradicts_the_configuration(self, folder: Path):
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.self_attn.k_proj.weight_shape"][1] = 120
        save_file(weights, folder / "model.safetensors")
        self.refuses(folder, "contradicts")

    @pytest.mark.parametrize("suffix", ["_packed", "_scale", "_shape"])
    def test_a_part_that_is_missing(self, folder: Path, suffix: str):
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.0.self_attn.k_proj.weight" + suffix]
        save_file(weights, folder / "model.safetensors")
        self.refuses(folder, "fits no packing|missing")

    def test_a_norm_that_is_packed(self, folder: Path):
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight_packed"] = weights.pop("model.norm.weight")
        save_file(weights, folder / "model.safetensors")
        self.refuses(folder, "no matrix of a linear layer")

    def test_a_configuration_without_packed_weights(self, wide: Path):
        raw = json.loads((wide / "config.json").read_text())
        raw["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "g": {"weights": {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 64}}
            },
        }
        (wide / "config.json").write_text(json.dumps(raw))
        self.refuses(wide, "none is stored packed")

    def test_another_method_is_named(self, wide: Path):
        raw = json.loads((wide / "config.json").read_text())
        (wide / "config.json").write_text(json.dumps({**raw, "quantization_config": {"quant_method": "bitsandbytes"}}))
        self.refuses(wide, "bitsandbytes")

    def test_the_readers_of_floats_refuse_it(self, folder: Path):
        with pytest.raises(ModelError, match="the native and numpy backends run INT4 and INT8"):
            open_checkpoint(folder)

    def test_a_foreign_tensor_is_refused(self, folder: Path):
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.self_attn.k_proj.weight_zero_point"] = np.zeros(3, np.int32)
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(FormatError, match="unexpected"):
            open_checkpoint(folder, allow_quantized=True)


@pytest.mark.parametrize("preset", PRESETS)
def test_compressed_tensors_decompresses_to_our_numbers(wide: Path, tmp_path: Path, preset: str):
    """By the library's own configuration and decompressor, which rounds its product to the scale's dtype."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    import torch
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    quantize_folder(wide, tmp_path / "out", preset=preset)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = QuantizationConfig.model_validate(raw).config_groups
    ours = dequantized(tmp_path / "out")
    from safetensors.torch import load_file as load_torch

    stored = load_torch(tmp_path / "out" / "model.safetensors")
    packed = [name.removesuffix("_packed") for name in stored if name.endswith("_packed")]
    assert len(packed) == (14 if preset == "int4-hf" else 15)
    for name in packed:
        scheme = groups["group_1" if "embed" in name else "group_0"]
        state = {f"weight{suffix}": stored[name + suffix] for suffix in ("_packed", "_scale", "_shape")}
        half = PackedQuantizationCompressor.decompress(dict(state), scheme)["weight"]
        assert half.dtype == torch.float16
        assert np.array_equal(half.numpy(), ours[name].astype(np.float16)), name
        if scheme.weights.num_bits == 4:  # 3 bits times 8 bits fit float16's 11: nothing was rounded
            assert np.array_equal(half.float().numpy(), ours[name]), name
        state["weight_scale"] = state["weight_scale"].float()
        assert np.array_equal(PackedQuantizationCompressor.decompress(state, scheme)["weight"].numpy(), ours[name]), (
            name
        )


class TestUnusual:
    """What no rounding of ours gives, or seldom, and a reader must take all the same."""

    NAME = "model.layers.0.mlp.up_proj.weight"

    @pytest.fixture
    def folder(self, wide: Path, tmp_path: Path) -> Path:
        quantize_folder(wide, tmp_path / "quantized")
        return tmp_path / "quantized"

    def test_a_scale_of_zero_makes_a_group_of_zeros(self, folder: Path):
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{self.NAME}_scale"][3, 1] = 0
        save_file(tensors, folder / "model.safetensors")
        found = dequantized(folder)[self.NAME]
        assert not found[3, 64:128].any() and found[3, :64].any()

    def test_an_int4_code_of_minus_8_is_one(self, folder: Path):
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{self.NAME}_packed"][3] = 0
        save_file(tensors, folder / "model.safetensors")
        scales = tensors[f"{self.NAME}_scale"][3].astype(np.float32)
        assert np.array_equal(dequantized(folder)[self.NAME][3], np.repeat(-8 * scales, 64))

    @pytest.mark.parametrize("preset", ["int4", "int8"])
    def test_a_width_that_no_word_divides_is_read_back(self, tmp_path: Path, preset: str):
        config = replace(WIDE, hidden_size=126, num_attention_heads=3, num_key_value_heads=1, intermediate_size=130)
        source = write_model(tmp_path / "odd", config, random_weights(config))
        quantize_folder(source, tmp_path / "out", preset=preset)
        expected = load_file(source / "model.safetensors")
        for name, found in dequantized(tmp_path / "out").items():
            assert np.square(found - expected[name]).sum() <= 0.015 * np.square(expected[name]).sum(), name
