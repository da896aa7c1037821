"""load_model: the same numbers as from_pretrained, from the file's own pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from minicpm.errors import FormatError, ModelError
from minicpm.export.convert import convert
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.models import MiniCPMForCausalLM, load_model

Folder = Callable[..., Path]
IDS = torch.randint(3, 1000, (1, 10), generator=torch.Generator().manual_seed(0))
FOLDERS = ["minicpm2b_tied", "minicpm2b_tied_bf16_bin", "minicpm2b_untied_sharded"]


def logits(model: MiniCPMForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", FOLDERS)
def test_load_model_equals_from_pretrained_to_the_bit(golden: Path, name: str):
    ours = load_model(golden / name)
    theirs, info = AutoModelForCausalLM.from_pretrained(golden / name, output_loading_info=True)
    assert not any(info.values()), info
    assert ours.dtype == theirs.dtype
    assert torch.equal(logits(ours), logits(theirs))
    assert not ours.training
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()


def test_parameters_are_the_mapped_bytes_and_not_copies(golden: Path):
    with open_checkpoint(golden / "minicpm2b_tied_bf16_bin") as checkpoint:
        model = load_model(checkpoint)
        for name, parameter in model.named_parameters():
            assert parameter.data_ptr() == torch.frombuffer(checkpoint.read(name).buffer, dtype=torch.uint8).data_ptr()


def test_a_tied_head_is_the_embedding(golden: Path):
    model = load_model(golden / "minicpm2b_tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = load_model(golden / "minicpm2b_untied_sharded")
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("config_ids", "generation_ids", "expected"),
    [(2, 2, 2), (2, [2, 7], [2, 7]), (None, 7, 7), (None, None, None), ([5, 6], 5, [5, 6])],
)
def test_generation_ends_where_either_configuration_says_so(
    tied_folder: Folder, config_ids: object, generation_ids: object, expected: object
):
    folder = tied_folder(eos_token_id=config_ids)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_ids}))
    assert load_model(folder).generation_config.eos_token_id == expected


def test_generate_stops_at_an_id_that_only_the_generation_config_names(tied_folder: Folder):
    folder = tied_folder()
    free = load_model(folder).generate(IDS, max_new_tokens=8, do_sample=False)[0, IDS.shape[1] :].tolist()
    last = next(i for i in range(1, 8) if free[i] not in free[:i])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, free[last]]}))
    ended = load_model(folder).generate(IDS, max_new_tokens=8, do_sample=False)[0, IDS.shape[1] :].tolist()
    assert ended == free[: last + 1]


def test_nothing_is_left_on_the_meta_device(golden: Path):
    model = load_model(golden / "minicpm2b_tied")
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_another_dtype_is_a_rounded_copy(golden: Path, dtype: str | torch.dtype):
    model = load_model(golden / "minicpm2b_tied", dtype=dtype)
    assert model.dtype is torch.bfloat16
    assert model.config.dtype is torch.bfloat16
    exact = load_model(golden / "minicpm2b_tied")
    assert torch.equal(model.model.norm.weight, exact.model.norm.weight.bfloat16())


def test_a_wrong_dtype_is_named(golden: Path):
    with pytest.raises(ValueError, match="int8"):
        load_model(golden / "minicpm2b_tied", dtype="int8")


def test_the_attention_implementation_is_the_callers(golden: Path):
    assert load_model(golden / "minicpm2b_tied", attn_implementation="eager").config._attn_implementation == "eager"


def test_the_loaded_model_can_be_trained(golden: Path):
    model = load_model(golden / "minicpm2b_tied").train()
    before = logits(model)
    model(IDS, labels=IDS).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(logits(model), before)
    assert torch.equal(logits(load_model(golden / "minicpm2b_tied")), before)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_weights_that_do_not_fit_the_config_are_one_clear_error(tied_folder: Folder, change: str):
    folder = tied_folder()
    state = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del state[name]
    elif change == "extra":
        name = "model.layers.4.mlp.up_proj.weight"
        state[name] = torch.zeros(360, 144)
    elif change == "shape":
        state[name] = state[name].T.contiguous()
    else:
        state[name] = state[name].to(torch.int32)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(FormatError, match=name.replace(".", r"\.")):
        load_model(folder)


def test_a_foreign_model_is_named(tied_folder: Folder):
    with pytest.raises(ModelError, match="qwen2"):
        load_model(tied_folder(model_type="qwen2", architectures=["Qwen2ForCausalLM"]))


@pytest.mark.parametrize("name", ["MiniCPM-1B-sft-bf16", "MiniCPM-2B-128k"])
def test_a_shrunk_member_of_the_family_loads_and_generates(real_configs: Path, tmp_path: Path, name: str):
    raw = json.loads((real_configs / name / "config.reconstructed.json").read_text(encoding="utf-8"))
    shrunk = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 24}
    raw |= shrunk | {"hidden_size": 8 * raw["num_attention_heads"]}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    stored = model.config.to_decoder_config().parameter_shapes()
    save_file({name: model.state_dict()[name].clone() for name in stored}, tmp_path / "model.safetensors")
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = IDS % 300
    loaded = [load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)]
    outputs = [m.generate(ids, **settings) for m in loaded]
    assert outputs[0].shape == (1, 30)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("form", ["granite", "llama", "vllmcpm"])
@pytest.mark.parametrize("name", ["minicpm2b_tied", "minicpm2b_untied_sharded"])
def test_every_form_of_a_model_computes_the_same(golden: Path, tmp_path: Path, name: str, form: str):
    convert(golden / name, tmp_path / form, to=form)
    difference = logits(load_model(tmp_path / form)) - logits(load_model(golden / name))
    assert difference.abs().max() <= (1e-4 if form == "llama" else 0)
