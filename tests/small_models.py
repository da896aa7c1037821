"""Models small enough for any test, by what their shapes are for, and how a folder of one is written.

No torch here: tests of environments without it use these, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from minicpm.formats.config import DecoderConfig
from minicpm.formats.safetensors import SafetensorsWriter
from minicpm.formats.sequential import writing
from minicpm.formats.tensor import TensorView

Weights = dict[str, np.ndarray]

# Small enough to be damaged a hundred ways.
TINY = DecoderConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=8,
)
# A row is one block of GGUF's 32, a vocabulary twelve pieces.
ONE_BLOCK = DecoderConfig(
    vocab_size=12,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=16,
)
# Wide enough for every quantization group.
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
# Heads of 64: vLLM's attention for the CPU has none of 16.
HEADS_OF_64 = DecoderConfig(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=512,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=64,
    rms_norm_eps=1e-5,
)
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
# Grouped queries, and widths that every block divides.
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


def random_weights(config: DecoderConfig, std: float = 1.0, seed: int = 0) -> Weights:
    """Normal numbers, norms too."""
    random = np.random.default_rng(seed)
    shapes = config.parameter_shapes().items()
    return {name: std * random.standard_normal(shape, np.float32) for name, shape in shapes}


def write_model(
    folder: Path,
    config: DecoderConfig,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    seed: int = 0,
    outliers: float = 1.0,
    edit: Callable[[Weights], None] = lambda weights: None,
) -> Path:
    """Weights and config.json in the new folder; no tokenizer.

    Given weights are stored in float32. Without them there are random ones in the configuration's dtype: `outliers`
    multiplies some channels of the norms, and `edit` changes what it wants.
    """
    dtype = config.dtype if weights is None else "float32"
    if weights is None:
        weights = _computable(config, seed, outliers)
        edit(weights)
    folder.mkdir()
    views = [TensorView.from_float32(name, values, dtype) for name, values in weights.items()]
    with writing(SafetensorsWriter(folder / "model.safetensors", [view.info for view in views])) as writer:
        for view in views:
            writer.write(view.name, [view.buffer])
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def _computable(config: DecoderConfig, seed: int, outliers: float) -> Weights:
    """Random weights of a size that a model's are: matrices near 0.08, norms near 1."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.parameter_shapes().items():
        weights[name] = random.standard_normal(shape, np.float32) * np.float32(0.08 if len(shape) == 2 else 0.3)
        if len(shape) == 1:
            weights[name] += 1
            weights[name][::67] *= outliers
    return weights
