"""Text that users hand over: files and stdin are UTF-8, whatever the locale says, and stdin may be closed."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from minicpm.cli.output import is_terminal, talk
from minicpm.errors import FormatError
from minicpm.files import read_bytes

MAX_TEXT_BYTES = 64 << 20
PATIENCE_S = 3.0  # after this long without the end of stdin, the user reads what the command waits for


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """A whole text file; FormatError when it is too large or not UTF-8."""
    return decoded(str(path), read_bytes(path, limit))


def read_stdin() -> str:
    """All of stdin; empty when it is closed. Raises FormatError when it is too large or not UTF-8."""
    if sys.stdin is None:
        return ""
    data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise FormatError("stdin", f"more than {MAX_TEXT_BYTES:,} bytes of text")
    return decoded("stdin", data)


def with_piped_text(prompts: list[str]) -> list[str]:
    """Every prompt with the text of a pipe or a redirected file below it; the prompts alone without such text."""
    if sys.stdin is None or is_terminal(sys.stdin):
        return prompts
    notice = threading.Timer(PATIENCE_S, talk, ["Waiting for the end of stdin, whose text goes below the prompt ..."])
    notice.daemon = True
    notice.start()
    try:
        piped = read_stdin().strip("\r\n")
    finally:
        notice.cancel()
    return [f"{prompt}\n\n{piped}" for prompt in prompts] if piped.strip() else prompts


def note_unread_stdin(source: str) -> None:
    """Tell on stderr that piped text is not used, because the prompts come from `source`."""
    if _has_unread_bytes():
        talk(f"The text on stdin is not used: the prompts come from {source}.")


def _has_unread_bytes() -> bool:
    """Whether a pipe or a redirected file on stdin has bytes now. Nothing is read, and nothing is waited for."""
    try:
        descriptor = sys.stdin.fileno()
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return status.st_size > os.lseek(descriptor, 0, os.SEEK_CUR)
        if not stat.S_ISFIFO(status.st_mode):
            return False
        import array
        import fcntl
        import termios

        waiting = array.array("i", [0])
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
        return waiting[0] > 0
    except (AttributeError, ImportError, OSError, ValueError):  # no stdin, Windows, or a stream that is no file
        return False


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
