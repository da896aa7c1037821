"""Our compressed-tensors folders in the programs they are written for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

import minicpm.models  # noqa: F401
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.models import load_model
from minicpm.quant.folder import quantize_folder
from minicpm.quant.format import IntWeight, read_weight

pytestmark = pytest.mark.parity

WIDE = DecoderConfig(
    vocab_size=203,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=64,
)


def write_model(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(WIDE.to_dict()))
    return folder


def test_transformers_loads_int4_hf_with_our_weights(tmp_path: Path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    random = np.random.default_rng(0)
    shapes = WIDE.parameter_shapes().items()
    source = write_model(
        tmp_path / "source", {name: 0.1 * random.standard_normal(shape, np.float32) for name, shape in shapes}
    )
    quantize_folder(source, tmp_path / "int4", preset="int4-hf")
    with open_checkpoint(tmp_path / "int4", allow_quantized=True) as checkpoint:
        read = {name: read_weight(checkpoint, name) for name in WIDE.parameter_shapes()}
        values = {name: w.dequantize() if isinstance(w, IntWeight) else w.float32() for name, w in read.items()}
    dense = load_model(open_checkpoint(write_model(tmp_path / "dense", values)), dtype="float32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int4", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = dense(ids).logits, theirs(ids).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
