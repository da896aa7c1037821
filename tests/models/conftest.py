"""A small random MiniCPM, and folders made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM

torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 8,
}


@pytest.fixture
def small() -> Callable[..., MiniCPMForCausalLM]:
    """small(**changes): a random two-layer model with grouped queries, always the same one."""

    def build(**changes: Any) -> MiniCPMForCausalLM:
        torch.manual_seed(0)
        return MiniCPMForCausalLM(MiniCPMConfig(**SMALL | changes)).eval()

    return build


@pytest.fixture
def tied_folder(golden: Path, tmp_path: Path) -> Callable[..., Path]:
    """tied_folder(config.json changes): a writable copy of golden/minicpm2b_tied."""

    def copy(**changes: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for file in (golden / "minicpm2b_tied").iterdir():
            if file.name not in ("golden.safetensors", "padded_left.safetensors"):
                shutil.copy(file, folder / file.name)
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(raw | changes), encoding="utf-8")
        return folder

    return copy
