"""Long work on the terminal: one bar with bytes, rate and time left; plain lines where nobody watches live.

Draws on stderr only, so that stdout stays data.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 10.0
RATE_WINDOW_S = 30.0  # the rate of a plain line is that of this last stretch: ETAs follow a changing network


class TerminalProgress:
    """`minicpm.progress.Progress` for people: `begin`, `advance` as bytes arrive, `end`.

    On a terminal a bar that `end` leaves in place; elsewhere a line every `PLAIN_INTERVAL_S` and one at the end.
    `advance` takes negative numbers too, for bytes that turned out to be wrong. Use one object for one task at a time.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream if stream is not None else sys.stderr
        self._is_live = self._stream.isatty()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._total_bytes = self._done_bytes = 0
        self._new_bytes = 0
        self._started_s = self._last_line_s = 0.0
        self._window: list[tuple[float, int]] = []

    def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        self._label, self._total_bytes, self._done_bytes, self._new_bytes = label, total_bytes, done_bytes, 0
        self._started_s = self._last_line_s = time.monotonic()
        self._window = [(self._started_s, done_bytes)]
        if self._is_live:
            self._bar = _rich_bar(self._stream)
            self._bar.start()
            self._task = self._bar.add_task(label, total=total_bytes, completed=done_bytes)

    def advance(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        self._new_bytes += nbytes
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=nbytes)
            return
        now_s = time.monotonic()
        if now_s - self._last_line_s >= PLAIN_INTERVAL_S:
            self._last_line_s = now_s
            self._window = [mark for mark in self._window if now_s - mark[0] <= RATE_WINDOW_S] or self._window[-1:]
            rate = (self._done_bytes - self._window[0][1]) / max(now_s - self._window[0][0], 1e-9)
            self._window.append((now_s, self._done_bytes))
            print(self._plain_line(rate), file=self._stream, flush=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        elif self._new_bytes:
            elapsed_s = time.monotonic() - self._started_s
            done = self._done_bytes >= self._total_bytes
            print(
                f"{self._label}: {'done' if done else 'stopped'}, {format_bytes(self._done_bytes)}"
                f"{'' if done else ' of ' + format_bytes(self._total_bytes)} in {format_duration(elapsed_s)} "
                f"({format_bytes(self._new_bytes / max(elapsed_s, 1e-9))}/s)",
                file=self._stream,
                flush=True,
            )

    def _plain_line(self, rate: float) -> str:
        percent = 100 * self._done_bytes / self._total_bytes if self._total_bytes else 100.0
        line = (
            f"{self._label}: {percent:.0f} %, {format_bytes(self._done_bytes)} of {format_bytes(self._total_bytes)}, "
            f"{format_bytes(rate)}/s"
        )
        return line + (f", {format_duration((self._total_bytes - self._done_bytes) / rate)} left" if rate > 0 else "")


def format_bytes(nbytes: float) -> str:
    """1_500_000 -> '1.5 MB': decimal units, as disks and hubs count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def format_duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rich_bar(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),  # a file name with brackets is text, not style
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(file=stream),
    )
