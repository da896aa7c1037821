"""Write the packaged sample that `minicpm quantize` calibrates on: English, Chinese, code and conversations.

    python nano/make_calibration.py CORPUS PILOT_DATA      # the collected corpus, and what `stages.py data` made

Nothing of it is in benchmarks/texts, which quality is measured on. Books are of two authors who are not there, in the
public domain; code and the Chinese page are this project's; stories, facts, tasks and conversations are the generator's
(CC0). The result is src/minicpm/assets/calibration.jsonl.gz, with its sources in docs/quantization.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "src" / "minicpm" / "assets" / "calibration.jsonl.gz"
# People of Edith Nesbit's "The Railway Children" and "Five Children and It", and of Anna Sewell's "Black Beauty".
BOOKS = re.compile("Phyllis|Bobbie|Cyril|Anthea|Merrylegs|Ginger")
CODE = (
    "src/minicpm/chat/stop.py",
    "src/minicpm/sampling/reference.py",
    "src/minicpm/hub/transfer.py",
    "csrc/thread_pool.cc",
)
CODE_CHARACTERS, PAGE_CHARACTERS, BOOK_PASSAGES = 1_600, 800, 24
RECORDS = {"texts": 12, "stories": 12, "long": 10, "tasks": 16, "talk": 16, "dialogues": 24, "reading": 12, "facts": 12}


def books(corpus: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(corpus / "pretrain.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if record["source"] == "standard_ebooks" and len(BOOKS.findall(record["text"])) > 3:
                yield {"text": record["text"]}


def pieces(path: Path, characters: int) -> Iterator[dict[str, Any]]:
    """A file in pieces of whole paragraphs."""
    piece = ""
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        piece += f"{paragraph}\n\n"
        if len(piece) > characters:
            yield {"text": piece.strip()}
            piece = ""


def generated(data: Path) -> Iterator[dict[str, Any]]:
    for kind, count in RECORDS.items():
        for language in ("en", "zh"):
            with gzip.open(data / f"{kind}.{language}.jsonl.gz", "rt", encoding="utf-8") as file:
                for line in islice(file, count):
                    record = json.loads(line)
                    yield {key: record[key] for key in ("text", "messages") if key in record}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    records = [*islice(books(options.corpus), BOOK_PASSAGES), *generated(options.data)]
    records += [piece for name in CODE for piece in islice(pieces(ROOT / name, CODE_CHARACTERS), 4)]
    records += pieces(ROOT / "README-zh.md", PAGE_CHARACTERS)
    with SAMPLE.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
    print(f"{SAMPLE}: {len(records)} records, {SAMPLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
