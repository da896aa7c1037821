"""`minicpm convert SRC DST --to FORMAT`: writes the same model in another format."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from minicpm.cli.arguments import add_offline_argument, size
from minicpm.cli.models import resolve_model
from minicpm.cli.progress import TerminalProgress, format_bytes
from minicpm.errors import counted
from minicpm.export.convert import ROUNDOFF, TARGETS, Conversion, convert
from minicpm.export.gguf import write_gguf
from minicpm.formats.hf import DEFAULT_SHARD_BYTES

DTYPE_WORDS = {
    "float32": "float32",
    "fp32": "float32",
    "f32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "f16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "q8_0": "q8_0",
    "q4_0": "q4_0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=_place, help="a model's folder or .gguf file, or a name to look up and download"
    )
    parser.add_argument("destination", metavar="DST", type=_place, help="the new folder; for gguf the new file")
    parser.add_argument(
        "--to",
        required=True,
        choices=(*TARGETS, "gguf"),
        metavar="FORMAT",
        help="hf (transformers), granite (the same weights for tools that don't know MiniCPM), "
        "llama (scales multiplied into the weights), vllmcpm (the 2024 fork of vLLM) or gguf (llama.cpp; one file)",
    )
    parser.add_argument(
        "--dtype",
        type=_dtype,
        metavar="DTYPE",
        help="float32, float16 or bfloat16; for gguf also q8_0 or q4_0 (default: unchanged; quantized weights become "
        "float32, in gguf they stay)",
    )
    parser.add_argument(
        "--max-shard-size",
        type=size,
        metavar="SIZE",
        help="largest file of weights, e.g. 500MB or 2GiB (default: 5GB)",
    )
    parser.add_argument("--bin", action="store_true", help="write pytorch_model.bin instead of safetensors")
    parser.add_argument("--force", action="store_true", help="replace DST if it is a model")
    add_offline_argument(parser)
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def run(args: argparse.Namespace) -> int:
    progress = TerminalProgress()
    if args.to == "gguf" and (args.bin or args.max_shard_size):
        raise ValueError("GGUF is a single file; leave --bin and --max-shard-size out")
    source = resolve_model(args, args.source)
    destination = Path(args.destination).expanduser()
    if args.to == "gguf":
        name = Path(args.source).resolve().name
        done = write_gguf(source, destination, dtype=args.dtype, name=name, overwrite=args.force, progress=progress)
    else:
        done = convert(
            source,
            destination,
            to=args.to,
            dtype=args.dtype,
            max_shard_bytes=args.max_shard_size or DEFAULT_SHARD_BYTES,
            as_bin=args.bin,
            overwrite=args.force,
            progress=progress,
        )
    if args.json:
        print(json.dumps(_record(done), indent=2))
    else:
        summary = f"{counted(done.tensors, 'tensor')} in {done.dtype}, {format_bytes(done.nbytes)}, written and checked"
        print(f"{done.destination}: {done.source_format} -> {done.format}, {summary}", file=sys.stderr)
    if done.dequantized:
        print(_loss(done), file=sys.stderr)
    return 0


def _loss(done: Conversion) -> str:
    """What a conversion from quantized weights lost."""
    exact = "the same numbers as stored"
    rounded = {
        "float32": exact,
        "F32": exact,
        "float16": f"each rounded once, by at most 1/{1 / ROUNDOFF['float16']:.0f} of it",
        "bfloat16": f"each rounded once, by at most 1/{1 / ROUNDOFF['bfloat16']:.0f} of it",
    }
    lost = rounded.get({"F16": "float16", "BF16": "bfloat16"}.get(done.dtype, done.dtype), "rounded a second time")
    return f"{done.dequantized} weights became {done.dtype}: {lost}; what quantization lost before is not restored"


def _record(done: Conversion) -> dict[str, object]:
    return {
        "source": str(done.source),
        "destination": str(done.destination),
        "source_format": done.source_format,
        "format": done.format,
        "dequantized": done.dequantized,
        "dtype": done.dtype,
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "files": list(done.files),
    }


def _place(text: str) -> str:
    if not text.strip() or text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder; convert reads and writes folders, not streams")
    return text


def _dtype(text: str) -> str:
    if text not in DTYPE_WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of float32, float16, bfloat16, q8_0, q4_0")
    return DTYPE_WORDS[text]
