"""The errors that a user of the package may want to catch.

A message says what was wrong, what was expected and what to do next. The command line prints it and exits with code 1.
A bad argument raises a plain ValueError, for which the command line exits with code 2.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MiniCPMError(Exception):
    """Base of all errors this package raises on purpose."""


class ModelError(MiniCPMError):
    """A model cannot be used: unknown family, impossible configuration, not enough memory."""


class FormatError(MiniCPMError):
    """A file is damaged, hostile or not of the type that its name claims. `path` is the file."""

    def __init__(self, path: str | Path, problem: str):
        self.path = Path(path)
        super().__init__(f"{path}: {problem}")


class GenerationError(MiniCPMError):
    """A request cannot be answered, e.g. the prompt is longer than the model's context."""


class QueueFull(GenerationError):
    """The queue is full, so the request is refused. Try again after `retry_after_s`."""

    def __init__(self, waiting: int, retry_after_s: float):
        self.retry_after_s = retry_after_s
        are = "is" if waiting == 1 else "are"
        super().__init__(f"{counted(waiting, 'request')} {are} waiting already; try again in {retry_after_s:.0f} s")


class DataError(MiniCPMError):
    """Training data is invalid; the message has file and line."""


class TrainingError(MiniCPMError):
    """A training run cannot start, continue or be resumed."""


class HubError(MiniCPMError):
    """A model cannot be found, fetched or verified."""


class MissingExtra(MiniCPMError):
    """A part of the package needs a library that is not installed."""

    def __init__(self, what: str, extra: str):
        super().__init__(f"{what} needs the '{extra}' extra; install it with: {install_command(extra)}")


def install_command(extra: str) -> str:
    """What to type for an extra. The package is on no index, where its name might be somebody else's."""
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file() and (clone / "src").is_dir():
        return shlex.join(["pip", "install", f"{clone}[{extra}]"])
    return f"pip install '.[{extra}]' in the clone that minicpm was installed from"


@contextmanager
def missing_extra(what: str, extra: str) -> Iterator[None]:
    """Raise MissingExtra in place of a library's ImportError. A missing module of our own is a bug and not changed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "minicpm":
            raise
        raise MissingExtra(what, extra) from error


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun: '1 token', '1,200 tokens'. `plural` is for nouns that take more than an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def one_line(text: str, limit: int = 200) -> str:
    """Untrusted text for a message: one line of at most `limit` characters, without control characters."""
    text = " ".join(text[: 8 * limit].split())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def brief(value: object, limit: int = 80) -> str:
    """An untrusted value for a message: one line of at most `limit` characters, without control characters."""
    text = (
        ascii(value) if not isinstance(value, int) or abs(value) < 1 << 64 else f"a number of {value.bit_length()} bits"
    )
    return text if len(text) <= limit else text[: limit - 3] + "..."
