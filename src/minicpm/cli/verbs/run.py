"""`minicpm run`: complete prompts given as arguments, on stdin, or in a file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm.chat import Message, validate_messages
from minicpm.cli.arguments import add_engine_arguments, add_sampling_arguments, count, given_sampling, load_llm
from minicpm.cli.models import refuse_model_as_prompt
from minicpm.cli.output import footer, is_terminal, say, talk, talk_dim
from minicpm.cli.text_input import note_unread_stdin, read_stdin, read_text, with_piped_text
from minicpm.cli.vote import Vote, vote
from minicpm.errors import FormatError, counted

if TYPE_CHECKING:
    from minicpm.cli.showcase import Showcase
    from minicpm.cli.showcase_page import Entry
    from minicpm.engine.llm import LLM
    from minicpm.engine.request import Completion, Piece
    from minicpm.sampling import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Complete prompts. Each is put into the model's chat template, as in the 2024 inference example; "
        "--raw uses it unchanged. Piped text is appended to each PROMPT. The answer to one prompt is streamed. Several "
        "prompts, and files, are answered in batches and printed in blocks."
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
    parser.add_argument(
        "--showcase", nargs="*", metavar="PATH", help="run the cases in files or folders (default: the package's own)"
    )
    parser.add_argument("-s", "--system", metavar="TEXT", help="system text in front of every prompt")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the text itself")
    parser.add_argument("--batch", type=count, default=8, metavar="N", help="prompts computed at once (default: 8)")
    parser.add_argument(
        "--samples", type=count, default=1, metavar="N", help="answers per prompt, with the seeds SEED to SEED + N - 1"
    )
    parser.add_argument(
        "--vote", action="store_true", help="print only one sample per prompt, with the most frequent final answer"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt")
    parser.add_argument("--html", metavar="FILE", help="also write prompts and answers as one page")
    add_engine_arguments(parser)
    add_sampling_arguments(parser)


@dataclass(frozen=True)
class Job:
    """A prompt to complete, the fields of its JSONL record, and its showcase, if it has one."""

    messages: list[Message]
    record: dict[str, Any]
    showcase: Showcase | None = None

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]


def run(args: argparse.Namespace) -> int:
    _check_combination(args)
    given = given_sampling(args)
    jobs = [_with_system(job, args.system) for job in _read_jobs(args)]
    if args.raw and any(len(job.messages) > 1 for job in jobs):
        raise ValueError("--raw continues one text; records with several 'messages' need the chat template")
    if args.showcase is not None or (args.file and args.file != "-"):
        note_unread_stdin("--showcase" if args.showcase is not None else args.file)
    llm = load_llm(args, max_batch=args.batch)
    sampling = [params for job in jobs for params in _of_samples(job, args.samples, llm.sampling, given)]
    start = time.perf_counter()
    if args.raw:
        pieces = llm.stream_batch([job.prompt for job in jobs for _ in range(args.samples)], sampling)
    else:
        pieces = llm.stream_chats([job.messages for job in jobs for _ in range(args.samples)], sampling)
    if len(sampling) == 1 and not (args.json or args.html or args.file or args.showcase is not None):
        _stream_one(pieces)
        return 0
    answered: list[tuple[Job, list[Completion], Vote | None]] = []
    for job, completions in zip(jobs, _in_groups(_in_order(pieces), args.samples)):
        outcome = vote([completion.text for completion in completions]) if args.vote else None
        answered.append((job, completions, outcome))
        for text in _shown(args, job, completions, outcome):
            say(text + "\n")
    if args.html:
        facts = _facts(args, llm, replace(llm.sampling, **given), answered, time.perf_counter() - start)
        _write_page(Path(args.html).expanduser(), facts, answered)
    return 0


def _check_combination(args: argparse.Namespace) -> None:
    refuse_model_as_prompt("run", args.model, args.prompts)
    if args.jsonl and not args.file:
        raise ValueError("--jsonl needs --file (- is stdin)")
    if args.raw and args.system:
        raise ValueError("--system needs the chat template, which --raw leaves out")
    if sum([bool(args.prompts), bool(args.file), args.showcase is not None]) > 1:
        raise ValueError("give prompts in only one way: as arguments, in --file or by --showcase")
    if args.samples > MAX_SAMPLES:
        raise ValueError(f"--samples: must be at most {MAX_SAMPLES:,}, got {args.samples:,}")
    if args.vote and args.samples == 1:
        raise ValueError("--vote compares the samples of a prompt; give --samples 2 or more")
    if args.samples > 1 and args.temperature == 0:
        raise ValueError(_SAME_SAMPLES)
    if args.html is not None:
        from minicpm.cli.showcase_page import check_destination

        if args.html.strip() in ("", "-") or args.html.endswith("/"):
            raise ValueError(f"--html needs the name of a file, such as answers.html, got {args.html!r:.80}")
        check_destination(Path(args.html).expanduser())


MAX_SAMPLES = 4096
_SAME_SAMPLES = "with temperature 0 all --samples are the same; give a higher --temperature"


def _of_samples(job: Job, count: int, advised: SamplingParams, given: dict[str, Any]) -> list[SamplingParams]:
    """Sampling parameters of each sample of a job. Flags override the record's settings, which override the model's."""
    params = replace(advised, **{**(job.showcase.sampling if job.showcase else {}), **given})
    if count == 1:
        return [params]
    if params.temperature == 0:
        raise ValueError(_SAME_SAMPLES)
    seed = int.from_bytes(os.urandom(4)) if params.seed is None else params.seed
    return [replace(params, seed=seed + number) for number in range(count)]


def _with_system(job: Job, system: str | None) -> Job:
    if not system:
        return job
    if job.messages[0]["role"] == "system":
        raise ValueError("a record has its own system message; leave --system out")
    return replace(job, messages=[{"role": "system", "content": system}, *job.messages])


def _read_jobs(args: argparse.Namespace) -> Iterator[Job]:
    if args.showcase is not None:
        from minicpm.cli.showcase import read_showcases

        for case in read_showcases(args.showcase):
            yield Job(case.messages, {"title": case.title, "prompt": case.messages[-1]["content"]}, case)
    elif args.file:
        yield from _read_file(args.file, is_jsonl=args.jsonl or args.file.endswith(".jsonl"))
    elif args.prompts:
        if not all(args.prompts):
            raise ValueError("the prompt is empty; give at least one character")
        yield from (_job(prompt) for prompt in with_piped_text(args.prompts))
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
    """Completions in the order of their prompts, each as soon as all earlier ones are complete."""
    done: dict[int, Completion] = {}
    following = 0
    for piece in pieces:
        if piece.completion is not None:
            done[piece.index] = piece.completion
        while following in done:
            yield done.pop(following)
            following += 1


def _in_groups(completions: Iterator[Completion], size: int) -> Iterator[list[Completion]]:
    """Groups of `size` completions: the samples of one prompt."""
    group: list[Completion] = []
    for completion in completions:
        group.append(completion)
        if len(group) == size:
            yield group
            group = []


def _shown(args: argparse.Namespace, job: Job, completions: list[Completion], outcome: Vote | None) -> Iterator[str]:
    """The output for a job's samples: each of them, or the winner of the vote."""
    block = _raw_block if args.raw else _chat_block
    if outcome is None:
        for completion in completions:
            yield _json_line(job, completion) if args.json else block(job, completion)
    elif args.json:
        yield _json_line(job, completions[outcome.winner], vote={"answer": outcome.answer, "counts": outcome.counts})
    else:
        yield f"{block(job, completions[outcome.winner])}\n[{outcome}]"


def _chat_block(job: Job, completion: Completion) -> str:
    """The output format of the 2024 inference example."""
    return f"================\n<用户>: {job.prompt}\n<AI>:\n{completion.text}"


def _raw_block(job: Job, completion: Completion) -> str:
    return f"================\n{job.prompt}{completion.text}"


def _json_line(job: Job, completion: Completion, **more: Any) -> str:
    return json.dumps({**job.record, **answer_fields(completion), **more}, ensure_ascii=False)


def answer_fields(completion: Completion) -> dict[str, Any]:
    """The fields of an answer for --json."""
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "usage": asdict(completion.usage),
        "timings": asdict(completion.timings),
    }


def _facts(
    args: argparse.Namespace,
    llm: LLM,
    sampling: SamplingParams,
    answered: Sequence[tuple[Job, list[Completion], Vote | None]],
    total_s: float,
) -> dict[str, str]:
    """The facts about the run below a page's title."""
    from minicpm import __version__
    from minicpm.cli.arguments import BUILT_IN

    tokens = sum(completion.usage.completion_tokens for _, completions, _ in answered for completion in completions)
    return {
        "model": args.model or BUILT_IN,
        "engine": f"minicpm {__version__}, {llm.backend.name}, {counted(args.batch, 'prompt')} at once",
        "sampling": _described(sampling) + (f"; {args.samples} samples per prompt" if args.samples > 1 else ""),
        "seed": "a different one for every prompt, below its answer" if sampling.seed is None else str(sampling.seed),
        "speed": f"{counted(tokens, 'token')} in {total_s:.1f} s, {tokens / total_s:.1f} tokens/s together",
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    }


def _described(sampling: SamplingParams) -> str:
    """Temperature, top_p and all other options that are set: 'temperature 0.8, top_p 0.8, max_tokens 64'."""
    from minicpm.sampling import SamplingParams

    neutral = SamplingParams(repetition_penalty=1)
    told = [f"temperature {sampling.temperature}", f"top_p {sampling.top_p}"]
    for name in SamplingParams.__dataclass_fields__:
        value = getattr(sampling, name)
        if name not in ("temperature", "top_p", "seed") and value != getattr(neutral, name):
            told.append(f"{name} {value}")
    return ", ".join(told)


def _write_page(
    file: Path, facts: dict[str, str], answered: Sequence[tuple[Job, list[Completion], Vote | None]]
) -> None:
    from minicpm.cli.showcase_page import check_destination, page
    from minicpm.files import write_text

    check_destination(file)  # again: the answers may have taken hours
    write_text(
        file,
        page(
            "MiniCPM show cases" if answered[0][0].showcase else "Prompts and answers",
            facts,
            [_entry(*one) for one in answered],
        ),
    )
    talk(f"Written: {file}")


def _entry(job: Job, completions: list[Completion], outcome: Vote | None) -> Entry:
    from minicpm.cli.showcase_page import Entry

    case = job.showcase
    own = ", ".join(f"{name} {value}" for name, value in case.sampling.items()) if case else ""
    named = (case.title, case.category, case.language) if case else ("", "", "")
    return Entry(*named, job.messages, completions, outcome, own)
