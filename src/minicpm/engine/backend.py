"""The interface of backends: sequences with cached keys and values, and one forward pass over a ragged batch.

A row of a batch is a sequence with its new tokens: one token for a running answer, many for a prompt or a part of it.
One call may mix both. The engine above sees ids and logits, never a tensor of a framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from minicpm.engine.prompt import embeddings_of
from minicpm.formats.config import DecoderConfig

BLOCK_TOKENS = 16  # of the cache, as in docs/numerics.md, section 7
KV_BLOCK = 32  # numbers of a head that share a float16 scale in an int8 cache

CACHE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number


def cache_bytes_per_token(config: DecoderConfig, dtype: str) -> int:
    """Bytes of one token's keys and values in all layers; `dtype` is int8 or one of CACHE_BYTES."""
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    if dtype == "int8":
        return heads * -(-config.head_dim // KV_BLOCK) * (KV_BLOCK + 2)
    return heads * config.head_dim * CACHE_BYTES[dtype]


class KVSequence:
    """One text whose keys and values are held. A backend's subclass holds their memory.

    `token_ids` has token ids, and content ids (engine/prompt.py) at a span's positions.
    """

    def __init__(self, rope_length: int, adapter: str | None = None):
        # The length that determines the rotary base (dynamic NTK). It never changes.
        self.rope_length = rope_length
        self.adapter = adapter  # that computed keys and values; None: the model's own weights. It never changes
        self.token_ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens whose keys and values the backend has computed."""
        self.token_ids += token_ids

    def truncate(self, length: int) -> None:
        """Drop all tokens from position `length` on."""
        assert 0 <= length <= self.length
        del self.token_ids[length:]


Wanted = Literal["last", "all", "none"]


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence; `logits` selects the tokens whose next-token logits are wanted.

    If `token_ids` has content ids, it is a MixedIds (engine/prompt.py) with their embeddings.
    """

    sequence: KVSequence
    token_ids: Sequence[int]
    logits: Wanted = "last"

    @property
    def wanted_count(self) -> int:
        """The number of tokens whose logits are wanted: the row's last ones."""
        return {"last": 1, "all": len(self.token_ids), "none": 0}[self.logits]

    def chunks(self, most_tokens: int) -> Iterator[Row]:
        """The row in parts of at most `most_tokens` tokens, which together give the same logits."""
        for start in range(0, len(self.token_ids), most_tokens):
            is_last = start + most_tokens >= len(self.token_ids)
            wanted: Wanted = "none" if self.logits == "last" and not is_last else self.logits
            yield replace(self, token_ids=self.token_ids[start : start + most_tokens], logits=wanted)


def wanted_places(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """The indices, among the concatenated tokens of all rows, whose logits are wanted; and their count per row."""
    # Plain lists: for one token, numpy's functions for this take longer than a layer of a small model.
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
    """The concatenated ids of all rows, and the embeddings (n, hidden) of their content ids (None without any).

    The k-th content id is replaced by -1 - k.
    """
    ids = [i for row in rows for i in row.token_ids]
    spans = [found for row in rows if (found := embeddings_of(row.token_ids)) is not None]
    if not spans:
        return ids, None
    numbers = count()
    return [i if i >= 0 else -1 - next(numbers) for i in ids], np.concatenate(spans)


@dataclass(frozen=True)
class CacheUsage:
    """The budget of a cache in tokens, and how many of them open sequences and idle texts hold."""

    tokens: int
    held_tokens: int
    idle_tokens: int


class KVCache(Protocol):
    """Keys and values of all texts within a fixed budget: running texts, and idle ones that later texts may reuse.

    A text reuses those of an earlier one with the same prefix. Implementations: engine/cache/blocks.py.
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
        """A sequence that may grow to `planned_tokens`, and that already holds the cached prefix of the prompt.

        None if open sequences leave too little of the budget. At least the prompt's last token is left to compute,
        because its logits are needed. Only texts with the same rotary base and adapter share a prefix. With `keeps_all`
        the sequence can be truncated to any length; without it, under a sliding window, only by a few tokens.
        """

    def grow(self, sequence: KVSequence, planned_tokens: int) -> bool:
        """Let an open sequence grow to `planned_tokens`. False, without a change, if others leave too little."""

    def close(self, sequence: KVSequence) -> None:
        """Release a sequence. Its keys and values stay cached while there is room. Closing twice has no effect."""

    def usage(self) -> CacheUsage:
        """The current use of the budget."""

    def drop_idle(self) -> None:
        """Evict all texts that no open sequence holds, and release their memory."""


class Backend(Protocol):
    """The properties of any backend. engine/runtime.py runs requests on it."""

    name: str
    vocab_size: int
    context_length: int  # most tokens of one sequence, prompt and answer together
    trained_length: int  # positions seen in training; beyond them the rotary base is rescaled
    cache_bytes_per_token: int  # keys and values, all layers

    @property
    def embedding_size(self) -> int | None:
        """The width of embeddings that prompts may have in place of token ids; None if they may not."""

    def held_tokens(self, planned_tokens: int) -> int:
        """Most tokens whose keys and values a text of up to `planned_tokens` holds at once."""


class StepBackend(Backend, Protocol):
    """A backend that computes one step at a time and returns its logits: engine/backends/native.py, numpy.py, torch."""

    is_exact: bool  # a token's logits have the same bits whatever else its call computes

    def new_cache(self, tokens: int) -> KVCache:
        """A cache for the keys and values of `tokens`. It may allocate memory as it fills."""

    def new_sequence(self, rope_length: int) -> KVSequence:
        """An empty sequence with its own memory, for a text of at most `rope_length` tokens."""

    def free_cache_bytes(self) -> int | None:
        """The free memory for keys and values; None if the system does not report it."""

    def rope_key(self, length: int) -> float:
        """The rotary base of a sequence of planned `length`. Sequences with equal bases may share a prefix."""

    def forward(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """Append every row's tokens to its sequence; return per row the logits (row.wanted_count, vocab)."""

    def hidden_states(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """Like `forward`, but return per row the hidden states (len(token_ids), hidden) after the last norm.

        These are the head's input before the logit scale. `Row.logits` has no effect.
        """
