"""nano's tokenizer: a SentencePiece BPE in the layout of the 2B's.

    python nano/make_tokenizer.py DATA OUT [--vocab-size 8192]

trains on a sample of DATA/*.jsonl.gz and writes OUT/tokenizer.model, tokenizer_config.json and tokenizer.json, which
describes the same to programs that do not know SentencePiece. v1 has 6,144 pieces, v2 8,192 for English and Chinese. No
blank is put in front of a text: whether one belongs behind a marker is what SentencePiece, transformers and llama.cpp
disagree about.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from corpus import read

from minicpm.chat import CURRENT_TEMPLATE
from minicpm.export.destination import new_folder
from minicpm.tokenizer.loading import load_library_tokenizer

VOCAB_SIZE = 6144
RECORDS_PER_KIND = 4000  # the rare kinds count as much as the stories, of which there is no end
MARKERS = ["\n", "<用户>", "<AI>"]
CHINESE = re.compile(r"<用户>|[\u4e00-\u9fff]+")
# Chinese has no blanks, so whole phrases of the generator would become pieces that no other text contains. Pieces
# are learned from stretches of three characters that begin anywhere: long enough for words, and short words count more.
STRETCH = 3


def sentences(data: Path) -> Iterator[str]:
    """Lines of every kind as the model will read them. Answers stand alone: they follow `<AI>` with no blank."""
    chosen = random.Random(0)
    for path in sorted(data.glob("*.jsonl.gz")):
        records = list(read(path))
        for record in chosen.sample(records, min(RECORDS_PER_KIND, len(records))):
            if "text" in record:
                yield from record["text"].splitlines()
            for turn in record.get("messages", []):
                lines = turn["content"].splitlines()
                if lines:
                    yield MARKERS[1 if turn["role"] == "user" else 2] + lines[0]
                yield from lines[1:]


def stretches(line: str, draw: random.Random) -> list[str]:
    """The line in parts, each Chinese run of which is at most `STRETCH` characters long; joined, they are the line."""
    parts: list[str] = []
    at = 0
    for run in CHINESE.finditer(line):
        if run[0] == MARKERS[1]:
            continue
        if run.start() > at:
            parts.append(line[at : run.start()])
        cut = run.start() + draw.randint(1, STRETCH)
        parts.append(run[0][: cut - run.start()])
        for start in range(cut, run.end(), STRETCH):
            parts.append(line[start : min(start + STRETCH, run.end())])
        at = run.end()
    if at < len(line):
        parts.append(line[at:])
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    options = parser.parse_args()
    draw = random.Random(0)
    with new_folder(options.out) as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in sentences(options.data) for part in stretches(line, draw)),
            model_prefix=str(folder / "tokenizer"),
            model_type="bpe",
            vocab_size=options.vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=MARKERS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            character_coverage=0.9999,
            num_threads=2,
            minloglevel=1,
        )
        (folder / "tokenizer.vocab").unlink()
        config = {
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": None,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 2048,
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "chat_template": CURRENT_TEMPLATE.text,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        library_tokenizer, _ = load_library_tokenizer(folder, config)
        library_tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
