"""Training compared with TRL, and after twenty kills."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minicpm.chat import template_for
from minicpm.models import load_model
from minicpm.tokenizer import Tokenizer
from minicpm.train.batches import IGNORED, Batch, Mixture, Share
from minicpm.train.checkpoint import CheckpointFolder
from minicpm.train.loop import Loop, LoopOptions
from minicpm.train.metrics import Metrics
from minicpm.train.options import OptimizerOptions, RunOptions
from minicpm.train.rendering import Renderer
from minicpm.train.runs import pretrain
from minicpm.train.schedules import Schedule
from minicpm.train.store import TokenStore, token_store
from train.conftest import SHAPE, question, story, write_lines
from train.killing import killed_at_random, losses

pytestmark = pytest.mark.parity


def test_trl_has_the_same_losses_on_the_same_examples(golden: Path, tmp_path: Path):
    """Five full-batch AdamW steps of TRL's SFTTrainer, on the ids and masks that we rendered: the same five losses."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    toy = golden / "minicpm2b_tied"
    source = write_lines(tmp_path / "questions.jsonl", [question(i, 1 + i % 3) for i in range(8)])
    renderer = Renderer(Tokenizer.from_folder(toy), template_for(toy), 1000)
    store = token_store(source, tmp_path / "stores", renderer)
    rows: list[dict[str, Any]] = []
    for document in range(8):
        span = slice(store.start(document), int(store.ends[document]))
        ids = store.ids[span].astype(int)
        rows.append({"input_ids": ids.tolist(), "labels": np.where(store.trained[span], ids, IGNORED).tolist()})
    batch = _one_row_each(store, 128)
    theirs = load_model(toy, attn_implementation="sdpa")
    ours = load_model(toy, attn_implementation="sdpa")
    for model in (ours, theirs):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    adamw = torch.optim.AdamW(ours.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    loop = Loop(
        ours,
        [adamw],
        Schedule("constant", 5),
        Mixture([store], [Share(source, times=1.0)], rows=8, length=128),
        peak_lr=1e-3,
        options=LoopOptions(micro_rows=4, clip_norm=1.0),
        checkpoints=CheckpointFolder(tmp_path / "checkpoints"),
        metrics=Metrics(tmp_path / "metrics.jsonl"),
    )
    our_losses = [loop.train_on(batch)[0].loss for _ in range(5)]
    trainer = SFTTrainer(
        model=theirs,
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=8,
            num_train_epochs=5,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            logging_steps=1,
            logging_strategy="steps",
            report_to="none",
            use_cpu=True,
            bf16=False,
            max_length=128,
            save_strategy="no",
            dataset_kwargs={"skip_prepare_dataset": True},
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=_hf_tokenizer(toy),
    )
    trainer.train()
    their_losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(their_losses) == 5
    assert our_losses == pytest.approx(their_losses, abs=2e-4)


def _one_row_each(store: TokenStore, length: int) -> Batch:
    """A batch with every document of a store in a row of its own."""
    shape = (len(store), length)
    ids, positions, segments = (np.zeros(shape, np.int64) for _ in range(3))
    targets = np.full(shape, IGNORED, np.int64)
    for row in range(len(store)):
        piece = store.ids[store.start(row) : int(store.ends[row])].astype(np.int64)
        trained = store.trained[store.start(row) : int(store.ends[row])]
        n = len(piece)
        ids[row, :n], positions[row, :n], segments[row, :n] = piece, np.arange(n), 1
        targets[row, : n - 1] = np.where(trained[1:], piece[1:], IGNORED)
    return Batch(ids, targets, positions, segments)


def _hf_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_twenty_kills_at_random_moments_change_no_loss(golden: Path, tmp_path: Path):
    toy = golden / "minicpm2b_tied"
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE), encoding="utf-8")
    stories = write_lines(tmp_path / "stories.jsonl", [{"text": story(i)} for i in range(60)])
    questions = write_lines(tmp_path / "questions.jsonl", [question(i, 1 + i % 3) for i in range(40)])
    options = RunOptions(
        data=(str(stories), f"{questions}:2"),
        train_on="all",
        length=32,
        rows=4,
        micro_rows=2,
        steps=70,
        warmup_steps=5,
        decay_steps=20,
        optimizer=OptimizerOptions(lr=0.01),
        precision="fp32",
        save_every=2,
        eval_every=0,
        device="cpu",
    )
    pretrain(tmp_path / "whole", options, shape=shape, tokenizer=toy)
    kills = killed_at_random(tmp_path / "killed", options, shape, toy, kills=20, random=random.Random(20))
    assert kills == 20
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    final = [(tmp_path / run / "final/model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert final[0] == final[1]
