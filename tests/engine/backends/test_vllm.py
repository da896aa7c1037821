"""The parts of the vLLM backend that can be tested without vLLM: refusals, readable folders, expansion."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minicpm import LLM
from minicpm.engine.backends.vllm import (
    VllmRuntime,
    VllmScorer,
    chat_template_text,
    context_of,
    is_installed,
    readable_folder,
    why_not_as_it_is,
)
from minicpm.engine.scoring import Continuation, Loglikelihood
from minicpm.errors import MissingExtra
from minicpm.export.convert import convert
from minicpm.export.expand import expand, expanded_bytes
from minicpm.export.gguf import write_gguf
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import RopeScaling
from minicpm.hub import embedded
from minicpm.quant.format import IntWeight, read_weight
from minicpm.tokenizer import Tokenizer
from small_models import EVEN, ODD, write_model


@pytest.mark.skipif(is_installed(), reason="vLLM is here")
def test_without_vllm_the_extra_is_named():
    with pytest.raises(MissingExtra, match=r"pip install '.*\[vllm\]'"):
        LLM(backend="vllm")


def test_options_of_vllm_are_refused_by_other_backends():
    with pytest.raises(ValueError, match="vllm_options are for the backend vllm, not for numpy"):
        LLM(backend="numpy", vllm_options={"tensor_parallel_size": 2})


def reason(folder: Path, dtype: str) -> str | None:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return why_not_as_it_is(checkpoint, dtype)


def test_plain_llama_and_granite_folders_are_read_as_they_are(tmp_path: Path):
    source = write_model(tmp_path / "hf", EVEN)
    assert reason(source, "float32") is None
    for form in ("llama", "granite"):
        convert(source, tmp_path / form, to=form)
        assert reason(tmp_path / form, "bfloat16") is None


def test_quantized_folders_are_read_only_where_vllm_has_kernels_for_them(tmp_path: Path):
    source = write_model(tmp_path / "hf", EVEN)
    for preset in ("int4", "int4-small", "int4-hf", "int8"):
        quantize_folder(source, tmp_path / preset, preset=preset)
    assert reason(tmp_path / "int4-hf", "bfloat16") is None
    assert "compute in 16 bits" in str(reason(tmp_path / "int4-hf", "float32"))
    for preset in ("int4", "int4-small", "int8"):
        assert "its embedding is quantized" in str(reason(tmp_path / preset, "bfloat16"))


def test_other_forms_are_named(tmp_path: Path, golden: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "vllmcpm", to="vllmcpm")
    write_gguf(golden / "minicpm2b_tied", tmp_path / "model.gguf", dtype="float32")
    assert "vLLM-CPM" in str(reason(tmp_path / "vllmcpm", "float32"))
    assert "GGUF" in str(reason(tmp_path / "model.gguf", "float32"))


@pytest.mark.parametrize("preset", ["int4", "int4-small", "int8"])
def test_an_expanded_model_has_the_numbers_of_the_codes(tmp_path: Path, preset: str):
    source = write_model(tmp_path / "hf", ODD)
    quantize_folder(source, tmp_path / "packed", preset=preset)
    (tmp_path / "expanded").mkdir()
    with open_checkpoint(tmp_path / "packed", allow_quantized=True) as packed:
        expand(packed, tmp_path / "expanded", "float32")
        with open_checkpoint(tmp_path / "expanded") as expanded:
            assert expanded.config == packed.config.with_dtype("float32")
            assert expanded.nbytes == expanded_bytes(packed, "float32")
            for name in expanded.tensors:
                weight = read_weight(packed, name)
                values = weight.dequantize() if isinstance(weight, IntWeight) else weight.float32()
                assert np.array_equal(expanded.read(name).float32(), values)


def test_an_expanded_gguf_or_2024_fork_model_is_the_model(tmp_path: Path, golden: Path):
    source = golden / "minicpm2b_tied"
    convert(source, tmp_path / "vllmcpm", to="vllmcpm")
    write_gguf(source, tmp_path / "model.gguf", dtype="float32")
    with open_checkpoint(source) as original:
        for name in ("vllmcpm", "model.gguf"):
            folder = tmp_path / f"{name} expanded"
            folder.mkdir()
            with open_checkpoint(tmp_path / name) as checkpoint:
                expand(checkpoint, folder, "float32")
            with open_checkpoint(folder) as expanded:
                for tensor in original.tensors:
                    assert np.array_equal(expanded.read(tensor).float32(), original.read(tensor).float32())


def test_an_expanded_copy_lives_as_long_as_it_is_used(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path))
    with open_checkpoint(embedded.folder(), allow_quantized=True) as checkpoint:
        with pytest.raises(KeyError), readable_folder(checkpoint, "bfloat16") as folder:
            assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
            assert (folder / "tokenizer.json").is_file()
            raise KeyError
        assert not folder.exists()
        assert "its embedding is quantized" in caplog.text
    plain = write_model(tmp_path / "hf", EVEN)
    with open_checkpoint(plain) as checkpoint, readable_folder(checkpoint, "float32") as folder:
        assert folder == plain


def test_the_template_for_vllm_writes_the_token_that_vllm_leaves_out(golden: Path, tmp_path: Path):
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint:
        assert chat_template_text(checkpoint) == "<s>" + checkpoint.chat_template().text
    folder = tmp_path / "model"
    shutil.copytree(golden / "minicpm2b_tied", folder)
    for its_own in ("{{ bos_token }}{{ messages[0]['content'] }}", "<s>{{ messages[0]['content'] }}"):
        (folder / "chat_template.jinja").write_text(its_own, encoding="utf-8")
        with open_checkpoint(folder) as checkpoint:
            assert chat_template_text(checkpoint) == its_own


def test_the_written_token_gives_the_ids_of_the_official_tokenizer(real_tokenizer: Path):
    tokenizer = Tokenizer.from_folder(real_tokenizer)
    for prompt in ("<用户>Which city is the capital of China?<AI>", "<用户>你好<AI> 你好！<用户> a  b<AI>"):
        assert tokenizer.encode("<s>" + prompt, add_bos=False) == tokenizer.encode(prompt, add_bos=True)


def test_dynamic_ntk_ends_where_vllm_ends():
    stretched = replace(EVEN, rope_scaling=RopeScaling("dynamic", 4.0))
    assert (stretched.context_length, context_of(stretched, None)) == (1024, 256)
    assert context_of(replace(EVEN, rope_scaling=RopeScaling("linear", 4.0)), None) == 1024
    assert context_of(stretched, 100) == 100
    with pytest.raises(ValueError, match="context 257 is more than the 256 tokens vLLM can compute"):
        context_of(stretched, 257)


def test_scores_are_sums_of_what_vllm_says_of_prompts():
    """Entries by token id, as vLLM gives them; the first of a prompt has none."""

    def entry(logprob: float, rank: int) -> SimpleNamespace:
        return SimpleNamespace(logprob=logprob, rank=rank)

    said = {
        (5, 6, 7, 8): [None, {6: entry(-9.0, 4), 1: entry(-0.1, 1)}, {7: entry(-0.5, 1)}, {8: entry(-0.25, 1)}],
        (5, 6, 7, 9): [None, {6: entry(-9.0, 4), 1: entry(-0.1, 1)}, {7: entry(-0.5, 1)}, {9: entry(-2.0, 3)}],
    }
    backend = SimpleNamespace(prompt_logprobs=lambda texts: [said[tuple(ids)] for ids in texts])
    scores = VllmScorer(backend).loglikelihood([Continuation([5, 6, 7, 8], 2), Continuation([5, 6, 7, 9], 3)])
    assert scores == [Loglikelihood(-0.75, 2, True), Loglikelihood(-2.0, 1, False)]


def test_vllm_has_no_steps_but_says_what_to_use():
    runtime = VllmRuntime(SimpleNamespace(context_length=64, cache_tokens=1024))
    assert (runtime.steps, runtime.context_length, runtime.cache_tokens) == (None, 64, 1024)
    assert runtime.why_no_steps.endswith("use the backend native, torch or numpy")
