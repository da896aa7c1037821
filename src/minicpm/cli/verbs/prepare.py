"""`minicpm prepare --data FILE ... --out FOLDER`: the tokenizer and the shape that `pretrain` starts from."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from minicpm.cli.arguments import whole
from minicpm.cli.output import talk
from minicpm.train.preparation import prepare


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
    data = [Path(name).expanduser() for name in args.data]
    shape = prepare(data, out, parameters=args.parameters, vocab_size=args.vocab_size, context=args.context)
    facts = {
        "folder": str(out),
        "vocab_size": shape.vocab_size,
        "parameters": shape.num_parameters(),
        "layers": shape.num_hidden_layers,
        "hidden_size": shape.hidden_size,
    }
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        talk(
            f"{out}: a tokenizer of {shape.vocab_size:,} pieces, and a model of {shape.num_parameters():,} parameters "
            f"in {shape.num_hidden_layers} layers of {shape.hidden_size}"
        )
    return 0


def _parameters(text: str) -> int:
    """An argument's type: a number of parameters, written like 8M, 1.2B or 500000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower())
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]] if match else 0
    if not 1e5 <= number <= 1e10:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number of parameters such as 500k, 8M or 1.2B")
    return int(number)
