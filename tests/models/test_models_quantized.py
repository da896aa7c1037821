"""Layers over INT4 and INT8 codes: the numbers of quant/format.py, in the file's mapped pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from minicpm.errors import ModelError
from minicpm.export.expand import expand
from minicpm.export.gguf import write_gguf
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded
from minicpm.models import MiniCPMForCausalLM, MiniCPMModel, load_model
from minicpm.models.quantized import QuantizedEmbedding, QuantizedLinear
from minicpm.quant.format import PRESETS, Int4Weight, Int8Weight, IntWeight, read_weight
from small_models import EVEN, ODD, write_model

SHAPES = {"odd": ODD, "even": EVEN, "untied": replace(EVEN, tie_word_embeddings=False)}
# int4-hf takes no weights whose rows are not whole groups.
MODELS = [(shape, preset) for shape in SHAPES for preset in PRESETS if (shape, preset) != ("odd", "int4-hf")]
IDS = torch.randint(0, 203, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    home = tmp_path_factory.mktemp("quantized")
    found = {}
    for shape, config in SHAPES.items():
        write_model(home / shape, config)
    for shape, preset in MODELS:
        found[shape, preset] = home / f"{shape}-{preset}"
        quantize_folder(home / shape, found[shape, preset], preset=preset)
    return found


def load(folder: Path, dtype: str = "float32") -> MiniCPMForCausalLM:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return load_model(checkpoint, dtype=dtype)


def random_weight(kind: type[IntWeight], N: int, K: int, group_size: int) -> IntWeight:
    random = np.random.default_rng(N * K)
    codes = random.integers(kind.low, kind.high + 1, (N, K)).astype(np.int8)
    scales = random.uniform(0.01, 0.1, (N, -(-K // group_size))).astype(np.float16)
    return kind.pack(codes, scales, group_size)


@pytest.mark.parametrize("kind", [Int4Weight, Int8Weight])
@pytest.mark.parametrize(("K", "group_size"), [(256, 64), (200, 64), (120, 128), (7, 32), (96, 32)])
def test_weights_are_the_specifications_to_the_last_bit(kind: type[IntWeight], K: int, group_size: int):
    weight = random_weight(kind, 11, K, group_size)
    layer = QuantizedLinear.of(weight, torch.device("cpu"))
    assert np.array_equal(layer.dequantize(slice(None), torch.float32).numpy(), weight.dequantize())
    chosen = torch.tensor([3, 3, 10])
    assert np.array_equal(layer.dequantize(chosen, torch.float32).numpy(), weight.dequantize()[chosen.numpy()])


@pytest.mark.parametrize(("shape", "preset"), MODELS)
def test_logits_equal_those_of_the_expanded_model(folders, tmp_path: Path, shape: str, preset: str):
    with open_checkpoint(folders[shape, preset], allow_quantized=True) as checkpoint:
        expand(checkpoint, tmp_path, "float32")
    with torch.inference_mode():
        expected = load_model(tmp_path)(IDS).logits
        found = load(folders[shape, preset])(IDS).logits
    # The same numbers in products of the same shape.
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("shape", "preset"), MODELS)
def test_memory_is_that_of_the_file(folders, shape: str, preset: str):
    with open_checkpoint(folders[shape, preset], allow_quantized=True) as checkpoint:
        weights = [read_weight(checkpoint, name) for name in checkpoint.packings]
    model = load(folders[shape, preset])
    held = {buffer.data_ptr(): buffer.nbytes for buffer in model.buffers()}
    # Rows are filled up to whole groups here, to whole words there.
    rows = sum(w.out_features * (-w.in_features % w.group_size) * w.bits / 8 for w in weights)
    stored = sum(weight.nbytes for weight in weights)
    assert stored <= sum(held.values()) <= stored + rows
    packed = {name.removesuffix(".weight") for name in checkpoint.packings}
    assert not packed & {name.removesuffix(".weight") for name, _ in model.named_parameters()}


def test_a_tied_head_has_the_embeddings_memory(folders):
    tied, untied = load(folders["even", "int4"]), load(folders["untied", "int4"])
    for model, is_same in ((tied, True), (untied, False)):
        head, embedding = model.lm_head, model.model.embed_tokens
        assert isinstance(head, QuantizedLinear) and isinstance(embedding, QuantizedEmbedding)
        assert (head.codes.data_ptr() == embedding.codes.data_ptr()) is is_same


def test_a_large_layer_is_multiplied_in_parts(monkeypatch):
    weight = random_weight(Int4Weight, 50, 200, 64)
    layer = QuantizedLinear.of(weight, torch.device("cpu"))
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    whole = layer(x)
    monkeypatch.setattr("minicpm.models.quantized._VALUES_AT_ONCE", 7 * 200)
    assert layer(x).shape == whole.shape
    assert torch.allclose(layer(x), whole, atol=1e-5)


def test_joined_layers_are_one_and_share_its_memory():
    layers = [QuantizedLinear.of(random_weight(Int8Weight, N, 100, 64), torch.device("cpu")) for N in (4, 9, 2)]
    x = torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    joined = QuantizedLinear.joined(layers)
    assert torch.allclose(joined(x), expected, atol=1e-5)
    assert torch.allclose(torch.cat([layer(x) for layer in layers], dim=-1), expected, atol=1e-5)
    for name in ("codes", "scales"):
        whole = getattr(joined, name).untyped_storage().data_ptr()
        assert {getattr(layer, name).untyped_storage().data_ptr() for layer in layers} == {whole}


def test_a_gguf_files_codes_are_taken_as_they_are(tmp_path: Path):
    write_gguf(embedded.folder(), tmp_path / "nano.gguf")
    with open_checkpoint(tmp_path / "nano.gguf", allow_quantized=True) as checkpoint:
        model = load_model(checkpoint, dtype="float32")
        assert {packing.bits for packing in checkpoint.packings.values()} == {4, 8}
        for name in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"):
            expected = read_weight(checkpoint, name)
            assert isinstance(expected, IntWeight)
            found = model.get_submodule(name.removesuffix(".weight")).dequantize(slice(None), torch.float32)
            assert np.array_equal(found.numpy(), expected.dequantize())


# from_pretrained, for which compressed-tensors need not be installed


@pytest.mark.parametrize(("shape", "preset"), [(shape, preset) for shape, preset in MODELS if preset != "int4-hf"])
def test_from_pretrained_gives_what_load_model_does(folders, shape: str, preset: str):
    folder = folders[shape, preset]
    expected = load(folder)
    for model in (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        MiniCPMForCausalLM.from_pretrained(folder, torch_dtype="float32", device_map="cpu"),
    ):
        assert type(model) is MiniCPMForCausalLM
        assert isinstance(model.lm_head, QuantizedLinear)
        with torch.inference_mode():
            assert torch.equal(model(IDS).logits, expected(IDS).logits)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **settings), expected.generate(IDS, **settings))


def test_from_pretrained_takes_what_can_be_changed_of_a_quantized_model(folders, tmp_path: Path):
    folder = folders["even", "int4"]
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", rope_theta=5e5, device_map="auto"
    )
    assert not any(info.values())
    assert model.config._attn_implementation == "eager"
    assert model.model.rotary_emb.theta == 5e5
    assert not model.training
    decoder = AutoModel.from_pretrained(folder)
    assert type(decoder) is MiniCPMModel
    whole = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        assert torch.equal(decoder(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)
    (tmp_path / "model").mkdir()
    for file in folder.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model" / "generation_config.json").write_text('{"max_new_tokens": 3, "eos_token_id": [2, 7]}')
    moved = AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="model")
    assert moved.generation_config.max_new_tokens == 3
    assert 7 in moved.generation_config.eos_token_id


def test_what_a_quantized_model_cannot_be_is_said(folders, tmp_path: Path):
    folder = folders["even", "int4"]
    with pytest.raises(ModelError, match="floating-point"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ModelError, match="tp_plan"):
        AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    with pytest.raises(ModelError, match="one device"):
        AutoModelForCausalLM.from_pretrained(folder, device_map={"model": "cpu", "lm_head": "meta"})
    with pytest.raises(ModelError, match="shapes"):
        AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=1)
    with pytest.raises(ModelError, match="codes"):
        load(folder).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_path_to_quantized_weights_needs_its_opener_to_say_so(folders):
    with pytest.raises(ModelError, match="quantized"):
        load_model(folders["even", "int8"])
