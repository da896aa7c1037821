"""Show cases: prompts with a title, a category and a language, as JSON Lines (assets/showcases)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm.chat import Message, validate_messages
from minicpm.cli.text_input import read_text
from minicpm.errors import FormatError, ModelError
from minicpm.sampling import SamplingParams

# The package's own; examples/showcases of the repository is a link to them.
FOLDER = Path(__file__).resolve().parents[1] / "assets" / "showcases"
FIELDS = ("title", "category", "language", "prompt", "messages", "sampling")


@dataclass(frozen=True)
class Showcase:
    """A prompt and what a page says about it; `sampling` are fields of SamplingParams."""

    title: str
    category: str
    language: str  # a tag of HTML's lang, such as en or zh
    messages: list[Message]
    sampling: dict[str, Any] = field(default_factory=dict)


def read_showcases(paths: list[str]) -> list[Showcase]:
    """The cases of files and of all .jsonl files of folders, in that order; the package's own for an empty list.

    Raises FormatError naming file and line, ModelError where there are none.
    """
    files = [file for path in paths or [str(FOLDER)] for file in _files(Path(path))]
    return [case for file in files for case in _read(file)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise ModelError(f"{path} holds no .jsonl file; name files of show cases, or their folder")
    return files


def _read(path: Path) -> list[Showcase]:
    cases = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                cases.append(_case(json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise FormatError(path, f"line {number}: {error}") from error
    if not cases:
        raise FormatError(path, "holds no show case; write one JSON object a line")
    return cases


def _case(record: object) -> Showcase:
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise ValueError("expected an object with either 'prompt' or 'messages'")
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r:.40}; there are: {', '.join(FIELDS)}")
    for name in ("title", "category", "language"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise ValueError(f"{name} must be a text, got {record.get(name)!r:.40}")
    messages = record.get("messages", [{"role": "user", "content": record.get("prompt")}])
    validate_messages(messages)
    sampling = record.get("sampling", {})
    if not isinstance(sampling, dict):
        raise ValueError(f"sampling must be an object, got {sampling!r:.40}")
    SamplingParams(**sampling)
    return Showcase(record["title"], record["category"], record["language"], messages, sampling)
