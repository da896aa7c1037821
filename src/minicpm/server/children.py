"""Ending a program that was started here, with all that it started itself."""

from __future__ import annotations

import os
import signal
import subprocess


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask a program to end; kill it after `patience_s`. It must have been started as the leader of a process group."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
