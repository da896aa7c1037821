"""`minicpm run`: complete prompts given as arguments, on stdin, or in a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm.chat import Message, validate_messages
from minicpm.cli.arguments import add_engine_arguments, add_sampling_arguments, given_sampling, load_llm
from minicpm.cli.output import footer, is_terminal, say, talk, talk_dim
from minicpm.cli.text_input import read_stdin, read_text
from minicpm.errors import FormatError

if TYPE_CHECKING:
    from minicpm.engine.request import Completion, Piece


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Complete prompts. Each is put into the model's chat template, as the 2024 inference example does; "
        "--raw takes them as they are. One prompt streams its answer; several, and files, are answered in batches "
        "and printed in blocks."
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; without any, stdin is one prompt")
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="one prompt per line (.jsonl: see --jsonl); - reads them from stdin"
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="lines are JSON objects with 'prompt' or 'messages'; the default for .jsonl",
    )
    parser.add_argument("-s", "--system", metavar="TEXT", help="system text in front of every prompt")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the text itself")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="prompts computed at once (default: 8)")
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt")
    add_engine_arguments(parser)
    add_sampling_arguments(parser)


@dataclass(frozen=True)
class Job:
    """A prompt to complete, and the fields its JSONL record brought along."""

    messages: list[Message]
    record: dict[str, Any]

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]


def run(args: argparse.Namespace) -> int:
    if args.jsonl and not args.file:
        raise ValueError("--jsonl tells how to read --file; give one (- is stdin)")
    if args.raw and args.system:
        raise ValueError("--system needs the chat template, which --raw leaves out")
    sampling = given_sampling(args)
    jobs = [_with_system(job, args.system) for job in _read_jobs(args)]
    if args.raw and any(len(job.messages) > 1 for job in jobs):
        raise ValueError("--raw continues one text; records with several 'messages' need the chat template")
    llm = load_llm(args, max_batch=args.batch)
    if args.raw:
        pieces = llm.stream_batch([job.prompt for job in jobs], **sampling)
    else:
        pieces = llm.stream_chats([job.messages for job in jobs], **sampling)
    if len(jobs) == 1 and not args.json and not args.file:
        _stream_one(pieces)
        return 0
    block = _raw_block if args.raw else _chat_block
    for job, completion in zip(jobs, _in_order(pieces)):
        say((_json_line(job, completion) if args.json else block(job, completion)) + "\n")
    return 0


def _with_system(job: Job, system: str | None) -> Job:
    if not system:
        return job
    if job.messages[0]["role"] == "system":
        raise ValueError("a record brings its own system message; leave --system out")
    return Job([{"role": "system", "content": system}, *job.messages], job.record)


def _read_jobs(args: argparse.Namespace) -> Iterator[Job]:
    if args.file and args.prompts:
        raise ValueError("give prompts as arguments or in --file, not both")
    if args.file:
        yield from _read_file(args.file, is_jsonl=args.jsonl or args.file.endswith(".jsonl"))
    elif args.prompts:
        yield from (_job(prompt) for prompt in args.prompts)
    else:
        if is_terminal(sys.stdin):
            talk("Type the prompt, then Ctrl-D.")
        yield _job(read_stdin().removesuffix("\n"))


def _read_file(name: str, *, is_jsonl: bool) -> Iterator[Job]:
    lines = (read_stdin() if name == "-" else read_text(Path(name))).split("\n")
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        count += 1
        yield _record(name, number, line) if is_jsonl else _job(line.strip())
    if count == 0:
        raise FormatError(name, "holds no prompt; write one per line")


def _record(name: str, number: int, line: str) -> Job:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
            raise ValueError("expected an object with either 'prompt' or 'messages'")
        messages = record.get("messages", [{"role": "user", "content": record.get("prompt")}])
        validate_messages(messages)
    except (ValueError, RecursionError) as error:
        raise FormatError(name, f"line {number}: {error}") from error
    return Job(messages, record)


def _job(prompt: str) -> Job:
    if not prompt:
        raise ValueError("the prompt is empty; give at least one character")
    return Job([{"role": "user", "content": prompt}], {"prompt": prompt})


def _stream_one(pieces: Iterator[Piece]) -> None:
    completion = None
    for piece in pieces:
        say(piece.text)
        completion = piece.completion or completion
    say("\n")
    if completion is not None and is_terminal(sys.stderr):
        talk_dim(footer(completion))


def _in_order(pieces: Iterator[Piece]) -> Iterator[Completion]:
    """Completions in the order of their prompts, each as soon as those before it are out."""
    done: dict[int, Completion] = {}
    following = 0
    for piece in pieces:
        if piece.completion is not None:
            done[piece.index] = piece.completion
        while following in done:
            yield done.pop(following)
            following += 1


def _chat_block(job: Job, completion: Completion) -> str:
    """The printed form of the 2024 inference example."""
    return f"================\n<用户>: {job.prompt}\n<AI>:\n{completion.text}"


def _raw_block(job: Job, completion: Completion) -> str:
    return f"================\n{job.prompt}{completion.text}"


def _json_line(job: Job, completion: Completion) -> str:
    return json.dumps({**job.record, **answer_fields(completion)}, ensure_ascii=False)


def answer_fields(completion: Completion) -> dict[str, Any]:
    """What --json prints of an answer."""
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "usage": asdict(completion.usage),
        "timings": asdict(completion.timings),
    }
