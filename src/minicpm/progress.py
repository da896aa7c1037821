"""How long work tells what it is doing: a protocol that hub and formats speak and the command line draws."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One task at a time, measured in bytes."""

    def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        """Start a task; `done_bytes` were there already, e.g. from an interrupted download."""

    def advance(self, nbytes: int) -> None:
        """`nbytes` more are done."""

    def end(self) -> None:
        """The task is over, finished or not."""


class Silent:
    """Progress that nobody watches."""

    def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        pass

    def advance(self, nbytes: int) -> None:
        pass

    def end(self) -> None:
        pass
