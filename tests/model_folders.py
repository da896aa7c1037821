"""Fixtures of the rooms that read and write model folders: TINY, and any form of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minicpm.formats.config import DecoderConfig
from small_models import TINY, random_weights


@pytest.fixture
def tiny() -> DecoderConfig:
    return TINY


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """`model_folder("name", config, safe=False)` writes a valid folder with the libraries of others.

    Keys of config.json can be changed; a value of ... removes its key.
    """

    def write(name: str = "model", config: DecoderConfig = TINY, safe: bool = True, **changes: object) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        raw = {key: value for key, value in {**config.to_dict(), **changes}.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(raw))
        dtype = getattr(torch, config.dtype)
        weights = {key: torch.from_numpy(values).to(dtype) for key, values in random_weights(config).items()}
        if safe:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            torch.save(weights, folder / "pytorch_model.bin")
        return folder

    return write
