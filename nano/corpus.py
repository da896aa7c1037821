"""The natural part of nano's data: the collected corpus by kind, cleaned, with the held-out part split off.

    python nano/corpus.py CORPUS OUT

reads CORPUS/pretrain.jsonl.gz and sft.jsonl.gz and writes OUT/<kind>.jsonl.gz for training and
OUT/held-out/<kind>.jsonl.gz for measuring. What is held out depends on the text alone (a hash of the document, or of
each prompt), so it never moves, and the generated data of grammar.py keep to the same rule.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HELD_OUT_PER_MILLE = 20
# Kind of data -> the sources of the corpus that belong to it.
TEXTS = {
    "books": ("standard_ebooks", "gutenberg_children", "fairytaleqa_story", "pratham", "african_storybook"),
    "dialogues": ("sgd", "taskmaster4"),
    "stories": ("gen_story",),
    "wordnet": ("wordnet",),
}
CONVERSATIONS = {
    "chat_stories": ("gen_story",),
    "chat_story_questions": ("gen_story_qa",),
    "chat_fairytale_questions": ("fairytaleqa_qa",),
    "chat_arithmetic": ("gen_arith",),
    "chat_countries": ("gen_countries",),
    "chat_words": ("gen_words",),
    "chat_wordnet": ("wordnet",),
    "chat_turns": ("gen_multi",),
    "chat_small": ("gen_facts", "gen_identity", "gen_smalltalk"),
    "chat_tasks": ("sgd", "taskmaster4"),
}


def is_held_out(text: str) -> bool:
    """Whether a document, or a prompt, belongs to the part that is only measured; case and punctuation don't matter."""
    bare = re.sub(r"[^a-z0-9+*=-]+", " ", text.lower()).strip()
    return int.from_bytes(hashlib.sha256(bare.encode()).digest()[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def prompts(record: dict[str, Any]) -> list[str]:
    """What a record is split by: all its user turns, or its text."""
    if "text" in record:
        return [record["text"]]
    return [turn["content"] for turn in record["messages"] if turn["role"] == "user"]


def read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records as .jsonl.gz with no time stamp, so that equal records give equal bytes; their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    number = 0
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            number += 1
    partial.replace(path)
    return number


def split(source: Path, kinds: dict[str, tuple[str, ...]], out: Path) -> None:
    """Write each kind's training and held-out file."""
    kind_of = {name: kind for kind, names in kinds.items() for name in names}
    kept: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for record in read(source):
        if record["source"] in kind_of:
            aside = any(is_held_out(prompt) for prompt in prompts(record))
            kept.setdefault((kind_of[record["source"]], aside), []).append(record)
    for (kind, aside), records in sorted(kept.items()):
        path = (out / "held-out" if aside else out) / f"{kind}.jsonl.gz"
        print(f"{path}: {write(path, records):,} records")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
    split(corpus / "pretrain.jsonl.gz", TEXTS, out)
    split(corpus / "sft.jsonl.gz", CONVERSATIONS, out)


if __name__ == "__main__":
    main()
