"""What long work says on stderr."""

from __future__ import annotations

import io
import itertools

import pytest

from minicpm.cli import progress
from minicpm.cli.progress import TerminalProgress, format_bytes, format_duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is four seconds later."""
    ticks = itertools.count(0.0, 4.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))


def test_away_from_a_terminal_it_prints_a_line_now_and_then_and_one_at_the_end(clock: None):
    out = io.StringIO()
    bar = TerminalProgress(out)
    bar.begin("model", total_bytes=1_000_000)
    for _ in range(10):
        bar.advance(100_000)
    bar.end()
    lines = out.getvalue().splitlines()
    assert lines[0] == "model: 30 %, 300.0 kB of 1.0 MB, 25.0 kB/s, 28 s left"
    assert 3 <= len(lines) <= 5
    assert lines[-1].startswith("model: done, 1.0 MB in ")
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_an_unfinished_task_is_not_called_done(clock: None):
    out = io.StringIO()
    bar = TerminalProgress(out)
    bar.begin("model", 2_000_000, done_bytes=500_000)
    bar.advance(500_000)
    bar.end()
    assert out.getvalue().startswith("model: stopped, 1.0 MB of 2.0 MB in ")


def test_a_task_without_new_bytes_says_nothing():
    out = io.StringIO()
    bar = TerminalProgress(out)
    bar.begin("model", 10, done_bytes=10)
    bar.end()
    assert out.getvalue() == ""


def test_on_a_terminal_it_draws_a_bar_with_the_label_as_it_is_written():
    out = Terminal()
    bar = TerminalProgress(out)
    bar.begin("model[bold]", 1_000_000)
    bar.advance(400_000)
    bar.advance(-100_000)
    bar.advance(700_000)
    bar.end()
    assert "model[bold]" in out.getvalue()
    assert "1.0/1.0 MB" in out.getvalue()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_950, "1.0 MB"), (5.45e9, "5.5 GB"), (2e12, "2.0 TB")],
)
def test_bytes_are_written_in_decimal_units(nbytes: float, text: str):
    assert format_bytes(nbytes) == text


def test_durations_are_written_for_people():
    assert [format_duration(s) for s in (0.4, 75, 3725)] == ["0 s", "1 min 15 s", "1 h 2 min"]
