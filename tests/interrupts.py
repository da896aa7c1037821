"""Programs that tests interrupt, wherever the tests were started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def default_interrupts() -> Iterator[None]:
    """A program that is started in the block can be interrupted.

    A shell makes its background jobs ignore SIGINT, and the programs that they start inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
