"""Ends a child process together with its own children."""

from __future__ import annotations

import os
import signal
import subprocess


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Terminate a process; kill its group after `patience_s`. It must be the leader of its process group."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
