"""How the driver talks to a runner: it loads its model, says `ready`, then measures what each line asks for.

Nothing but the standard library is imported: every runner is run by the Python of its own environment.
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

# Tokens that a window of single steps takes at most.
WINDOW_TOKENS = 256


class Peer(Protocol):
    """A loaded model; a token has been computed already. None where the program cannot do it."""

    facts: dict[str, object]  # versions and settings

    def fill(self, depth: int) -> None:
        """Hold `depth` random tokens from now on, for `decode`."""

    def prefill(self, tokens: int) -> float | None:
        """Tokens a second of a new prompt, its last logits included."""

    def decode(self, depth: int, window_s: float) -> float | None:
        """Tokens a second, one at a time, behind `depth`."""

    def batch(self, sequences: int, window_s: float) -> float | None:
        """Tokens a second of short sequences together."""

    def verify(self, tokens: int, window_s: float) -> float | None:
        """Seconds of a step over so many tokens of one sequence with all their logits, from its start."""


def steps_per_s(step: Callable[[int], object], window_s: float, limit: int = WINDOW_TOKENS) -> float:
    """Steps a second until the window is over, two at least; a first one warms up and is not counted."""
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
    """Load, then answer lines until the input ends. What libraries print goes to stderr."""
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
    os._exit(0)  # libraries that end badly have nothing left to say
