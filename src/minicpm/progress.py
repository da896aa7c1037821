"""How long work tells what it is doing: a protocol that hub and formats speak and the command line draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
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


@contextlib.contextmanager
def task(progress: Progress, label: str, total_bytes: int) -> Iterator[None]:
    """A task that is over when the block is left, finished or not."""
    progress.begin(label, total_bytes)
    try:
        yield
    finally:
        progress.end()


def watched(chunks: Iterable[memoryview], progress: Progress) -> Iterator[memoryview]:
    """The chunks; each is done when the next one is asked for."""
    for chunk in chunks:
        yield chunk
        progress.advance(chunk.nbytes)
