"""MiniCPMConfig: what loads, what is refused, what a hostile config.json cannot do."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from minicpm.errors import ModelError
from minicpm.formats.config import DecoderConfig
from minicpm.models import MiniCPMConfig


def write_config(folder: Path, raw: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


def reconstructed(real_configs: Path, name: str) -> dict[str, object]:
    return json.loads((real_configs / name / "config.reconstructed.json").read_text(encoding="utf-8"))


def test_the_real_file_of_1010_bytes_loads_through_the_auto_class(real_configs: Path):
    folder = real_configs / "MiniCPM-2B-sft-bf16"
    assert (folder / "config.json").stat().st_size == 1010
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is MiniCPMConfig
    assert config.tie_word_embeddings
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert config.dtype is torch.bfloat16
    assert config.vocab_size == 122753
    assert config.residual_scale == pytest.approx(1.4 / math.sqrt(40))
    assert config.logit_scale == pytest.approx(1 / 9)


def test_the_1b_and_128k_files_load(real_configs: Path, tmp_path: Path):
    one = AutoConfig.from_pretrained(write_config(tmp_path, reconstructed(real_configs, "MiniCPM-1B-sft-bf16")))
    assert (one.num_attention_heads, one.num_key_value_heads) == (24, 8)
    long = AutoConfig.from_pretrained(write_config(tmp_path, reconstructed(real_configs, "MiniCPM-2B-128k")))
    assert long.rope_parameters == {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0}
    assert not long.tie_word_embeddings


def test_a_config_with_generation_settings_can_be_saved_again(real_configs: Path, tmp_path: Path):
    long = AutoConfig.from_pretrained(write_config(tmp_path, reconstructed(real_configs, "MiniCPM-2B-128k")))
    long.save_pretrained(tmp_path / "again")  # transformers refuses to save a config with `max_length`
    assert AutoConfig.from_pretrained(tmp_path / "again").to_decoder_config() == long.to_decoder_config()


def test_saving_and_loading_gives_the_same_config(tmp_path: Path):
    config = MiniCPMConfig(scale_emb=12, scale_depth=1.4, dim_model_base=256, num_labels=3)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict() | {"architectures": ["MiniCPMForCausalLM"]}
    assert again.num_labels == 3


def test_decoder_config_there_and_back_is_identity(real_configs: Path):
    raws = [json.loads(path.read_text(encoding="utf-8")) for path in real_configs.glob("MiniCPM-[12]B*/config*.json")]
    decoders = [DecoderConfig.from_dict(raw) for raw in raws if "activate_fn" not in raw]
    assert len(decoders) == 3
    for decoder in decoders:
        assert MiniCPMConfig.from_decoder_config(decoder).to_decoder_config() == decoder


def test_defaults_are_those_of_2024():
    assert MiniCPMConfig().to_decoder_config() == DecoderConfig()


def test_the_config_pickles_as_vllm_does_it():
    config = MiniCPMConfig(scale_depth=1.4)
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize(("name", "message"), [("MiniCPM-MoE-8x2B", "MiniCPM-MoE-8x2B"), ("MiniCPM-V", "MiniCPM-V")])
def test_other_members_of_the_family_are_refused_by_name(real_configs: Path, name: str, message: str):
    with pytest.raises(ModelError, match=message):
        MiniCPMConfig.from_dict(reconstructed(real_configs, name))


def test_moe_is_refused_by_name_through_the_auto_class(real_configs: Path, tmp_path: Path):
    folder = write_config(tmp_path, reconstructed(real_configs, "MiniCPM-MoE-8x2B"))
    for trust in (None, True):
        with pytest.raises(ModelError, match="MiniCPM-MoE-8x2B"):
            AutoConfig.from_pretrained(folder, trust_remote_code=trust)


def test_minicpm3_stays_with_transformers_and_is_refused_by_our_class(tmp_path: Path):
    folder = write_config(tmp_path, {"model_type": "minicpm3", "architectures": ["MiniCPM3ForCausalLM"]})
    assert AutoConfig.from_pretrained(folder).model_type == "minicpm3"
    with pytest.raises(ModelError, match="MiniCPM3"):
        MiniCPMConfig.from_pretrained(folder)


def test_foreign_models_are_left_alone(tmp_path: Path):
    folder = write_config(tmp_path, {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "my_key": 1})
    assert AutoConfig.from_pretrained(folder).my_key == 1


HOSTILE = {
    "_attn_implementation_internal": "evil/kernels",
    "_attn_implementation": "evil/kernels",
    "_experts_implementation_internal": "evil/kernels",
    "attn_implementation": "evil/kernels",
    "experts_implementation": "evil/kernels",
    "transformers_weights": "../../elsewhere.safetensors",
    "configuration_files": [],
    "text_config": {"model_type": "llama", "auto_map": {"AutoConfig": "evil.Evil"}},
    "sub_configs": {"a": 1},
    "base_model_tp_plan": {"layers.*": "evil"},
    "per_layer_config": {"0": {"hidden_size": 1}},
    "tokenizer_class": "Evil",
    "custom_generate": "evil/generate",
    "rope_theta": 10000.0,
}


@pytest.mark.parametrize("key", sorted(HOSTILE))
def test_a_key_that_steers_the_library_has_no_effect(tmp_path: Path, real_configs: Path, key: str):
    raw = json.loads((real_configs / "MiniCPM-2B-sft-bf16" / "config.json").read_text(encoding="utf-8"))
    clean = AutoConfig.from_pretrained(write_config(tmp_path, raw)).to_dict()
    raw.pop("configuration_files", None)
    hostile = raw | {key: HOSTILE[key]}
    if key == "configuration_files":
        hostile[key] = ["config.4.0.0.json"]  # the library follows this to a second file, which is checked alike
        (tmp_path / "config.4.0.0.json").write_text(json.dumps(raw | {"auto_map": {"AutoConfig": "evil.Evil"}}))
    loaded = AutoConfig.from_pretrained(write_config(tmp_path, hostile), trust_remote_code=True)
    assert loaded.to_dict() == clean
    assert loaded._attn_implementation is None
    direct = MiniCPMConfig.from_json_file(tmp_path / "config.json")
    assert {**direct.to_dict(), "_name_or_path": ""} == {**clean, "_name_or_path": ""}


def test_a_known_quantizer_is_kept(tmp_path: Path, real_configs: Path):
    raw = json.loads((real_configs / "MiniCPM-2B-sft-bf16" / "config.json").read_text(encoding="utf-8"))
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    folder = write_config(tmp_path, raw | {"quantization_config": gptq})
    assert AutoConfig.from_pretrained(folder).quantization_config == gptq


@pytest.mark.parametrize("quantization", [{"quant_method": "torchao"}, {"quant_method": "evil"}, "evil", [1]])
def test_a_quantizer_that_could_name_code_is_refused(tmp_path: Path, real_configs: Path, quantization: object):
    raw = json.loads((real_configs / "MiniCPM-2B-sft-bf16" / "config.json").read_text(encoding="utf-8"))
    folder = write_config(tmp_path, raw | {"quantization_config": quantization})
    with pytest.raises(ModelError, match="quantization_config"):
        AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": -1},
        {"num_hidden_layers": 1 << 40},
        {"num_attention_heads": 7},
        {"vocab_size": "many"},
        {"scale_depth": float("nan")},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 1}},
    ],
    ids=str,
)
def test_impossible_values_are_one_clear_error(tmp_path: Path, real_configs: Path, change: dict[str, object]):
    raw = json.loads((real_configs / "MiniCPM-2B-sft-bf16" / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(ModelError, match=next(iter(change))):
        AutoConfig.from_pretrained(write_config(tmp_path, raw | change))
