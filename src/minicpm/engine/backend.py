"""What a backend owes the engine: sequences that remember, and one forward pass over a ragged batch.

A row of a batch is a sequence with its new tokens: one token for a running answer, many for a prompt or a part
of one, any mix in a single call. The engine above sees ids and logits, never a tensor of a framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from minicpm.engine.prompt import embeddings_of

BLOCK_TOKENS = 16  # of the cache, as in docs/numerics.md, section 7


class KVSequence:
    """Tokens of one text whose keys and values are held; where these lie is the backend's own class's to know.

    `token_ids` are those of the tokens, and content ids (engine/prompt.py) of a span's positions.
    """

    def __init__(self, rope_length: int, adapter: str | None = None):
        # Length the rotary base was fixed for when the sequence was made (dynamic NTK); never changes.
        self.rope_length = rope_length
        self.adapter = adapter  # whose weights computed it, None for the model's own; never changes either
        self.token_ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """The backend has computed these: their keys and values lie behind the held ones."""
        self.token_ids += token_ids

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        assert 0 <= length <= self.length
        del self.token_ids[length:]


Wanted = Literal["last", "all", "none"]


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence; `logits` tells for which of them the next token's logits are wanted.

    Content ids among `token_ids` bring their embeddings along: these are then MixedIds (engine/prompt.py).
    """

    sequence: KVSequence
    token_ids: Sequence[int]
    logits: Wanted = "last"

    @property
    def wanted_count(self) -> int:
        """Tokens whose logits are wanted; they are the row's last ones."""
        return {"last": 1, "all": len(self.token_ids), "none": 0}[self.logits]

    def chunks(self, most_tokens: int) -> Iterator[Row]:
        """The same row in parts of at most `most_tokens`, which together want the same logits."""
        for start in range(0, len(self.token_ids), most_tokens):
            is_last = start + most_tokens >= len(self.token_ids)
            wanted: Wanted = "none" if self.logits == "last" and not is_last else self.logits
            yield replace(self, token_ids=self.token_ids[start : start + most_tokens], logits=wanted)


def wanted_places(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Which of all rows' tokens, one row behind the other, logits are wanted of; and how many of each row."""
    # Plain lists: for one token numpy's functions that do this take longer than a layer of a small model.
    places: list[int] = []
    counts: list[int] = []
    end = 0
    for row in rows:
        end += len(row.token_ids)
        count = row.wanted_count
        places += range(end - count, end)
        counts.append(count)
    return places, counts


def flat_ids(rows: Sequence[Row]) -> tuple[list[int], npt.NDArray[np.float32] | None]:
    """Ids of all rows, one behind the other, and the embeddings (n, hidden) of their content ids, None without any.

    The k-th content id stands as -1 - k.
    """
    ids = [i for row in rows for i in row.token_ids]
    spans = [found for row in rows if (found := embeddings_of(row.token_ids)) is not None]
    if not spans:
        return ids, None
    numbers = count()
    return [i if i >= 0 else -1 - next(numbers) for i in ids], np.concatenate(spans)


@dataclass(frozen=True)
class CacheUsage:
    """Tokens whose keys and values there is room for, and of them those that open sequences hold and idle ones."""

    tokens: int
    held_tokens: int
    idle_tokens: int


class KVCache(Protocol):
    """Keys and values of all texts within a budget that never grows: those being computed, and idle ones of earlier
    texts, which later texts with the same beginning take over. Implementations: engine/cache/blocks.py.
    """

    tokens: int  # the budget

    def open(
        self,
        prompt_ids: Sequence[int],
        planned_tokens: int,
        rope_length: int,
        *,
        keeps_all: bool = False,
        adapter: str | None = None,
    ) -> KVSequence | None:
        """A sequence that may reach `planned_tokens`, and already holds what is cached of the prompt.

        None while open sequences leave too little of the budget. At least the prompt's last token is left to compute,
        since its logits are needed. Only texts of the same rotary base and adapter share anything. With `keeps_all` it
        can be cut back to any length; else, of a model with a sliding window, by a few tokens only.
        """

    def grow(self, sequence: KVSequence, planned_tokens: int) -> bool:
        """Let an open sequence reach `planned_tokens`; False, and nothing changes, where others leave too little."""

    def close(self, sequence: KVSequence) -> None:
        """Give a sequence back; what it holds stays as long as there is room. Closing twice changes nothing."""

    def usage(self) -> CacheUsage:
        """What of the budget is in use now."""

    def drop_idle(self) -> None:
        """Forget all texts that no open sequence holds, and give their memory back to the system."""


class Backend(Protocol):
    """What computes a model, as all who ask for it may know it. engine/runtime.py runs requests on it."""

    name: str
    vocab_size: int
    context_length: int  # most tokens of one sequence, prompt and answer together
    trained_length: int  # positions seen in training; beyond them the rotary base is rescaled
    cache_bytes_per_token: int  # keys and values, all layers

    @property
    def embedding_size(self) -> int | None:
        """Numbers of an embedding that may stand for a token id; None where only token ids are taken."""

    def held_tokens(self, planned_tokens: int) -> int:
        """Most tokens whose keys and values a text that may reach `planned_tokens` holds at once."""


class StepBackend(Backend, Protocol):
    """Computes a step at a time and gives its logits: engine/backends/native.py, numpy.py and torch."""

    is_exact: bool  # a token's logits have the same bits whatever else its call computes

    def new_cache(self, tokens: int) -> KVCache:
        """Room for the keys and values of `tokens`; it may take memory only as it fills."""

    def new_sequence(self, rope_length: int) -> KVSequence:
        """An empty sequence with memory of its own for a text planned to reach at most `rope_length` tokens."""

    def free_cache_bytes(self) -> int | None:
        """Memory that keys and values may still take now; None where the system does not tell."""

    def rope_key(self, length: int) -> float:
        """Rotary base a sequence of planned `length` gets; sequences of equal keys may share a prefix."""

    def forward(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """Append every row's tokens to its sequence; per row (row.wanted_count, vocab) logits."""

    def hidden_states(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """As `forward`, but per row the hidden states of all its tokens behind the last norm: (len(token_ids), hidden).

        That is what the head gets before the logit scale. `Row.logits` is not looked at.
        """
