"""The tests of Ctrl-C pass in the background, too."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from interrupts import default_interrupts

INTERRUPTED = [sys.executable, "-S", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"]


@pytest.fixture
def background() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("background")
def test_a_program_can_be_interrupted_though_its_parent_ignores_that():
    with default_interrupts():
        done = subprocess.run(INTERRUPTED, capture_output=True)
    assert done.returncode == -signal.SIGINT


@pytest.mark.usefixtures("background")
def test_the_parent_ignores_interrupts_again_afterwards():
    with default_interrupts():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
