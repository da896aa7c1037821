"""The protocol of driver and runner: a runner loads its model, prints `ready`, then measures one point per line.

Only the standard library is imported, because every runner has the Python of its own environment.
Lines: `fill DEPTH`, `prefill TOKENS`, `decode DEPTH SECONDS`, `batch SEQUENCES SECONDS`, `verify TOKENS SECONDS`.
Answers: one JSON object a line, {"value": ...} or {"error": "..."}.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Protocol

# The most tokens in a window of single steps.
WINDOW_TOKENS = 256


class Peer(Protocol):
    """A loaded model that has computed a first token. Methods return None if unsupported."""

    facts: dict[str, object]  # versions and settings

    def fill(self, depth: int) -> None:
        """Fill the cache with `depth` random tokens, for `decode`."""

    def prefill(self, tokens: int) -> float | None:
        """Tokens per second of a new prompt, including its last logits."""

    def decode(self, depth: int, window_s: float) -> float | None:
        """Tokens per second, one at a time, after `depth` tokens."""

    def batch(self, sequences: int, window_s: float) -> float | None:
        """Tokens per second of a batch of short sequences."""

    def verify(self, tokens: int, window_s: float) -> float | None:
        """Seconds of a step over this many first tokens of a sequence, with all their logits."""


def steps_per_s(step: Callable[[int], object], window_s: float, limit: int = WINDOW_TOKENS) -> float:
    """Steps per second in the window, at least two; the first step warms up and is not counted."""
    step(0)
    count, start = 0, time.perf_counter()
    while count + 1 < limit:
        step(count + 1)
        count += 1
        if count >= 2 and time.perf_counter() - start >= window_s:
            break
    return count / (time.perf_counter() - start)


def random_ids(count: int, vocabulary: int = 122753) -> list[int]:
    return [random.randrange(3, vocabulary) for _ in range(count)]


def serve(start: Callable[[], Peer]) -> None:
    """Load, then answer lines until the input ends. Output of libraries is redirected to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    begin = time.perf_counter()
    peer = start()
    print(json.dumps({"ready": peer.facts, "load_s": time.perf_counter() - begin}), file=out)
    commands: dict[str, Callable[..., object]] = {
        "fill": lambda depth: peer.fill(int(depth)),
        "prefill": lambda tokens: peer.prefill(int(tokens)),
        "decode": lambda depth, seconds: peer.decode(int(depth), float(seconds)),
        "batch": lambda sequences, seconds: peer.batch(int(sequences), float(seconds)),
        "verify": lambda tokens, seconds: peer.verify(int(tokens), float(seconds)),
    }
    for line in sys.stdin:
        verb, *arguments = line.split()
        try:
            value = commands[verb](*arguments)
            answer: dict[str, object] = {"value": value if isinstance(value, float) else None}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out)
    out.flush()
    os._exit(0)  # skips the libraries' exit handlers, some of which crash
