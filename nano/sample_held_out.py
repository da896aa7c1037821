"""The sample of held-out data that the repository carries, held-out.jsonl, for measuring without the corpus:

    python nano/sample_held_out.py CORPUS nano/held-out.jsonl

CORPUS is a folder that corpus.py wrote. Books are public domain (sources.json), everything else is made by grammar.py
and CC0; kinds that carry facts of countries, which are share-alike, are left out. What is held out depends on the text
alone, so none of it has ever been trained on.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from corpus import is_held_out, prompts, read
from grammar import Record, generate

PUBLIC_DOMAIN = ("standard_ebooks", "gutenberg_children", "fairytaleqa_story")
BOOK_CHARACTERS = 1500  # of each: many voices rather than long passages
# Kind -> characters of it, so that about as many tokens count of books, of stories and of all answers together.
GENERATED = {
    "stories": 6_000,
    "chat_stories": 4_000,
    "chat_story_questions": 4_000,
    "chat_copy": 1_500,
    "chat_arithmetic": 1_000,
    "chat_words": 1_000,
    "chat_small": 1_500,
}
BOOKS = 6_000
SEED, GENERATED_RECORDS = 2, 2_500  # a seed that no training run used


def books(corpus: Path) -> list[Record]:
    """The beginnings of held-out chapters, cut behind a sentence."""
    found = []
    for record in read(corpus / "held-out" / "books.jsonl.gz"):
        if record["source"] in PUBLIC_DOMAIN:
            text = record["text"][:BOOK_CHARACTERS]
            found.append({"source": record["source"], "kind": "books", "text": text[: text.rfind(". ") + 1] or text})
    return found


def sample(records: list[Record], characters: int) -> list[Record]:
    """Records in a fixed random order until they have so many characters."""
    random.Random(0).shuffle(records)
    chosen: list[Record] = []
    while records and characters > 0:
        chosen.append(records.pop())
        characters -= len(json.dumps(chosen[-1]))
    return chosen


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
    chosen = sample(books(corpus), BOOKS)
    for kind, characters in GENERATED.items():
        made = generate(kind, SEED, GENERATED_RECORDS)
        aside = [record for record in made if any(is_held_out(prompt) for prompt in prompts(record))]
        chosen += sample(aside, characters)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in chosen)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(lines, encoding="utf-8")
    partial.replace(out)
    print(f"{out}: {len(chosen)} records, {len(lines):,} characters")


if __name__ == "__main__":
    main()
