"""A quantized folder and a GGUF file as the source of every conversion."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicpm.errors import ModelError
from minicpm.export.convert import convert
from minicpm.export.dequantized import open_dequantized
from minicpm.export.gguf import write_gguf
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.tokenizer import Tokenizer, first_difference
from small_models import WIDE, random_weights, write_model

CONFIG = replace(WIDE, vocab_size=1000)


@pytest.fixture
def plain(golden: Path, tmp_path: Path) -> Path:
    """A small model of floats with the toy tokenizer."""
    folder = write_model(tmp_path / "plain", CONFIG, random_weights(CONFIG, std=0.1))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(golden / "minicpm2b_tied" / name, folder)
    return folder


@pytest.fixture(params=["folder", "q4_0", "float16"])
def source(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    """An INT4 folder, a file of Q4_0 and Q8_0, a file of float16."""
    if request.param == "folder":
        quantize_folder(plain, tmp_path / "int4")
        return tmp_path / "int4"
    write_gguf(plain, tmp_path / "model.gguf", dtype=request.param)
    return tmp_path / "model.gguf"


def floats(path: Path) -> dict[str, np.ndarray]:
    with open_dequantized(path) as checkpoint:
        return {name: checkpoint.read(name).float32().copy() for name in checkpoint.tensors}


def config_of(path: Path) -> DecoderConfig:
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        return replace(checkpoint.config, dtype="float32", initializer_range=0.1, pad_token_id=None)


def test_a_folder_of_the_same_numbers_is_made(source: Path, tmp_path: Path):
    done = convert(source, tmp_path / "out", to="hf")
    before, after = floats(source), floats(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert config_of(tmp_path / "out") == config_of(source)
    assert (done.dequantized is None) == _is_plain(source)


def test_the_tokenizer_comes_along(source: Path, plain: Path, tmp_path: Path):
    convert(source, tmp_path / "out", to="hf")
    one, other = Tokenizer.from_folder(plain), Tokenizer.from_folder(tmp_path / "out")
    assert first_difference(one, other) is None
    assert (one.vocab_size, one.bos_token_id, one.eos_token_id) == (
        other.vocab_size,
        other.bos_token_id,
        other.eos_token_id,
    )
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert first_difference(one, Tokenizer.from_folder(tmp_path / "out")) is None
    with open_checkpoint(tmp_path / "out") as checkpoint, open_checkpoint(plain) as first:
        assert checkpoint.chat_template().text == first.chat_template().text
        assert checkpoint.eos_token_ids == first.eos_token_ids


@pytest.mark.parametrize("to", ["llama", "granite", "vllmcpm"])
def test_every_other_form_is_made(source: Path, tmp_path: Path, to: str):
    convert(source, tmp_path / "out", to=to, dtype="float32")
    convert(tmp_path / "out", tmp_path / "back", to="hf")
    before, after = floats(source), floats(tmp_path / "back")
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-6)


def test_a_rounded_folder_loses_no_more_than_its_dtype(source: Path, tmp_path: Path):
    convert(source, tmp_path / "out", to="hf", dtype="bfloat16")
    after = floats(tmp_path / "out")
    for name, values in floats(source).items():
        assert (np.abs(after[name] - values) <= np.abs(values) / 256).all()


@pytest.mark.parametrize("dtype", [None, "float32", "q8_0", "q4_0"])
def test_a_gguf_file_is_made(source: Path, tmp_path: Path, dtype: str | None):
    write_gguf(source, tmp_path / "out.gguf", dtype=dtype)
    before, after = floats(source), floats(tmp_path / "out.gguf")
    bound = {"q8_0": 0.01, "q4_0": 0.15}.get(str(dtype), 0.0)
    for name, values in before.items():
        assert np.linalg.norm(after[name] - values) <= bound * np.linalg.norm(values), name
    with (
        open_checkpoint(source, allow_quantized=True) as one,
        open_checkpoint(tmp_path / "out.gguf", allow_quantized=True) as other,
    ):
        assert first_difference(one.tokenizer(), other.tokenizer()) is None


def test_a_folder_made_of_a_file_makes_a_file_again(plain: Path, tmp_path: Path):
    write_gguf(plain, tmp_path / "one.gguf")
    convert(tmp_path / "one.gguf", tmp_path / "folder", to="hf")
    write_gguf(tmp_path / "folder", tmp_path / "two.gguf", name="one")
    again = tmp_path / "three.gguf"
    write_gguf(plain, again, name="one")
    one, other = floats(tmp_path / "two.gguf"), floats(again)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_quantized_source_is_quantized_again(source: Path, tmp_path: Path):
    done = quantize_folder(source, tmp_path / "out", preset="int8", equalize=False)
    assert (done.dequantized is None) == _is_plain(source)
    before, after = floats(source), floats(tmp_path / "out")
    for name, values in before.items():
        assert np.linalg.norm(after[name] - values) <= 0.01 * np.linalg.norm(values), name
    Tokenizer.from_folder(tmp_path / "out")


def _is_plain(source: Path) -> bool:
    with open_dequantized(source) as checkpoint:
        return checkpoint.dequantized is None


def test_sampling_defaults_come_along(plain: Path, tmp_path: Path):
    (plain / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.3, "top_p": 0.9}))
    write_gguf(plain, tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "out", to="hf")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (made["do_sample"], made["temperature"], made["top_p"], made["eos_token_id"]) == (True, 0.3, 0.9, 2)


def test_source_and_destination_may_not_be_the_same_file(plain: Path, tmp_path: Path):
    write_gguf(plain, tmp_path / "model.gguf")
    before = (tmp_path / "model.gguf").read_bytes()
    with pytest.raises(ValueError, match="are the same"):
        write_gguf(tmp_path / "model.gguf", tmp_path / "model.gguf", dtype="q8_0", overwrite=True)
    assert (tmp_path / "model.gguf").read_bytes() == before


@pytest.mark.parametrize("preset", ["int4", "int4-hf"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.post_attention_layernorm.weight"])
def test_a_norm_that_is_not_finite_is_refused_by_name(tmp_path: Path, name: str, bad: float, preset: str):
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights[name][3] = bad

    folder = write_model(tmp_path / "model", WIDE, edit=spoil)
    with pytest.raises(ModelError, match=f"{name} holds numbers that are not finite"):
        quantize_folder(folder, tmp_path / "out", preset=preset)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_embedding_that_stays_in_floats_is_checked_as_well(tmp_path: Path):
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.embed_tokens.weight"][3, 3] = np.nan

    folder = write_model(tmp_path / "model", WIDE, edit=spoil)
    with pytest.raises(ModelError, match=r"embed_tokens\.weight: holds numbers that are not finite"):
        quantize_folder(folder, tmp_path / "out", preset="int4-hf")
