"""The progress of long work: a protocol that lower rooms report to and the command line displays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol


class Progress(Protocol):
    """One task at a time, measured in bytes."""

    def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        """Start a task of which `done_bytes` are done already, e.g. by an interrupted download."""

    def advance(self, nbytes: int) -> None:
        """Count `nbytes` more as done."""

    def end(self) -> None:
        """End the task, whether finished or not."""


class Silent:
    """A `Progress` that shows nothing."""

    def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        pass

    def advance(self, nbytes: int) -> None:
        pass

    def end(self) -> None:
        pass


@contextlib.contextmanager
def task(progress: Progress, label: str, total_bytes: int) -> Iterator[None]:
    """A task that lasts as long as the block."""
    progress.begin(label, total_bytes)
    try:
        yield
    finally:
        progress.end()


def watched(chunks: Iterable[memoryview], progress: Progress) -> Iterator[memoryview]:
    """Yield the chunks and count each as done when the next one is requested."""
    for chunk in chunks:
        yield chunk
        progress.advance(chunk.nbytes)
