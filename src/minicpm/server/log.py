"""The log, written by its own thread, so that no request blocks on a pipe that is not read.

A program that starts the server may stop to read its stderr, or close it. Lines then wait up to a limit, and those
beyond it are counted and left out; the server goes on.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# Lines that may wait for their reader.
LONGEST_QUEUE = 2000
# How long a shutdown waits to flush lines to a pipe that is not read.
LAST_LINES_S = 1.0


class LineWriter:
    """Passes lines to `write` on a thread of its own, in their order."""

    def __init__(self, write: Callable[[bytes], None], longest_queue: int = LONGEST_QUEUE):
        self._write = write
        self._longest = longest_queue
        self._lines: deque[bytes] = deque()
        self._left_out = 0
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="minicpm-log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Write a line, or several, soon; never waits."""
        with self._changed:
            if len(self._lines) >= self._longest:
                self._left_out += 1
                return
            self._lines.append(f"{line}\n".encode("utf-8", "backslashreplace"))
            self._changed.notify()

    def close(self, timeout_s: float = LAST_LINES_S) -> None:
        """Wait until all is written, but not longer than `timeout_s`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._next()) is not None:
            with suppress(OSError, ValueError):  # the reader has closed the pipe; the server goes on
                self._write(line)

    def _next(self) -> bytes | None:
        with self._changed:
            while not self._lines and not self._is_closing:
                self._changed.wait()
            if self._left_out:
                missed, self._left_out = self._left_out, 0
                self._lines.append(f"({missed} lines of the log were left out, since nobody read it)\n".encode())
            return self._lines.popleft() if self._lines else None


class LineHandler(logging.Handler):
    """Hands records to a LineWriter, with control characters from outside made visible by `clean`."""

    def __init__(self, writer: LineWriter, clean: Callable[[str], str]):
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._writer = writer
        self._clean = clean

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self._clean(self.format(record)))
        except Exception:  # a record that cannot be formatted must not end a request
            self._writer.put(f"a record of {record.name} cannot be formatted")


@contextmanager
def logging_to_stderr(level: int, clean: Callable[[str], str]) -> Iterator[LineWriter]:
    """Write our records from `level` on, and warnings of every library, to stderr; gives the writer for other lines."""
    writer = LineWriter(_to_stderr())
    handler = LineHandler(writer, clean)
    root, ours = logging.getLogger(), logging.getLogger("minicpm.server")
    before = root.handlers, root.level, ours.level
    root.handlers = [handler]
    root.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    ours.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield writer
    finally:
        logging.captureWarnings(False)
        root.handlers, root.level, ours.level = before
        writer.close()


def _to_stderr() -> Callable[[bytes], None]:
    """Writes past Python's own stream: a thread that hangs in it would keep its lock beyond the end of the program."""
    try:
        number = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # none, or one of a test
        stream = sys.stderr
        return lambda line: None if stream is None else _into(stream, line)
    return lambda line: _all_into(number, line)


def _into(stream: object, line: bytes) -> None:
    stream.write(line.decode("utf-8", "replace"))  # type: ignore[attr-defined]


def _all_into(number: int, line: bytes) -> None:
    while line:
        line = line[os.write(number, line) :]
