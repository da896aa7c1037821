"""Keeps the sequences of finished requests, so that the next turn of a conversation computes only what is new."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from minicpm.engine.backend import Backend, KVSequence


class PrefixCache:
    """At most `capacity` idle sequences, least recently used dropped first; each is taken by one request at a time."""

    def __init__(self, backend: Backend, capacity: int):
        self._backend = backend
        self._capacity = capacity
        self._idle: OrderedDict[tuple[int, ...], KVSequence] = OrderedDict()

    def take(self, prompt_ids: Sequence[int], rope_length: int) -> KVSequence:
        """The idle sequence sharing the longest prefix, cut to it; a new one where none shares anything.

        At least the prompt's last token is left to compute, since its logits are needed. Sequences made for
        another rotary base are no match.
        """
        base = self._backend.rope_key(rope_length)
        best, best_length = None, 0
        for ids, sequence in self._idle.items():
            if self._backend.rope_key(sequence.rope_length) != base:
                continue
            length = min(common_prefix_length(ids, prompt_ids), sequence.length, len(prompt_ids) - 1)
            if length > best_length:
                best, best_length = ids, length
        if best is None:
            return self._backend.new_sequence(rope_length)
        sequence = self._idle.pop(best)
        sequence.truncate(best_length)
        return sequence

    def put(self, token_ids: Sequence[int], sequence: KVSequence) -> None:
        """Give a sequence back; it holds the keys and values of the first `sequence.length` of `token_ids`."""
        key = tuple(token_ids[: sequence.length])
        if not key or self._capacity == 0:
            return
        self._idle[key] = sequence
        self._idle.move_to_end(key)
        while len(self._idle) > self._capacity:
            self._idle.popitem(last=False)

    def drop_all(self) -> None:
        """Free the memory of all idle sequences."""
        self._idle.clear()


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences have in common from their start on."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))
