"""`minicpm data check FILE`: lists every bad record of a training file by its line, and counts the good ones."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from minicpm.chat import STOP_STRINGS, contains_markers, template_for
from minicpm.cli.arguments import add_model_argument, count, whole
from minicpm.cli.models import resolve_model
from minicpm.cli.output import is_terminal, printable, talk
from minicpm.errors import DataError, ModelError, TrainingError, counted
from minicpm.formats.checkpoint import FORMS, open_checkpoint, recognise
from minicpm.formats.config import CONFIG_FILE, DecoderConfig, read_config_json
from minicpm.formats.folder import ModelFolder
from minicpm.formats.gguf import is_gguf
from minicpm.tokenizer import Tokenizer
from minicpm.train.batches import Share
from minicpm.train.options import TRAIN_ON
from minicpm.train.records import Conversation, Problem, Record, Text, read_records

if TYPE_CHECKING:
    from minicpm.train.rendering import Document, Renderer

KINDS = {Conversation: "conversations", Text: "texts"}
MAX_LISTED = 100  # problems printed one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check training data: list every bad record by its line and count the good ones. With -m it also counts tokens "
        "and shows the first records, with trained tokens plain and the others in [brackets] or dimmed."
    )
    parser.add_argument("action", choices=["check"], help="what to do")
    parser.add_argument("file", metavar="FILE", help="a .jsonl, .jsonl.gz or .json file")
    add_model_argument(parser)
    parser.add_argument("--train-on", choices=TRAIN_ON, default="assistant", help="(default: assistant)")
    parser.add_argument("--length", type=count, default=512, metavar="N", help="tokens per row (default: 512)")
    parser.add_argument("--show", type=whole(0), default=1, metavar="N", help="records to show, with -m (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    renderer = _renderer(args) if args.model else None
    file = Share.parse(args.file).path  # FILE:15 and FILE:40%, as training takes them
    problems: list[Problem] = []
    kinds: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    lengths: list[int] = []
    trained_tokens = usable = 0
    for place, record in read_records(file):
        if isinstance(record, Problem):
            problems.append(record)
            continue
        document = None
        if renderer is not None:
            try:
                document = renderer.render(record)
            except ValueError as error:
                problems.append(Problem(place, str(error)))
                continue
            lengths.append(len(document.ids))
            trained_tokens += sum(document.is_trained)
            usable += any(document.is_trained[: args.length])
        kinds[KINDS.get(type(record), "token lists")] += 1
        notes.update(_notes(record))
        if document is not None and renderer is not None:
            notes.update(_token_notes(record, document, renderer, args.length))
        if document is not None and renderer is not None and len(lengths) <= args.show and not args.json:
            _show(document, renderer)
    if lengths and not usable:
        problems.append(Problem("every record", f"no trained token among the first {args.length}; raise --length"))
    if not (kinds or problems or args.json):
        raise DataError(f"{args.file}: holds no records, so there is nothing to train on")
    summary: dict[str, Any] = {"file": args.file, "records": kinds.total(), "kinds": dict(kinds), "notes": dict(notes)}
    if lengths:
        summary |= {"tokens": sum(lengths), "trained_tokens": trained_tokens, "longest": max(lengths)}
    if args.json:
        listed = [{"place": problem.place, "problem": problem.text} for problem in problems]
        print(json.dumps({**summary, "problems": listed}, indent=2, ensure_ascii=False))
    else:
        _print(summary, problems)
    return 1 if problems or not kinds else 0


def _renderer(args: argparse.Namespace) -> Renderer:
    from minicpm.train.rendering import Renderer

    model = resolve_model(args, args.model)
    if is_gguf(model) or not (model / CONFIG_FILE).exists():  # it may hold a GGUF file, or explain what it is
        with open_checkpoint(model, allow_quantized=True) as checkpoint:
            config, tokenizer, template = checkpoint.config, checkpoint.tokenizer(), checkpoint.chat_template()
    else:  # the weights need not be there
        config = _config(ModelFolder(model))
        tokenizer, template = Tokenizer.from_folder(model), template_for(model)
    if args.length > config.max_position_embeddings:
        raise TrainingError(
            f"rows of {args.length} tokens are longer than the model's context of {config.max_position_embeddings}; "
            f"pass --length {config.max_position_embeddings} or less"
        )
    return Renderer(tokenizer, template, config.vocab_size, args.train_on)


def _config(folder: ModelFolder) -> DecoderConfig:
    raw = read_config_json(folder.file(CONFIG_FILE))
    try:
        return FORMS[recognise(raw)].read_config(raw)
    except ModelError as error:
        raise ModelError(f"{folder.path / CONFIG_FILE}: {error}") from error


def _notes(record: Record) -> list[str]:
    """Warnings about what is allowed but rarely intended."""
    notes = [f"records with the field {name}, which is not used" for name in record.ignored]
    if isinstance(record, Conversation) and 0 in record.weights:
        notes.append("conversations with an answer of weight 0, which is read but not trained")
    if isinstance(record, Conversation) and any(contains_markers(message["content"]) for message in record.messages):
        notes.append(f"records with a turn marker ({' or '.join(STOP_STRINGS)}) in their text")
    if isinstance(record, Conversation) and record.messages[-1]["role"] != "assistant":
        notes.append("conversations that end with a question, which is not trained")
    return notes


def _token_notes(record: Record, document: Document, renderer: Renderer, length: int) -> list[str]:
    """More such warnings, which need the record's tokens."""
    notes = []
    if not any(document.is_trained[:length]):
        notes.append(f"records without a trained token among their first {length}, which are never trained")
    elif not document.is_text and len(document.ids) > length:
        notes.append(f"conversations longer than {length} tokens, which lose their end")
    turns = record.messages if isinstance(record, Conversation) else ()
    ends = max(1, sum(message["role"] == "assistant" for message in turns))
    if isinstance(record, Conversation | Text) and document.ids.count(renderer.eos_token_id) > ends:
        notes.append("records with the end token in their text, which the model reads as an end")
    return notes


def _show(document: Document, renderer: Renderer) -> None:
    """Print one record with its trained and untrained tokens."""
    is_coloured = is_terminal(sys.stdout) and "NO_COLOR" not in os.environ
    before, after = ("\x1b[2m", "\x1b[0m") if is_coloured else ("[", "]")
    parts: list[str] = []
    start = 0
    for i in range(1, len(document.ids) + 1):
        if i == len(document.ids) or document.is_trained[i] != document.is_trained[start]:
            ids = document.ids[start:i]
            text = printable(renderer.tokenizer.decode(ids, skip_special_tokens=False, continues=True))
            parts.append(text if document.is_trained[start] else f"{before}{text}{after}")
            start = i
    print("".join(parts), end="\n\n")


def _print(summary: dict[str, Any], problems: list[Problem]) -> None:
    for problem in problems[:MAX_LISTED]:
        print(printable(f"{summary['file']}: {problem}"))
    if len(problems) > MAX_LISTED:
        print(f"{summary['file']}: and {len(problems) - MAX_LISTED:,} more (--json lists all)")
    counts = summary["kinds"].items()
    kinds = ", ".join(counted(count, kind.removesuffix("s")) for kind, count in counts) or "no good records"
    tokens = ""
    if "tokens" in summary:
        tokens = (
            f"; {counted(summary['tokens'], 'token')}, {summary['trained_tokens']:,} of them trained, "
            f"the longest record has {summary['longest']:,}"
        )
    talk(f"{kinds}{tokens}")
    for note, number in summary["notes"].items():
        talk(f"{number:,} {_of_one(note) if number == 1 else note}")
    if problems:
        talk(f"{counted(len(problems), 'bad record')}; training refuses a file with bad records")


def _of_one(note: str) -> str:
    """A note about several records as one about a single record."""
    first, rest = note.split(" ", 1)
    for plural, singular in (("that end ", "that ends "), ("lose their", "loses its"), ("their text", "its text")):
        rest = rest.replace(plural, singular)
    return f"{first.removesuffix('s')} {rest}"
