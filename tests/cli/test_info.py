"""`minicpm info`: its output for a folder, as text and as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from minicpm.cli.verbs.info import weight_memory
from minicpm.engine.backend import cache_bytes_per_token
from minicpm.formats.config import DecoderConfig, read_config_json


def test_info_tells_the_family_shape_and_scales(minicpm, toy: Path):
    done = minicpm("info", "-m", toy)
    assert done.code == 0
    assert done.err == ""
    for words in (
        "MiniCPM decoder, hf format, float32",
        "1,099,152 (955,152 without embeddings), tied head",
        "4 layers, hidden 144",
        "2,048 tokens",
        "scale_emb 12, scale_depth 1.4 (branches x 0.7), dim_model_base 64",
        "tokenizer.json",
    ):
        assert words in done.out


def test_info_speaks_json(minicpm, golden: Path):
    facts = json.loads(minicpm("info", "-m", golden / "minicpm2b_tied_bf16_bin", "--json").out)
    assert facts["weight_files"] == ["pytorch_model.bin"]
    assert facts["dtypes"] == ["bfloat16"]
    assert facts["weight_bytes"] == 2 * facts["parameters"] == 2_198_304
    assert facts["tokenizer_files"] == []
    assert facts["has_chat_template"] is False


def test_info_lists_every_tensor_when_asked(minicpm, golden: Path):
    folder = golden / "minicpm2b_untied_sharded"
    plain = minicpm("info", "-m", folder, "--tensors").out
    assert "lm_head.weight  float32  1003x144" in plain
    facts = json.loads(minicpm("info", "-m", folder, "--tensors", "--json").out)
    assert len(facts["tensors"]) == 30


def test_info_tells_of_scales_inside_the_weights(minicpm, toy: Path, tmp_path: Path):
    minicpm("convert", toy, tmp_path / "llama", "--to", "llama")
    assert "multiplied into the weights (scale_emb 12" in minicpm("info", "-m", tmp_path / "llama").out


def test_info_knows_a_template_file_and_a_licence(minicpm, toy: Path, tmp_path: Path):
    shutil.copytree(toy, tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").unlink()
    (tmp_path / "m" / "LICENSE").write_text("terms")
    facts = json.loads(minicpm("info", "-m", tmp_path / "m", "--json").out)
    assert (facts["has_chat_template"], facts["licence_files"]) == (False, ["LICENSE"])
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    assert json.loads(minicpm("info", "-m", tmp_path / "m", "--json").out)["has_chat_template"] is True


def test_info_of_a_damaged_folder_is_one_sentence(minicpm, toy: Path, tmp_path: Path):
    shutil.copytree(toy, tmp_path / "m")
    with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
        file.truncate(4000)
    done = minicpm("info", "-m", tmp_path / "m")
    assert done.code == 1
    assert done.out == ""
    assert "model.safetensors" in done.err
    assert "truncated" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["MiniCPM-MoE-8x2B", "MiniCPM-V-2"])
def test_info_of_a_family_we_do_not_run_names_it(minicpm, real_configs: Path, tmp_path: Path, name: str):
    shutil.copy(next((real_configs / name).glob("config*.json")), tmp_path / "config.json")
    done = minicpm("info", "-m", tmp_path)
    assert done.code == 1
    assert name.removesuffix("-2") in done.err


def test_the_sizes_of_minicpm_2b_are_the_known_ones(real_configs: Path):
    """The bf16 size and cache of spec and paper: 2,724,880,896 parameters, 368,640 bytes a token."""
    config = DecoderConfig.from_dict(read_config_json(real_configs / "MiniCPM-2B-sft-bf16" / "config.json"))
    memory = weight_memory(config)
    assert memory["bfloat16"] == 2 * 2_724_880_896
    assert 1.5e9 < memory["int4"] < 1.7e9
    assert cache_bytes_per_token(config, "float16") == 368_640
    assert cache_bytes_per_token(config, "int8") == 195_840
