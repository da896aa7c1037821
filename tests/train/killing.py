"""A run in a process of its own that dies by kill -9, again and again, until it is done."""

from __future__ import annotations

import json
import multiprocessing
import os
import random as random_module
import signal
import time
from pathlib import Path

from minicpm.train.metrics import read_metrics
from minicpm.train.options import RunOptions


def losses(run: Path) -> list[float]:
    """The training loss of every step, each step once."""
    records = [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert [r["step"] for r in records] == list(range(records[0]["step"], records[0]["step"] + len(records)))
    return [record["loss"] for record in records]


def _train(out: Path, options: RunOptions, shape: Path, tokenizer: Path) -> None:
    import torch

    from minicpm.train.runs import pretrain

    torch.set_num_threads(1)
    pretrain(out, options, shape=shape, tokenizer=tokenizer, resume=True)


def killed_at_random(
    out: Path, options: RunOptions, shape: Path, tokenizer: Path, kills: int, random: random_module.Random
) -> int:
    """Run to the end with `kills` kills at random moments after a step; how many hit a run that was alive."""
    context = multiprocessing.get_context("fork")  # a fresh interpreter would import torch anew each time
    hit = 0
    for _ in range(kills):
        process = context.Process(target=_train, args=(out, options, shape, tokenizer))
        process.start()
        assert process.pid is not None
        wanted = _steps_done(out) + random.randint(1, 3)
        while _steps_done(out) < wanted and process.is_alive():
            time.sleep(0.002)
        time.sleep(random.random() * 0.02)  # in a step, in a checkpoint, between them
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        hit += process.exitcode == -signal.SIGKILL
    process = context.Process(target=_train, args=(out, options, shape, tokenizer))
    process.start()
    process.join()
    assert process.exitcode == 0
    return hit


def _steps_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    if not path.is_file():
        return 0
    lines = path.read_bytes().splitlines()
    try:
        return max((json.loads(line)["step"] for line in lines), default=0)
    except ValueError:
        return 0
