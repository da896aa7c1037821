"""A vLLM-CPM config.json, read as the program that wrote it meant it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicpm.errors import FormatError, ModelError
from minicpm.formats.config import DecoderConfig, RopeScaling
from minicpm.formats.folder import ModelFolder
from minicpm.formats.vllmcpm import open_weights, read_config, write_config

SCALED = DecoderConfig(
    vocab_size=203,
    hidden_size=120,
    intermediate_size=200,
    num_hidden_layers=9,
    num_attention_heads=3,
    num_key_value_heads=1,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=60,
)


def raw(**changes: Any) -> dict[str, Any]:
    return {**write_config(SCALED), **changes}


def test_without_scale_embedding_and_logits_have_no_factor():
    config = read_config(raw(scale=False))
    assert (config.scale_emb, config.logit_scale) == (1.0, 1.0)
    assert config.residual_scale == SCALED.residual_scale


@pytest.mark.parametrize("change", [{"scale": True}, {}])
def test_with_scale_the_factors_are_the_written_ones(change: dict[str, bool]):
    found = raw(**change)
    if not change:
        del found["scale"]
    config = read_config(found)
    assert (config.scale_emb, config.logit_scale) == (12.0, 0.5)


def test_what_is_written_says_that_it_is_scaled():
    assert write_config(SCALED)["scale"] is True


@pytest.mark.parametrize("depth", [0, -1, -0.5])
def test_without_a_depth_scale_branches_have_no_factor(depth: float):
    config = read_config(raw(scale_depth=depth))
    assert config.scale_depth == pytest.approx(math.sqrt(9)) and config.residual_scale == pytest.approx(1.0)


def test_normalised_queries_are_refused():
    with pytest.raises(ModelError, match="qk_norm"):
        read_config(raw(qk_norm=True))


def test_a_missing_key_is_named():
    found = raw()
    del found["dim_ff"], found["base"]
    with pytest.raises(ModelError, match=r"lacks dim_ff, base$"):
        read_config(found)


def test_token_ids_are_read_and_written_where_they_are_not_the_usual_ones():
    assert not {"bos_token_id", "eos_token_id", "pad_token_id"} & raw().keys()
    config = read_config(raw(bos_token_id=5, eos_token_id=[6, 7]))
    assert config.bos_token_id == 5 and config.eos_token_ids == (6, 7)
    assert write_config(config)["bos_token_id"] == 5


def test_a_rope_scaling_keeps_its_kind_and_factor():
    config = read_config(raw(rope_scaling_type="dynamic", rope_scaling_factor=4.0))
    assert config.rope_scaling == RopeScaling("dynamic", 4.0)
    assert read_config(write_config(config)) == config


@pytest.mark.parametrize(("names", "found"), [(["a.pt", "b.pt"], "a.pt, b.pt"), ([], "none"), (["a.bin"], "none")])
def test_a_folder_without_exactly_one_file_of_weights_is_refused(tmp_path: Path, names: list[str], found: str):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FormatError, match=f"exactly one .* found {found}$"):
        open_weights(ModelFolder(tmp_path))


@pytest.mark.parametrize(("dtype", "word"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32")])
def test_a_dtype_is_written_as_its_word(dtype: str, word: str):
    assert write_config(replace(SCALED, dtype=dtype))["_dtype"] == word
