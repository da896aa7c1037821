"""Models small enough to be written, quantized and run in a moment, with shapes that no block divides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minicpm.formats.config import DecoderConfig
from minicpm.formats.safetensors import SafetensorsWriter
from minicpm.formats.tensor import TensorView

Edit = Callable[[dict[str, np.ndarray]], None]

# Grouped queries, and a head, a width and a vocabulary that no block divides.
ODD = DecoderConfig(
    vocab_size=203,
    hidden_size=120,
    intermediate_size=200,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=256,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=60,
)
EVEN = DecoderConfig(
    vocab_size=203,
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=128,
)


def write_model(
    folder: Path, config: DecoderConfig, seed: int = 0, outliers: float = 1.0, edit: Edit = lambda weights: None
) -> Path:
    """A folder of random weights in the configuration's dtype, once `edit` has changed what it wants of them."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    weights = {}
    for name, shape in config.parameter_shapes().items():
        weights[name] = random.standard_normal(shape, np.float32) * np.float32(0.08 if len(shape) == 2 else 0.3)
        if len(shape) == 1:
            weights[name] += 1
            weights[name][::67] *= outliers
    edit(weights)
    views = [TensorView.from_float32(name, values, config.dtype) for name, values in weights.items()]
    writer = SafetensorsWriter(folder / "model.safetensors", [view.info for view in views])
    for view in views:
        writer.write(view.name, [view.buffer])
    writer.close()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder
