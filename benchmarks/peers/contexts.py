"""Shared by the runners of llama.cpp and its fork: the points of protocol.py over a context of the library."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from protocol import WINDOW_TOKENS, random_ids, steps_per_s

LONGEST_PROMPT, DEEPEST = 2048, 4096
SEQUENCES = 16

# A token, its position, its sequence, and whether its logits are computed.
TokenRow = tuple[int, int, int, bool]


class Context(Protocol):
    """Keys and values of several sequences in the library's memory."""

    def decode(self, rows: Sequence[TokenRow]) -> None:
        """Compute a batch and wait for it."""

    def cut(self, length: int = 0) -> None:
        """Drop everything after the first `length` tokens of every sequence."""


def filled(batch: Any, rows: Sequence[TokenRow]) -> Any:
    """The library's batch with these rows in it."""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, is_wanted) in enumerate(rows):
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.logits[i] = is_wanted
    return batch


def rows_of(ids: Sequence[int], start: int, wanted: str) -> list[TokenRow]:
    """Tokens of sequence 0 from position `start` on; logits of "all", the "last" or "none"."""
    last = len(ids) - 1
    return [(token, start + i, 0, wanted == "all" or (wanted == "last" and i == last)) for i, token in enumerate(ids)]


class ContextRunner:
    """A loaded model as protocol.Peer. `new_context` makes a context for these numbers of tokens and sequences."""

    def __init__(self, facts: dict[str, object], vocabulary: int, new_context: Callable[[int, int], Context]):
        self.facts = facts
        self._vocabulary, self._new_context = vocabulary, new_context
        # A user's program has one context for the whole conversation. The second one is made when a point needs it.
        self._deep = new_context(DEEPEST, 1)
        self._held = 0
        self._short: Context | None = None
        self._deep.decode(rows_of(self._ids(1), 0, "last"))
        self._deep.cut()

    def fill(self, depth: int) -> None:
        self._deep.cut()
        self._deep.decode(rows_of(self._ids(depth), 0, "none"))
        self._held = depth

    def prefill(self, tokens: int) -> float:
        context, ids = self._shallow(), self._ids(tokens)
        start = time.perf_counter()
        context.decode(rows_of(ids, 0, "last"))
        return tokens / (time.perf_counter() - start)

    def decode(self, depth: int, window_s: float) -> float:
        if depth and depth != self._held:
            self.fill(depth)
        context = self._deep if depth else self._shallow()
        ids = self._ids(WINDOW_TOKENS)
        speed = steps_per_s(
            lambda i: context.decode(rows_of(ids[i : i + 1], depth + i, "last")),
            window_s,
            min(WINDOW_TOKENS, DEEPEST - depth),
        )
        context.cut(depth)
        return speed

    def batch(self, sequences: int, window_s: float) -> float | None:
        context = self._shallow()
        ids = [self._ids(WINDOW_TOKENS + 1) for _ in range(sequences)]

        def step(i: int) -> None:
            context.decode([(own[i], i, sequence, True) for sequence, own in enumerate(ids)])

        step(0)
        return sequences * steps_per_s(lambda i: step(i + 1), window_s, LONGEST_PROMPT // sequences - 1)

    def verify(self, tokens: int, window_s: float) -> float:
        context, ids = self._shallow(), self._ids(tokens)

        def step(_: int) -> None:
            context.decode(rows_of(ids, 0, "all"))
            context.cut()

        return 1 / steps_per_s(step, window_s)

    def _shallow(self) -> Context:
        """An empty context, large enough for the longest prompt and the largest batch."""
        if self._short is None:
            self._short = self._new_context(LONGEST_PROMPT + WINDOW_TOKENS, SEQUENCES)
        self._short.cut()
        return self._short

    def _ids(self, count: int) -> list[int]:
        return random_ids(count, self._vocabulary)
