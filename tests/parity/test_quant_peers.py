"""Our compressed-tensors folders in the programs they are written for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import minicpm.models  # noqa: F401
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.models import load_model
from minicpm.quant.format import IntWeight, read_weight
from small_models import WIDE, random_weights, write_model

pytestmark = pytest.mark.parity


def test_transformers_loads_int4_hf_with_our_weights(tmp_path: Path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    source = write_model(tmp_path / "source", WIDE, random_weights(WIDE, std=0.1))
    quantize_folder(source, tmp_path / "int4", preset="int4-hf")
    with open_checkpoint(tmp_path / "int4", allow_quantized=True) as checkpoint:
        read = {name: read_weight(checkpoint, name) for name in WIDE.parameter_shapes()}
        values = {name: w.dequantize() if isinstance(w, IntWeight) else w.float32() for name, w in read.items()}
    dense = load_model(open_checkpoint(write_model(tmp_path / "dense", WIDE, values)), dtype="float32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int4", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = dense(ids).logits, theirs(ids).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
