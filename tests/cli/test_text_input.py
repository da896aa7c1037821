"""Text on stdin: joined to prompts, noticed where it is not used, waited for with a word."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from minicpm.cli import text_input
from minicpm.errors import FormatError


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    """`stdin(descriptor)` is stdin from then on."""
    opened = []

    def use(descriptor: int):
        opened.append(os.fdopen(descriptor, encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield use
    for file in opened:
        file.close()


def pipe_of(text: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return reader


def test_piped_text_goes_below_every_prompt(stdin):
    stdin(pipe_of(b"\n    indented = 1\nlast\n\n"))
    assert text_input.with_piped_text(["One", "Two"]) == [f"{one}\n\n    indented = 1\nlast" for one in ("One", "Two")]


@pytest.mark.parametrize("text", [b"", b"\n \r\n"])
def test_a_pipe_without_text_changes_no_prompt(stdin, text):
    stdin(pipe_of(text))
    assert text_input.with_piped_text(["One"]) == ["One"]


def test_a_closed_stdin_changes_no_prompt(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert text_input.with_piped_text(["One"]) == ["One"]
    text_input.note_unread_stdin("prompts.txt")


def test_what_is_waited_for_is_said(stdin, monkeypatch, capsys):
    monkeypatch.setattr(text_input, "PATIENCE_S", 0.01)
    reader, writer = os.pipe()
    stdin(reader)

    def end_later() -> None:
        end = time.monotonic() + 30
        said = ""
        while "end of stdin" not in said and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
        os.write(writer, said.encode())
        os.close(writer)

    thread = threading.Thread(target=end_later)
    thread.start()
    (prompt,) = text_input.with_piped_text(["One"])
    thread.join()
    assert prompt.startswith("One\n\nWaiting for the end of stdin")


def test_too_much_text_is_refused_and_not_cut(stdin, monkeypatch):
    monkeypatch.setattr(text_input, "MAX_TEXT_BYTES", 3)
    stdin(pipe_of(b"four"))
    with pytest.raises(FormatError, match="stdin: more than 3 bytes"):
        text_input.read_stdin()


def test_unread_text_of_a_pipe_or_a_file_is_noticed(stdin, capsys, tmp_path: Path):
    (tmp_path / "text").write_text("text", encoding="utf-8")
    for descriptor in (pipe_of(b"text"), os.open(tmp_path / "text", os.O_RDONLY)):
        stdin(descriptor)
        text_input.note_unread_stdin("prompts.txt")
        assert capsys.readouterr().err == "The text on stdin is not used: the prompts come from prompts.txt.\n"


def test_a_stdin_without_text_is_no_reason_for_a_word(stdin, capsys, tmp_path: Path):
    (tmp_path / "text").write_text("text", encoding="utf-8")
    at_end = os.open(tmp_path / "text", os.O_RDONLY)
    os.lseek(at_end, 0, os.SEEK_END)
    for descriptor in (pipe_of(b""), at_end, os.open(os.devnull, os.O_RDONLY)):
        stdin(descriptor)
        text_input.note_unread_stdin("prompts.txt")
        assert capsys.readouterr().err == ""
