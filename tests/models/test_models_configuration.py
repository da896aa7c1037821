"""MiniCPMConfig: what loads, what is refused, what a hostile config.json cannot do."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

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


ROUND_TRIPS: list[dict[str, Any]] = [
    {},
    {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "tie_word_embeddings": False},
    {"num_labels": 3},
    {"num_labels": 1, "problem_type": "regression"},
    {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}},
    {"architectures": ["MiniCPMForSequenceClassification"]},
    {"dtype": "float16"},
    {"dtype": torch.float64},
    {"output_hidden_states": True, "return_dict": False, "chunk_size_feed_forward": 5},
    {"output_attentions": True, "use_cache": False, "pretraining_tp": 2, "attention_dropout": 0.1},
    {"bos_token_id": None, "eos_token_id": [2, 7], "pad_token_id": 0},
    {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64, "head_dim": 8},
    {"num_key_value_heads": 0},
    {"rope_theta": 1000000},
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 4.0}, "rope_theta": 1e6},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "original_max_position_embeddings": 128}},
    {"rope_scaling": {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}},
    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
    {"initializer_range": 0.5, "rms_norm_eps": 1e-5, "max_position_embeddings": 99, "vocab_size": 7},
]


@pytest.mark.parametrize("arguments", ROUND_TRIPS, ids=str)
def test_a_saved_config_reads_back_equal(tmp_path: Path, arguments: dict[str, Any]):
    config = MiniCPMConfig(**copy.deepcopy(arguments))
    config.save_pretrained(tmp_path)
    config.to_json_file(tmp_path / "all.json", use_diff=False)
    config.save_pretrained(tmp_path / "inner")
    found = [
        AutoConfig.from_pretrained(tmp_path),
        MiniCPMConfig.from_pretrained(tmp_path, subfolder="inner"),
        MiniCPMConfig.from_json_file(tmp_path / "config.json"),
        MiniCPMConfig.from_json_file(tmp_path / "all.json"),
        MiniCPMConfig.from_dict(config.to_dict()),
        MiniCPMConfig.from_dict(config.to_diff_dict()),
        MiniCPMConfig(**config.to_dict()),
        AutoConfig.for_model(**config.to_dict()),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
    ]
    for again in found:
        assert type(again) is MiniCPMConfig
        assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        assert again.num_labels == config.num_labels
    if config.dtype is not torch.float64:
        assert found[0].to_decoder_config() == config.to_decoder_config()


@pytest.mark.parametrize("rope", [{"type": "yarn"}, {"type": "dynamic"}, {"full_attention": {}}], ids=str)
def test_no_object_of_the_caller_is_changed(rope: dict[str, Any]):
    before = copy.deepcopy(rope)
    with contextlib.suppress(ModelError):
        MiniCPMConfig.from_dict({"model_type": "minicpm", "rope_scaling": rope})
    assert rope == before


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


IMPOSSIBLE: list[dict[str, Any]] = [
    {"head_dim": 40},
    {"head_dim": 127},
    {"hidden_size": 4095},
    {"num_attention_heads": 7},
    {"num_attention_heads": 0},
    {"num_key_value_heads": 5},
    {"hidden_size": 96, "num_attention_heads": 32},
    {"hidden_act": "gelu"},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"vocab_size": 0},
    {"num_hidden_layers": 0},
    {"scale_depth": 0},
    {"scale_emb": float("nan")},
    {"dim_model_base": -1},
    {"rms_norm_eps": 0.0},
    {"rope_theta": 0.0},
    {"rope_theta": float("inf")},
    {"pad_token_id": -1},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"type": "linear", "factor": "2"}},
    {"rope_scaling": {"type": "dynamic", "factor": 0.5}},
    {"rope_scaling": {"factor": 4.0}},
    {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 4.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 4.0, "beta_fast": 32}},
    {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
    {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "LINEAR", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
    {"partial_rotary_factor": 0.5},
]


@pytest.mark.parametrize("arguments", IMPOSSIBLE, ids=str)
def test_what_could_not_be_loaded_is_refused_from_a_caller_and_from_a_file(tmp_path: Path, arguments: dict[str, Any]):
    with pytest.raises(ModelError):
        MiniCPMConfig(**copy.deepcopy(arguments))
    folder = write_config(tmp_path, {"model_type": "minicpm", **arguments})
    with pytest.raises(ModelError):
        AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    "both",
    [
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 1e6}, "rope_theta": 1e4},
    ],
    ids=str,
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, both: dict[str, Any]):
    with pytest.raises(ModelError, match="keep"):
        AutoConfig.from_pretrained(write_config(tmp_path, {"model_type": "minicpm", **both}))


LONG = {"model_type": "minicpm", "rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 4.0}}


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 4.0}),
        ({"rope_scaling": None}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10}},
            {"rope_type": "linear", "rope_theta": 10.0, "factor": 2.0},
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 10},
            {"rope_type": "linear", "rope_theta": 10.0, "factor": 2.0},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_saved_by_transformers", [False, True])
def test_keywords_take_the_place_of_what_the_file_says(
    tmp_path: Path, keywords: dict[str, Any], expected: dict[str, Any], is_saved_by_transformers: bool
):
    write_config(tmp_path, LONG)
    if is_saved_by_transformers:
        AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, **keywords).rope_parameters == expected


def test_a_keyword_that_changes_the_shape_is_checked_with_the_rest(tmp_path: Path):
    MiniCPMConfig(hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, num_attention_heads=8).head_dim == 8
    with pytest.raises(ModelError, match="head_dim"):
        AutoConfig.from_pretrained(tmp_path, head_dim=40)
    with pytest.raises(ModelError, match="yarn"):
        AutoConfig.from_pretrained(tmp_path, rope_scaling={"type": "yarn", "factor": 2.0})
    config, unused = AutoConfig.from_pretrained(tmp_path, vocab_size=5, foo=1, return_unused_kwargs=True)
    assert (config.vocab_size, unused) == (5, {"foo": 1})
