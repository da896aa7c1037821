"""What the generator may not see: 400 frozen prompts in each language, and two in a hundred of all other prompts.

held-out-prompts.jsonl was written by hand before the generator and never changes: tests/nano/test_held_out_prompts.py
has its SHA-256. Each line has `language`, `kind`, `prompt` and `answers`, strings of which a right answer has at least
one (none listed: no single answer is right).

A prompt is compared as a list of words (of Chinese: characters) without case, punctuation, width and blanks, so that
neither "Please" in front of a frozen prompt nor a missing question mark gets around the comparison.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).parents[1] / "held-out-prompts.jsonl"
ASIDE_PER_MILLE = 20
# Shorter frozen prompts ("Hello hello") are only compared as a whole: longer prompts contain them by chance.
SHORTEST_CONTAINED = 5
_TOKEN = re.compile(r"[a-z]+|[0-9]+|[+*/=<>-]|[^\W\d_a-z]")
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "'": None, "’": None})

Tokens = tuple[str, ...]


def normalized(prompt: str) -> Tokens:
    """The words, numbers, signs and Chinese characters of a prompt, in lower case."""
    return tuple(_TOKEN.findall(unicodedata.normalize("NFKC", prompt).casefold().translate(_SIGNS)))


@cache
def frozen() -> tuple[dict[str, Any], ...]:
    """The records of held-out-prompts.jsonl."""
    return tuple(json.loads(line) for line in FROZEN.read_text(encoding="utf-8").splitlines())


class Prompts:
    """A set of prompts that nothing may be trained on."""

    def __init__(self, prompts: Iterable[str]):
        self._whole = {normalized(prompt) for prompt in prompts}
        self._by_start: dict[Tokens, list[Tokens]] = {}
        for tokens in self._whole:
            if len(tokens) >= SHORTEST_CONTAINED:
                self._by_start.setdefault(tokens[:3], []).append(tokens)

    def __contains__(self, prompt: str) -> bool:
        """Whether `prompt` is one of the set, or contains a longer one of them word by word."""
        tokens = normalized(prompt)
        if tokens in self._whole:
            return True
        for start in range(len(tokens) - SHORTEST_CONTAINED + 1):
            for held in self._by_start.get(tokens[start : start + 3], ()):
                if tokens[start : start + len(held)] == held:
                    return True
        return False


@cache
def frozen_prompts() -> Prompts:
    """The frozen prompts of both languages."""
    return Prompts(record["prompt"] for record in frozen())


def asked(record: dict[str, Any]) -> list[str]:
    """All user turns of a record; of a text, its first sentence, with which it could be asked for."""
    if "text" in record:
        return [re.split(r"(?<=[.!?。！？])", record["text"], maxsplit=1)[0]]
    return [turn["content"] for turn in record["messages"] if turn["role"] == "user"]


def is_aside(prompts: Sequence[str]) -> bool:
    """Whether a record with these prompts is kept for measuring: a hash of each prompt decides, whatever the seed."""
    return any(_hash(prompt) % 1000 < ASIDE_PER_MILLE for prompt in prompts)


def _hash(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(normalized(prompt)).encode()).digest()[:4], "big")
