"""`minicpm prepare --data FILE ... --out FOLDER`: the tokenizer and the shape that `pretrain` starts from."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from minicpm.chat.templates import CURRENT_TEMPLATE
from minicpm.cli.arguments import whole
from minicpm.cli.output import talk
from minicpm.errors import DataError
from minicpm.export.destination import new_folder
from minicpm.files import write_text
from minicpm.formats.config import CONFIG_FILE
from minicpm.tokenizer.training import train_tokenizer
from minicpm.train.records import Conversation, Problem, Text, read_records
from minicpm.train.shapes import shape_for

MARKERS = ("\n", "<用户>", "<AI>")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make what a new model starts from: a tokenizer learned from your data, and a config.json in MiniCPM's "
        "proportions. Then: minicpm pretrain --shape FOLDER/config.json --tokenizer FOLDER --data ... --out RUN"
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="training files, as for pretrain")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the new folder")
    parser.add_argument(
        "--parameters", type=_parameters, default=10_000_000, metavar="N", help="such as 8M or 1.2B (default: 10M)"
    )
    parser.add_argument(
        "--vocab-size", type=whole(512), default=8192, metavar="N", help="most pieces of the tokenizer (default: 8192)"
    )
    parser.add_argument(
        "--context", type=whole(16), default=2048, metavar="TOKENS", help="longest text of the model (default: 2048)"
    )
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")


def run(args: argparse.Namespace) -> int:
    out = Path(args.out).expanduser()
    with new_folder(out) as folder:
        texts = _texts([Path(name).expanduser() for name in args.data])
        vocab_size = train_tokenizer(
            texts,
            folder,
            vocab_size=args.vocab_size,
            markers=MARKERS,
            chat_template=CURRENT_TEMPLATE.text,
            context=args.context,
        )
        shape = shape_for(args.parameters, vocab_size, args.context)
        write_text(folder / CONFIG_FILE, json.dumps(shape.to_dict(), indent=2) + "\n")
    facts = {
        "folder": str(out),
        "vocab_size": vocab_size,
        "parameters": shape.num_parameters(),
        "layers": shape.num_hidden_layers,
        "hidden_size": shape.hidden_size,
    }
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        talk(
            f"{out}: a tokenizer of {vocab_size:,} pieces, and a model of {shape.num_parameters():,} parameters in "
            f"{shape.num_hidden_layers} layers of {shape.hidden_size}"
        )
    return 0


def _texts(paths: list[Path]) -> Iterator[str]:
    """The texts of all records. Raises DataError for a bad record, as training does."""
    for path in paths:
        for place, record in read_records(path):
            if isinstance(record, Problem):
                raise DataError(f"{path}: {place}: {record.text}; 'minicpm data check {path}' lists all")
            if isinstance(record, Text):
                yield record.text
            elif isinstance(record, Conversation):
                yield from (message["content"] for message in record.messages)


def _parameters(text: str) -> int:
    """An argument's type: a number of parameters, written like 8M, 1.2B or 500000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower())
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]] if match else 0
    if not 1e5 <= number <= 1e10:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number of parameters such as 500k, 8M or 1.2B")
    return int(number)
