"""Text that users hand over: files and stdin are UTF-8, whatever the locale says, and stdin may be closed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from minicpm.errors import FormatError
from minicpm.files import read_bytes

MAX_TEXT_BYTES = 64 << 20


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """A whole text file; FormatError when it is too large or not UTF-8."""
    return decoded(str(path), read_bytes(path, limit))


def read_stdin() -> str:
    """All of stdin; empty when it is closed."""
    return "" if sys.stdin is None else decoded("stdin", sys.stdin.buffer.read(MAX_TEXT_BYTES))


def stdin_lines() -> Iterator[str]:
    """Lines of stdin without their ends, as they arrive."""
    if sys.stdin is not None:
        for line in sys.stdin.buffer:
            yield decoded("stdin", line).rstrip("\r\n")


def decoded(name: str, data: bytes) -> str:
    """`data` as text, without a byte-order mark; FormatError naming the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(name, f"not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x})") from error
