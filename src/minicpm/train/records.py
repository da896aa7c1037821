"""Records of a training file: conversations, texts or token ids, each checked where it stands.

A bad record is a `Problem` with its place, never a silent skip, and a record names the fields that were not used. Knows
JSON and roles; no tokens, no model.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

from minicpm.chat import Message, validate_messages
from minicpm.errors import DataError
from minicpm.files import require_no_pointer

MAX_LINE_BYTES = 64 << 20
MAX_LIST_BYTES = 1 << 30  # a .json list is parsed as a whole; longer data come as JSON lines
SHOWN_PROBLEMS = 5
TURN_FIELDS = ("role", "content", "weight")
# Lists inside one record, as opposed to a list of records.
_LISTS = ("messages", "conversations", "input_ids", "labels", "attention_mask", "history", "tools")
ROLE_NAMES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# Fields whose content changes what should be learned, and which no record here can express.
REFUSED_FIELDS = {
    "tools": "calls of tools are not trained; remove the field, or write the tools into the system text",
    "functions": "calls of functions are not trained; remove the field, or write the functions into the system text",
    "images": "this version trains texts only",
    "videos": "this version trains texts only",
    "audios": "this version trains texts only",
}
EMPTY: tuple[object, ...] = (None, "", "[]", "{}", [], {})
KNOWN_FORMS = "messages, conversations, text, input_ids, content/summary, prompt/completion, instruction/output"


@dataclass(frozen=True)
class Conversation:
    """Turns of system, user and assistant; at least one user and, after it, one assistant turn.

    `weights` has 0 for each turn that is not trained, 1 for the others; () is 1 for all. `ignored` are fields that were
    not used.
    """

    messages: tuple[Message, ...]
    weights: tuple[int, ...] = ()
    ignored: tuple[str, ...] = field(default=(), compare=False)

    def is_trained(self, turn: int) -> bool:
        """Whether an assistant's turn is trained."""
        return not self.weights or self.weights[turn] == 1


@dataclass(frozen=True)
class Text:
    """A document whose every token is trained."""

    text: str
    ignored: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class TokenIds:
    """A document that is tokens already; ids[i] is trained where is_trained[i]."""

    ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    ignored: tuple[str, ...] = field(default=(), compare=False)


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

    Either suffix may hold a list of records or a record per line; the content decides. Blank lines are passed over.
    Raises DataError for a file that is no such file at all, FormatError for a pointer of Git LFS.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_gzip = suffixes[-1:] == [".gz"]
    kind = suffixes[-2:-1] if is_gzip else suffixes[-1:]
    if kind not in ([".jsonl"], [".json"]):
        raise DataError(f"{path}: training data are .jsonl, .jsonl.gz or .json files")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    require_no_pointer(path)
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as opened:
            file = cast(IO[bytes], opened)
            read = _lines if _holds_lines(file) else _list_items
            file.seek(0)
            yield from read(path, file)
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
    filled = {str(name): value for name, value in raw.items() if value not in EMPTY}
    for name, problem in REFUSED_FIELDS.items():
        if name in filled:
            raise ValueError(f"has the field {name}, but {problem}")
    weight = raw.get("weight")
    if weight not in (None, 1):
        raise ValueError(
            f"weight is {weight!r:.40}, but records have no weights; use FILE:N for the whole file instead"
        )
    record, used = _form_of(raw)
    return replace(record, ignored=(*record.ignored, *(name for name in filled if name not in {*used, "weight"})))


def _form_of(raw: Mapping[str, Any]) -> tuple[Record, tuple[str, ...]]:
    """The record, and the names of the fields that it was made of."""
    for name in ("messages", "conversations"):
        if name in raw:
            return _conversation(raw[name], name, _system(raw)), (name, "system")
    if "input_ids" in raw:
        _require_no_padding(raw.get("attention_mask"))
        return _token_ids(raw["input_ids"], raw.get("labels")), ("input_ids", "labels", "attention_mask")
    if "text" in raw:
        return Text(_filled(raw["text"], "text")), ("text",)
    if "content" in raw and "summary" in raw:  # AdvertiseGen, the 2024 fine-tuning example
        return _question(raw, ("content",), "summary")
    if "prompt" in raw and "completion" in raw:
        return _question(raw, ("prompt",), "completion")
    if "instruction" in raw and "output" in raw:  # alpaca: an optional input follows the instruction
        return _question(raw, ("instruction", "input") if raw.get("input") else ("instruction",), "output")
    raise ValueError(f"has the fields {', '.join(map(str, raw))[:80] or '(none)'}; expected one of {KNOWN_FORMS}")


def _holds_lines(file: IO[bytes]) -> bool:
    """Whether a file has a record per line; otherwise it is one JSON value.

    A file is one value if it begins with a bracket and its first line is not a value of its own with others below it,
    or if its first line is an opened object that a later line closes.
    """
    line = file.readline(MAX_LINE_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
    while line and not line.strip():
        line = file.readline(MAX_LINE_BYTES + 1)
    first = line.strip()
    if first.startswith(b"["):
        return _is_json(first) and any(later.strip() for later in file)
    if first.startswith(b"{") and len(line) <= MAX_LINE_BYTES and not _is_json(first):
        return not _is_json(first + file.read(MAX_LINE_BYTES))
    return True


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


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
    if isinstance(items, dict) and not any(
        isinstance(value, list) and name not in _LISTS for name, value in items.items()
    ):
        items = [items]  # one record over several lines
    if not isinstance(items, list):
        inside = next((name for name, value in items.items() if isinstance(value, list)), None) if items else None
        advice = "" if inside is None else f"; if they are in its field {inside!r:.40}, write that list alone"
        raise DataError(f"{path}: holds one JSON {type(items).__name__}, expected a list of records{advice}")
    for number, item in enumerate(items, start=1):
        place = f"item {number}"
        try:
            yield place, parse_record(item)
        except ValueError as error:
            yield place, Problem(place, str(error))


def _conversation(raw: object, name: str, system: str | None) -> Conversation:
    """A conversation of the field `name`; `system` is a system text that stands beside its turns."""
    if not isinstance(raw, list):
        raise ValueError(f"{name} must be a list of turns, got {type(raw).__name__}")
    messages = [_message(turn, f"{name}[{i}]") for i, turn in enumerate(raw)]
    weights = [_weight(turn, f"{name}[{i}]") for i, turn in enumerate(raw)]
    validate_messages(messages)
    for i, message in enumerate(messages):
        if not message["content"].strip():
            raise ValueError(f"{name}[{i}] is an empty {message['role']} turn")
        if message["role"] == "system" and i > 0:
            raise ValueError(f"{name}[{i}] is a system turn; it can only be the first")
    if system is not None and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise ValueError(f"system differs from the system turn {name}[0]; a conversation has one system text")
    elif system is not None:
        messages, weights = [Message(role="system", content=system), *messages], [1, *weights]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError("has no assistant turn, so there is nothing to learn")
    if "user" not in roles[: roles.index("assistant")]:
        raise ValueError("the assistant speaks before any user turn")
    if not any(weight for role, weight in zip(roles, weights) if role == "assistant"):
        raise ValueError("every assistant turn has the weight 0, so there is nothing to learn")
    ignored = {f"{name}[].{key}": None for turn in raw for key in _unused_in_turn(turn)}
    return Conversation(tuple(messages), tuple(weights) if 0 in weights else (), tuple(ignored))


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where} must have role and content, got {type(turn).__name__}")
    if "from" in turn and "value" in turn:  # ShareGPT's words
        turn = {"role": turn["from"], "content": turn["value"]}
    else:
        turn = {key: value for key, value in turn.items() if key in TURN_FIELDS or value is not None}
    if "role" not in turn:
        raise ValueError(f"{where} has no role")
    if "content" not in turn:
        raise ValueError(f"{where} has no content")
    role = turn["role"]
    known = ROLE_NAMES.get(role) if isinstance(role, str) else None
    return cast(Message, {**{key: value for key, value in turn.items() if key != "weight"}, "role": known or role})


def _weight(turn: Mapping[str, Any], where: str) -> int:
    """OpenAI's and axolotl's weight of a turn: 0 keeps an answer as context without training it."""
    weight = turn.get("weight")
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"{where}.weight is {weight!r:.40}, expected 0 or 1")
    return int(weight)


def _unused_in_turn(turn: Mapping[str, Any]) -> list[str]:
    """Fields of a ShareGPT turn that are not used; a turn of role and content may not have others."""
    if "from" not in turn or "value" not in turn:
        return []
    return [
        str(key) for key, value in turn.items() if key not in {*TURN_FIELDS, "from", "value"} and value not in EMPTY
    ]


def _question(raw: Mapping[str, Any], asked: tuple[str, ...], answered: str) -> tuple[Conversation, tuple[str, ...]]:
    """A question and its answer, with LLaMA-Factory's system text in front and history: earlier questions and answers.

    The answers of the history are trained as well, as LLaMA-Factory does.
    """
    system = _system(raw)
    messages = [] if system is None else [Message(role="system", content=system)]
    messages += _history(raw.get("history"))
    messages += [
        Message(role="user", content="\n".join(_filled(raw[name], name) for name in asked)),
        Message(role="assistant", content=_filled(raw[answered], answered)),
    ]
    return Conversation(tuple(messages)), (*asked, answered, "system", "history")


def _system(raw: Mapping[str, Any]) -> str | None:
    system = raw.get("system")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"system must be a string, got {type(system).__name__}")
    return system if system and system.strip() else None


def _history(history: object) -> list[Message]:
    if history in EMPTY:
        return []
    if not isinstance(history, list):
        raise ValueError(f"history must be a list of [question, answer], got {type(history).__name__}")
    messages = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"history[{i}] must be [question, answer], got {pair!r:.40}")
        for j, role in enumerate(("user", "assistant")):
            messages.append(Message(role=role, content=_filled(pair[j], f"history[{i}][{j}]")))
    return messages


def _filled(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string, got {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


def _require_no_padding(mask: object) -> None:
    if mask not in EMPTY and (not isinstance(mask, list) or any(value != 1 for value in mask)):
        raise ValueError("attention_mask hides some of input_ids; leave the padding out")


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
