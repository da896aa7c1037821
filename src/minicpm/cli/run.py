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
from minicpm.cli.arguments import add_engine_arguments, add_sampling_arguments, load_llm, sampling_from
from minicpm.errors import FormatError

if TYPE_CHECKING:
    from minicpm.engine.request import Completion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Complete prompts. Each is put into the model's chat template, as the 2024 inference example does; "
        "--raw takes them as they are. One prompt streams its answer; several are answered in batches."
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; without any, stdin is one prompt")
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="one prompt per line, or .jsonl with a 'prompt' or 'messages' each; - reads lines from stdin",
    )
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
    sampling = sampling_from(args)
    jobs = list(_read_jobs(args))
    if args.raw and any(len(job.messages) > 1 for job in jobs):
        raise ValueError("--raw continues one text; records with several 'messages' need the chat template")
    llm = load_llm(args, max_batch=args.batch)
    if args.raw:
        pieces = llm.stream_batch([job.prompt for job in jobs], sampling)
    else:
        pieces = llm.stream_chats([job.messages for job in jobs], sampling)
    if len(jobs) == 1 and not args.json:
        _stream_one(pieces)
        return 0
    for job, completion in zip(jobs, _in_order(pieces)):
        print(_json_line(job, completion) if args.json else _block(job, completion), flush=True)
    return 0


def _read_jobs(args: argparse.Namespace) -> Iterator[Job]:
    if args.file and args.prompts:
        raise ValueError("give prompts as arguments or in --file, not both")
    if args.file:
        yield from _read_file(args.file)
    elif args.prompts:
        yield from (_job(prompt) for prompt in args.prompts)
    else:
        if sys.stdin.isatty():
            print("Type the prompt, then Ctrl-D.", file=sys.stderr)
        yield _job(_decode("stdin", sys.stdin.buffer.read()).removesuffix("\n"))


def _read_file(name: str) -> Iterator[Job]:
    path = Path(name)
    lines = _decode(name, sys.stdin.buffer.read() if name == "-" else path.read_bytes()).split("\n")
    is_jsonl = path.suffix == ".jsonl"
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        count += 1
        yield _record(path, number, line) if is_jsonl else _job(line.strip())
    if count == 0:
        raise FormatError(name, "holds no prompt; write one per line")


def _record(path: Path, number: int, line: str) -> Job:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
            raise ValueError("expected an object with either 'prompt' or 'messages'")
        messages = record.get("messages", [{"role": "user", "content": record.get("prompt")}])
        validate_messages(messages)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"line {number}: {error}") from error
    return Job(messages, record)


def _job(prompt: str) -> Job:
    if not prompt:
        raise ValueError("the prompt is empty; give at least one character")
    return Job([{"role": "user", "content": prompt}], {"prompt": prompt})


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(name, f"not UTF-8 text (byte {error.start})") from error


def _stream_one(pieces: Iterator[Any]) -> None:
    completion = None
    for piece in pieces:
        print(piece.text, end="", flush=True)
        completion = piece.completion or completion
    print()
    if completion is not None and sys.stderr.isatty():
        print(footer(completion), file=sys.stderr)


def _in_order(pieces: Iterator[Any]) -> Iterator[Completion]:
    """Completions in the order of their prompts, each as soon as those before it are out."""
    done: dict[int, Completion] = {}
    following = 0
    for piece in pieces:
        if piece.completion is not None:
            done[piece.index] = piece.completion
        while following in done:
            yield done.pop(following)
            following += 1


def _block(job: Job, completion: Completion) -> str:
    """The printed form of the 2024 inference example."""
    return f"================\n<用户>: {job.prompt}\n<AI>:\n{completion.text}"


def _json_line(job: Job, completion: Completion) -> str:
    answer = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "usage": asdict(completion.usage),
        "timings": asdict(completion.timings),
    }
    return json.dumps({**job.record, **answer}, ensure_ascii=False)


def footer(completion: Completion) -> str:
    """What an answer cost, in one line."""
    timings, usage = completion.timings, completion.usage
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    return (
        f"{usage.completion_tokens} tokens, {timings.decode_tokens_per_s:.1f} tokens/s, "
        f"first after {timings.first_token_s:.2f} s, prompt {usage.prompt_tokens} tokens{cached}"
    )
