"""Exported folders in transformers' own Granite and Llama classes: the same mathematics, written by others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GraniteForCausalLM, LlamaForCausalLM

from minicpm.export.convert import convert

pytestmark = pytest.mark.parity

PEERS = {"granite": GraniteForCausalLM, "llama": LlamaForCausalLM}


def peer_logits(folder: Path, form: str, input_ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    assert type(model) is PEERS[form]
    with torch.no_grad():
        return model(input_ids).logits


@pytest.mark.parametrize("form", PEERS)
@pytest.mark.parametrize("source", ["minicpm2b_tied", "minicpm2b_untied_sharded"])
def test_an_exported_model_computes_the_golden_logits(golden: Path, tmp_path: Path, source: str, form: str):
    expected = load_file(golden / source / "golden.safetensors")
    convert(golden / source, tmp_path / "out", to=form, max_shard_bytes=2_000_000)
    logits = peer_logits(tmp_path / "out", form, expected["input_ids"])
    # golden/README.md: another implementation's float32 differs by 2e-5; folding adds one rounding.
    assert (logits - expected["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("form", PEERS)
def test_an_exported_model_writes_the_golden_text(golden: Path, tmp_path: Path, form: str):
    expected = load_file(golden / "minicpm2b_tied" / "golden.safetensors")
    convert(golden / "minicpm2b_tied", tmp_path / "out", to=form)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    prompt = expected["gen.prompt_ids"]
    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=32, eos_token_id=None
    )
    assert torch.equal(written, expected["gen.sequences"])


def test_a_bin_with_a_shared_head_exports_its_golden_logits(golden: Path, tmp_path: Path):
    expected = load_file(golden / "minicpm2b_tied_bf16_bin" / "golden.safetensors")
    convert(golden / "minicpm2b_tied_bf16_bin", tmp_path / "out", to="granite")
    logits = peer_logits(tmp_path / "out", "granite", expected["input_ids"])
    assert (logits - expected["logits_fp32_compute"]).abs().max() < 1e-4


def test_a_round_trip_through_vllmcpm_computes_the_golden_logits(golden: Path, tmp_path: Path):
    expected = load_file(golden / "minicpm2b_untied_sharded" / "golden.safetensors")
    convert(golden / "minicpm2b_untied_sharded", tmp_path / "vllmcpm", to="vllmcpm")
    convert(tmp_path / "vllmcpm", tmp_path / "out", to="granite", as_bin=True)
    logits = peer_logits(tmp_path / "out", "granite", expected["input_ids"])
    assert (logits - expected["logits"]).abs().max() < 1e-4
