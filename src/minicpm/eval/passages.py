"""Short texts in the package (passages.jsonl), and how well a model foresees them.

They are nine pieces of English, Chinese and code, public domain or CC0: enough to tell a sound model from a broken one,
far too few to rank models by. Wikitext they are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import Backend, Row
from minicpm.tokenizer import Tokenizer

FILE = Path(__file__).with_name("passages.jsonl")
FORWARD_TOKENS = 1024  # of one forward pass: MiniCPM-2B's logits of so many take half a gigabyte


@dataclass(frozen=True)
class Passage:
    """One text."""

    name: str
    language: str  # "en", "zh" or "code"
    source: str
    text: str


@cache
def passages() -> tuple[Passage, ...]:
    return tuple(Passage(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines())


def passages_sha256() -> str:
    """What a report names them by: numbers of other texts cannot be compared."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()


def logits_of(backend: Backend, rows: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
    """Per row of T ids (T - 1, vocab): what was foreseen for each but the first; few rows are computed at once."""
    waiting: list[Sequence[int]] = []
    for ids in [*rows, None]:
        if waiting and (ids is None or sum(map(len, waiting)) + len(ids) > FORWARD_TOKENS):
            batch = [Row(backend.new_sequence(len(one)), one[:-1], "all") for one in waiting]
            yield from backend.forward(batch)
            waiting = []
        if ids is not None:
            waiting.append(ids)


def encoded(tokenizer: Tokenizer, texts: Sequence[str], most_tokens: int) -> list[list[int]]:
    """Ids of every text, the beginning-of-sequence token in front, at most so many."""
    return [ids[:most_tokens] for ids in tokenizer.encode_batch(texts)]
