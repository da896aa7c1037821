"""A model small enough for any test and wide enough for every quantization group, as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from minicpm.formats.config import DecoderConfig

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


def random_weights(config: DecoderConfig, std: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = config.parameter_shapes().items()
    return {name: std * random.standard_normal(shape, np.float32) for name, shape in shapes}


def write_model(folder: Path, config: DecoderConfig, weights: dict[str, np.ndarray]) -> Path:
    """Weights and config.json; no tokenizer."""
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder
