"""A tiny shape, a little data, and a run that trains in a blink."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from minicpm.chat import template_for
from minicpm.tokenizer import Tokenizer
from minicpm.train.options import OptimizerOptions, RunOptions
from minicpm.train.rendering import Renderer

torch.set_num_threads(1)

SHAPE: dict[str, Any] = {
    "model_type": "minicpm",
    "architectures": ["MiniCPMForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 16,
    "tie_word_embeddings": True,
}
WORDS = ["the", "cat", "saw", "a", "dog", "near", "our", "old", "house", "and", "ran", "home", "to", "tell", "me"]


def write_lines(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def story(i: int) -> str:
    return " ".join(WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] for j in range(5 + i % 23)) + "."


def question(i: int, turns: int = 1) -> dict[str, Any]:
    messages = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"What is {i} + {turn}?"})
        messages.append({"role": "assistant", "content": f"It is {i + turn}. {story(i)[:20]}"})
    return {"messages": messages}


@pytest.fixture
def toy(golden: Path) -> Path:
    """The golden toy model with its tokenizer."""
    return golden / "minicpm2b_tied"


@pytest.fixture
def renderer(toy: Path) -> Renderer:
    return Renderer(Tokenizer.from_folder(toy), template_for(toy), 1000)


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE), encoding="utf-8")
    return path


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "stories.jsonl", [{"text": story(i)} for i in range(60)])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "questions.jsonl", [question(i, 1 + i % 3) for i in range(40)])


@pytest.fixture
def tiny_options(stories: Path, questions: Path) -> Callable[..., RunOptions]:
    """tiny_options(**changes): a run of a few steps over both files."""

    def options(**changes: Any) -> RunOptions:
        fields: dict[str, Any] = {
            "data": (str(stories), f"{questions}:2"),
            "train_on": "all",
            "length": 32,
            "rows": 4,
            "micro_rows": 2,
            "steps": 6,
            "warmup_steps": 2,
            "decay_steps": 2,
            "optimizer": OptimizerOptions(lr=0.01),
            "precision": "fp32",
            "save_every": 2,
            "eval_every": 0,
            "device": "cpu",
        }
        return RunOptions(**fields | changes)

    return options
