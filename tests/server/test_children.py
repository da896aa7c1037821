"""A child process is ended together with its own children."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minicpm.server.children import end

# Starts a child that, as it itself, does not obey SIGTERM, and prints the child's id.
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
def test_a_program_that_does_not_obey_is_killed_with_its_children():
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, process_group=0)
    assert process.stdout is not None
    assert int(process.stdout.readline()) != process.pid
    end(process, 0.2)
    assert process.returncode == -9
    assert process.stdout.read() == b""  # the child held it open, too
    process.stdout.close()


def test_a_program_that_has_ended_is_left_alone():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    end(process, 0.0)
    assert process.returncode == 3
