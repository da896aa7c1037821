"""The log never makes anybody wait, whatever its reader does."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from minicpm.server.log import LineHandler, LineWriter, logging_to_stderr


class Reader:
    """Takes lines, but none while it is `held`."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.free = threading.Event()
        self.free.set()

    def write(self, line: bytes) -> None:
        assert self.free.wait(20)
        self.lines.append(line)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.free.set()


def test_lines_come_in_their_order(reader: Reader):
    writer = LineWriter(reader.write)
    for number in range(500):
        writer.put(f"line {number}")
    writer.close(20)
    assert reader.lines == [f"line {number}\n".encode() for number in range(500)]


def test_nobody_waits_for_a_reader_that_does_not_read_and_what_is_left_out_is_counted(reader: Reader):
    writer = LineWriter(reader.write, longest_queue=10)
    reader.free.clear()
    start_s = time.monotonic()
    for number in range(1000):
        writer.put(f"line {number}")
    writer.close(0.01)
    assert time.monotonic() - start_s < 10
    reader.free.set()
    writer.close(20)
    kept = [line for line in reader.lines if line.startswith(b"line")]
    assert 10 <= len(kept) <= 12 and kept[0] == b"line 0\n"
    (note,) = [line for line in reader.lines if b"left out" in line]
    assert note.startswith(f"({1000 - len(kept)} lines".encode())


def test_a_reader_that_has_gone_disturbs_nobody():
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(lambda line: os.write(writing, line) and None)
    writer.put("nobody reads this")
    writer.close(20)
    os.close(writing)
    assert not writer._thread.is_alive()


def test_what_is_no_unicode_and_what_cannot_be_formatted_is_written_somehow(reader: Reader):
    writer = LineWriter(reader.write)
    handler = LineHandler(writer, lambda text: text.replace("\x1b", "?"))
    handler.emit(logging.LogRecord("a", logging.INFO, "", 0, "half \ud800 \x1b[2J", (), None))
    handler.emit(logging.LogRecord("a", logging.INFO, "", 0, "%d", ("no number",), None))
    writer.close(20)
    assert b"half \\ud800 ?[2J" in reader.lines[0] and b"cannot be formatted" in reader.lines[1]


@pytest.mark.parametrize(
    ("level", "written"),
    [(logging.INFO, ["ours", "ours warns", "theirs warns"]), (logging.WARNING, ["ours warns", "theirs warns"]),
     (logging.ERROR, []), (logging.DEBUG, ["ours", "theirs", "ours warns", "theirs warns"])],
)  # fmt: skip
def test_the_level_chooses_the_lines_and_nothing_of_it_stays(capfd, level: int, written: list[str]):
    ours, theirs = logging.getLogger("minicpm.server"), logging.getLogger("somebody.else")
    before = logging.getLogger().handlers[:], logging.getLogger().level, ours.level
    with logging_to_stderr(level, str):
        ours.info("ours")
        theirs.info("theirs")
        ours.warning("ours warns")
        theirs.warning("theirs warns")
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == written
    assert (logging.getLogger().handlers[:], logging.getLogger().level, ours.level) == before
