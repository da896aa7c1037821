"""What a backend owes the engine: sequences that remember, and one forward pass over a ragged batch.

A row of a batch is a sequence with its new tokens: one token for a running answer, many for a prompt or a part
of one, any mix in a single call. The engine above sees token ids and logits, never a tensor of a framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class KVSequence(Protocol):
    """Keys and values of one text's tokens, in every layer."""

    @property
    def length(self) -> int:
        """Tokens whose keys and values are held."""

    @property
    def rope_length(self) -> int:
        """Length the rotary base was fixed for when the sequence was made (dynamic NTK); never changes."""

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence; `logits` tells for which of them the next token's logits are wanted."""

    sequence: KVSequence
    token_ids: Sequence[int]
    logits: str = "last"  # "last", "all" or "none"


class Backend(Protocol):
    """Computes logits. Implementations: engine/native.py, engine/torch.py, engine/numpy.py."""

    name: str
    vocab_size: int
    context_length: int  # most tokens of one sequence, prompt and answer together
    trained_length: int  # positions seen in training; beyond them the rotary base is rescaled
    cache_bytes_per_token: int  # keys and values, all layers
    is_exact: bool  # a token's logits have the same bits whatever else its call computes

    def new_sequence(self, rope_length: int) -> KVSequence:
        """An empty sequence for a text planned to reach at most `rope_length` tokens."""

    def free_cache_bytes(self) -> int | None:
        """Memory that keys and values may still take now; None where the system does not tell."""

    def rope_key(self, length: int) -> float:
        """Rotary base a sequence of planned `length` gets; sequences of equal keys may share a prefix."""

    def forward(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """Append every row's tokens to its sequence; per row (n, vocab) logits, n = 1, len(token_ids) or 0."""

    def hidden_states(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """As `forward`, but per row the hidden states of all its tokens behind the last norm: (len(token_ids), hidden).

        That is what the head gets before the logit scale. `Row.logits` is not looked at.
        """
