"""The data of MiniCPM-nano v2, English and Chinese from one semantic plan each, as much as is wanted.

    python nano/generate.py OUT --seed 1 --plans 1000000

writes OUT/<kind>.<language>.jsonl.gz for training, OUT/held-out/<kind>.<language>.jsonl.gz for measuring and
OUT/report.json. Equal seeds give equal bytes. Nothing with a prompt of held-out-prompts.jsonl is written
(bilingual/held_out.py). --sample N prints N plans of each kind instead.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from bilingual.held_out import normalized
from bilingual.language import LANGUAGES
from bilingual.records import KINDS, Counts, generate, line, planned

WORDS = re.compile(r"[a-z]+|[0-9]+|[^\W\da-z_]")


class Variety:
    """How varied the records of one kind and language are."""

    def __init__(self) -> None:
        self.records = self.words = self.characters = 0
        self._texts: set[int] = set()
        self._prompts: set[int] = set()
        self._answers: set[int] = set()
        self._vocabulary: Counter[str] = Counter()

    def add(self, record: dict[str, Any]) -> None:
        turns = record.get("messages") or [{"content": record["text"]}]
        whole = "\n".join(turn["content"] for turn in turns)
        words = WORDS.findall(whole.lower())
        self.records += 1
        self.words += len(words)
        self.characters += len(whole)
        self._vocabulary.update(words)
        self._texts.add(hash(whole))
        self._prompts.add(hash(normalized(turns[0]["content"])))
        self._answers.add(hash(turns[-1]["content"]))

    def report(self) -> dict[str, float]:
        """Shares are of the records; `types` are different English words, numbers and Chinese characters."""
        n = max(1, self.records)
        return {
            "records": self.records,
            "characters": self.characters,
            "words": self.words,
            "types": len(self._vocabulary),
            "types_per_1000_words": round(1000 * len(self._vocabulary) / max(1, self.words), 3),
            "different_records": round(len(self._texts) / n, 4),
            "different_first_prompts": round(len(self._prompts) / n, 4),
            "different_last_answers": round(len(self._answers) / n, 4),
        }


def _opened(path: Path, files: ExitStack) -> IO[str]:
    """A .jsonl.gz without a time stamp, so that equal records give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = files.enter_context(path.with_name(f".{path.name}.partial").open("wb"))
    packed = files.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
    return files.enter_context(io.TextIOWrapper(packed, encoding="utf-8"))


def write(out: Path, seed: int, plans: int) -> dict[str, Any]:
    """Write all kinds; the report."""
    report: dict[str, Any] = {"seed": seed, "plans": plans, "kinds": {}}
    for kind, about in KINDS.items():
        number = max(8, round(plans * about.records / sum(k.records for k in KINDS.values())))
        counts = Counts()
        varieties = {language: Variety() for language in LANGUAGES}
        paths = {
            (language, aside): (out / "held-out" if aside else out) / f"{kind}.{language}.jsonl.gz"
            for language in LANGUAGES
            for aside in (False, True)
        }
        with ExitStack() as files:
            opened = {key: _opened(path, files) for key, path in paths.items()}
            for language, aside, record in generate(kind, seed, number, counts):
                opened[language, aside].write(line(record))
                varieties[language].add(record)
        for path in paths.values():
            path.with_name(f".{path.name}.partial").replace(path)
        report["kinds"][kind] = {
            "plans": number,
            "training": counts.training,
            "held_out": counts.aside,
            "refused": counts.refused,
            **{language: variety.report() for language, variety in varieties.items()},
        }
        print(f"{kind}: {counts.training:,} plans, {counts.aside:,} aside, {counts.refused:,} refused", flush=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def show(seed: int, number: int, kinds: list[str]) -> None:
    """Print plans in both languages."""
    for kind in kinds:
        print(f"===== {kind}")
        for i in range(number):
            for record in planned(kind, seed, i).values():
                if "text" in record:
                    print(record["text"])
                for turn in record.get("messages", []):
                    print(("> " if turn["role"] == "user" else "< ") + turn["content"])
            print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plans", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="print N plans of each kind, write nothing")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of --sample")
    options = parser.parse_args()
    if options.sample:
        show(options.seed, options.sample, options.kinds)
    elif options.out is None:
        parser.error("say where to write, or give --sample")
    else:
        write(options.out, options.seed, options.plans)


if __name__ == "__main__":
    sys.exit(main())
