"""A model small enough to be damaged a hundred ways, and what every form of it is written from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minicpm.formats.config import DecoderConfig

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
    dtype="float32",
)


def weights_of(config: DecoderConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random parameters of a model, by published name."""
    random = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(getattr(torch, config.dtype))
        for name, shape in config.parameter_shapes().items()
    }


def write_config(folder: Path, **changes: Any) -> None:
    """TINY's config.json with keys changed; a value of ... removes its key."""
    raw = {**TINY.to_dict(), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


@pytest.fixture
def tiny() -> DecoderConfig:
    return TINY


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """`model_folder("name", config, safe=False)` writes a valid folder with the libraries of others."""

    def write(name: str = "model", config: DecoderConfig = TINY, safe: bool = True, **changes: Any) -> Path:
        folder = tmp_path / name
        write_config(folder, **{**config.to_dict(), **changes})
        if safe:
            save_file(weights_of(config), folder / "model.safetensors", metadata={"format": "pt"})
        else:
            torch.save(weights_of(config), folder / "pytorch_model.bin")
        return folder

    return write
