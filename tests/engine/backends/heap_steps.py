"""Run by test_allocations.py with heap_calls.c preloaded: how often each step of a model asks the heap for memory."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from minicpm.engine.backend import Row
from minicpm.engine.backends.native import NativeBackend
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.engine.prompt import EmbeddingSpan, checked_ids
from minicpm.formats.checkpoint import open_checkpoint

CALLS = ctypes.c_long.in_dll(ctypes.CDLL(None), "heap_calls")


class CountedModel:
    """The extension's model, and how often each of its forward passes asked."""

    def __init__(self, model: Any):
        self._model = model
        self.calls: list[int] = []

    def forward(self, batch: Any) -> None:
        before = CALLS.value
        self._model.forward(batch)
        self.calls.append(CALLS.value - before)


def calls_of(folder: Path, **options: Any) -> dict[str, list[int]]:
    backend = NativeBackend(open_checkpoint(folder, allow_quantized=True), threads=2, **options)
    model = backend._model = CountedModel(backend._model)  # type: ignore[assignment]
    sequences = [backend.new_sequence(300) for _ in range(3)]
    span = EmbeddingSpan(np.ones((9, backend.config.hidden_size), np.float32), b"k")
    found = {}

    def step(name: str, parts: list[list[Any]], times: int) -> None:
        model.calls.clear()
        rows = [
            Row(sequence, checked_ids(part, backend.vocab_size, backend.embedding_size))
            for sequence, part in zip(sequences, parts)
        ]
        for _ in range(times):
            backend.forward(rows)
        found[name] = [*model.calls]

    step("the first step", [[1, 2, 3] * 20, [4] * 40, [5] * 20], 1)
    step("the same prompts again", [[1, 2, 3] * 20, [4] * 40, [5] * 20], 1)
    step("prompts with a span", [[1, span, 2, 3], [4] * 40], 2)
    step("single tokens", [[7]], 20)
    step("a token for each", [[7], [8], [9]], 20)
    step("drafts", [[7, 8, 9, 10]], 3)
    step("a longer step than before", [[1] * 60, [2] * 60, [3] * 60], 1)
    return found


if __name__ == "__main__":
    gc.disable()
    quantized, floats = map(Path, sys.argv[1:])
    window = SlidingWindow(32)
    steps = [calls_of(quantized), calls_of(quantized, kv_dtype="bfloat16", window=window), calls_of(floats)]
    json.dump(steps, sys.stdout)
