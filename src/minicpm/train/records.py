"""Records of a training file: conversations, texts or token ids, each checked where it stands.

A bad record is a `Problem` with its place, never a silent skip. Knows JSON and roles; no tokens, no model.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from minicpm.chat import Message, validate_messages
from minicpm.errors import DataError

MAX_LINE_BYTES = 64 << 20
MAX_LIST_BYTES = 1 << 30  # a .json list is parsed as a whole; longer data come as JSON lines
SHOWN_PROBLEMS = 5
ROLE_NAMES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
KNOWN_FORMS = "messages, conversations, text, input_ids, content/summary, prompt/completion, instruction/output"


@dataclass(frozen=True)
class Conversation:
    """Turns of system, user and assistant; at least one user and, after it, one assistant turn."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Text:
    """A document whose every token is trained."""

    text: str


@dataclass(frozen=True)
class TokenIds:
    """A document that is tokens already; ids[i] is trained where is_trained[i]."""

    ids: tuple[int, ...]
    is_trained: tuple[bool, ...]


Record = Conversation | Text | TokenIds


@dataclass(frozen=True)
class Problem:
    """What is wrong with one record; `place` is "line 7" or "item 7"."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def read_records(path: str | Path) -> Iterator[tuple[str, Record | Problem]]:
    """(place, record or what is wrong with it) of every record of a .jsonl, .jsonl.gz or .json file, in order.

    Blank lines are passed over. Raises DataError for a file that is no such file at all.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_gzip = suffixes[-1:] == [".gz"]
    kind = suffixes[-2:-1] if is_gzip else suffixes[-1:]
    if kind not in ([".jsonl"], [".json"]):
        raise DataError(f"{path}: training data are .jsonl, .jsonl.gz or .json files")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    read = _list_items if kind == [".json"] else _lines
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
            yield from read(path, cast(IO[bytes], file))
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); copy it again") from error


def require_no_problems(path: str | Path, problems: Sequence[Problem]) -> None:
    """DataError that names the first problems of a file, if it has any."""
    if problems:
        shown = "; ".join(map(str, problems[:SHOWN_PROBLEMS]))
        more = f"; and {len(problems) - SHOWN_PROBLEMS:,} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise DataError(
            f"{path}: {shown}{more}. Nothing was trained; mend the file ('minicpm data check' lists all problems)"
        )


def parse_record(raw: object) -> Record:
    """The record of one JSON value; ValueError says what is wrong with it."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"holds a JSON {type(raw).__name__}, expected an object")
    for field in ("messages", "conversations"):
        if field in raw:
            return _conversation(raw[field], field)
    if "input_ids" in raw:
        return _token_ids(raw["input_ids"], raw.get("labels"))
    if "text" in raw:
        return Text(_filled(raw["text"], "text"))
    if "content" in raw and "summary" in raw:  # AdvertiseGen, the 2024 fine-tuning example
        return _question(raw, ("content",), "summary")
    if "prompt" in raw and "completion" in raw:
        return _question(raw, ("prompt",), "completion")
    if "instruction" in raw and "output" in raw:  # alpaca: an optional input follows the instruction
        return _question(raw, ("instruction", "input") if raw.get("input") else ("instruction",), "output")
    raise ValueError(f"has the fields {', '.join(map(str, raw))[:80] or '(none)'}; expected one of {KNOWN_FORMS}")


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Record | Problem]]:
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        place = f"line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{path}: {place} is longer than {MAX_LINE_BYTES:,} bytes; a record is one line of JSON")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield place, _parsed(place, line)


def _parsed(place: str, line: bytes) -> Record | Problem:
    try:
        return parse_record(json.loads(line.decode("utf-8").rstrip()))
    except UnicodeDecodeError as error:
        return Problem(place, f"not UTF-8 text (byte {error.start} is 0x{line[error.start]:02x})")
    except json.JSONDecodeError as error:
        return Problem(place, f"not valid JSON ({error.msg} at character {error.pos + 1})")
    except RecursionError:
        return Problem(place, "not valid JSON (nested too deeply)")
    except ValueError as error:
        return Problem(place, str(error))


def _list_items(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Record | Problem]]:
    data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise DataError(f"{path}: longer than {MAX_LIST_BYTES:,} bytes; write it as JSON lines (.jsonl)")
    try:
        items = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: holds a JSON {type(items).__name__}, expected a list of records")
    for number, item in enumerate(items, start=1):
        place = f"item {number}"
        try:
            yield place, parse_record(item)
        except ValueError as error:
            yield place, Problem(place, str(error))


def _conversation(raw: object, field: str) -> Conversation:
    if not isinstance(raw, list):
        raise ValueError(f"{field} must be a list of turns, got {type(raw).__name__}")
    messages = [_message(turn, f"{field}[{i}]") for i, turn in enumerate(raw)]
    validate_messages(messages)
    for i, message in enumerate(messages):
        if not message["content"].strip():
            raise ValueError(f"{field}[{i}] is an empty {message['role']} turn")
        if message["role"] == "system" and i > 0:
            raise ValueError(f"{field}[{i}] is a system turn; it can only be the first")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError("has no assistant turn, so there is nothing to learn")
    if "user" not in roles[: roles.index("assistant")]:
        raise ValueError("the assistant speaks before any user turn")
    return Conversation(tuple(messages))


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where} must have role and content, got {type(turn).__name__}")
    if "from" in turn and "value" in turn:  # ShareGPT's words
        turn = {"role": turn["from"], "content": turn["value"]}
    if "role" not in turn:
        raise ValueError(f"{where} has no role")
    if "content" not in turn:
        raise ValueError(f"{where} has no content")
    role = turn["role"]
    known = ROLE_NAMES.get(role) if isinstance(role, str) else None
    return cast(Message, {**turn, "role": known or role})


def _question(raw: Mapping[str, Any], asked: tuple[str, ...], answered: str) -> Conversation:
    question = "\n".join(_filled(raw[name], name) for name in asked)
    return Conversation(
        (
            Message(role="user", content=question),
            Message(role="assistant", content=_filled(raw[answered], answered)),
        )
    )


def _filled(text: object, field: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{field} must be a string, got {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{field} is empty")
    return text


def _token_ids(ids: object, labels: object) -> TokenIds:
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise ValueError("input_ids must be a list of whole numbers")
    if len(ids) < 2:
        raise ValueError("input_ids needs at least two tokens")
    if labels is None:
        return TokenIds(tuple(ids), (False, *[True] * (len(ids) - 1)))
    if not isinstance(labels, list) or len(labels) != len(ids):
        raise ValueError("labels must be a list as long as input_ids")
    for i, (token, label) in enumerate(zip(ids, labels)):
        if label != -100 and label != token:
            raise ValueError(
                f"labels[{i}] is {label}, expected -100 or input_ids[{i}] = {token}; labels are not shifted"
            )
    return TokenIds(tuple(ids), tuple(label != -100 for label in labels))
