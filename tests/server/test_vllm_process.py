"""The process that stands for vLLM's server: signals reach it once, and it never outlives the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

STARTER = """
import os, sys
from minicpm.server.vllm import _watched
sys.exit(_watched([sys.executable, "-c", sys.argv[1]], dict(os.environ)))
"""
CHILD = """
import signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: heard.append(number))
print("ready", flush=True)
while not heard:
    time.sleep(0.01)
time.sleep(0.3)
print(*heard, flush=True)
sys.exit(7)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["the process", "its group, as a terminal does"])
def test_a_signal_reaches_the_server_once(number: signal.Signals, whom: str):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, CHILD], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == "ready\n"
    if whom == "the process":
        starter.send_signal(number)
    else:
        os.killpg(starter.pid, number)
    assert starter.stdout.read() == f"{number.value}\n"
    assert starter.wait(20) == 7
