"""Short texts in the package (passages.jsonl): nine pieces of English, Chinese and code, public domain or CC0.

Enough to tell a sound model from a broken one, far too few to rank models by; and wikitext they are not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("passages.jsonl")


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
