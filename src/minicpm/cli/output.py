"""Where words go: answers to stdout, talk to stderr, and nothing that a terminal would obey instead of showing."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

from minicpm.errors import counted
from minicpm.files import is_disk_full

if TYPE_CHECKING:
    from minicpm.engine.request import Completion

# Newline and tab are text; everything else below 0x20, DEL and the C1 range can move the cursor or set titles.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: TextIO | None) -> bool:
    """False also for a closed stream, which Python shows as None."""
    return stream is not None and stream.isatty()


def printable(text: str) -> str:
    """`text` with its control characters made visible as U+FFFD."""
    return CONTROL_CHARACTERS.sub("�", text)


def say(text: str) -> None:
    """Print a part of an answer as it comes; raw into files and pipes, safe on a terminal."""
    print(printable(text) if is_terminal(sys.stdout) else text, end="", flush=True)


def talk(text: str) -> None:
    """Say something that is not an answer."""
    print(printable(text), file=sys.stderr, flush=True)


def talk_dim(text: str) -> None:
    """Say something that may be overlooked."""
    is_plain = not is_terminal(sys.stderr) or "NO_COLOR" in os.environ
    print(printable(text) if is_plain else f"\x1b[2m{printable(text)}\x1b[0m", file=sys.stderr, flush=True)


def one_sentence(error: Exception) -> str:
    """What a user reads of an error: one line, with the file's name where there is one."""
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller context, batch or model"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; make room there and run the same command again" if is_disk_full(error) else ""
        return f"{where}{error.strerror}{advice}"
    return " ".join(str(error).split()) or type(error).__name__


def terminal_width() -> int:
    """Columns of the terminal that talk goes to; COLUMNS overrides them, and without a terminal there are 80."""
    given = os.environ.get("COLUMNS", "")
    try:
        return int(given) if given.isdecimal() and int(given) > 0 else os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return 80


def footer(completion: Completion) -> str:
    """What an answer cost, and whether something cut it, in one line."""
    timings, usage = completion.timings, completion.usage
    cut = ", cut at the longest allowed" if completion.finish_reason == "length" else ""
    parts = [
        f"{counted(usage.completion_tokens, 'token')}{cut}",
        f"first after {timings.first_token_s:.2f} s",
        f"prompt {counted(usage.prompt_tokens, 'token')}"
        + (f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""),
    ]
    if timings.decode_tokens_per_s:
        parts.insert(1, f"{timings.decode_tokens_per_s:.1f} tokens/s")
    return ", ".join(parts)
