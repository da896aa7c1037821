"""How much memory the system could still give, and how much this process has had."""

from __future__ import annotations

import re
from pathlib import Path


def free_memory_bytes() -> int | None:
    """What the system could give without swapping: free pages and those of files it can drop; None where unknown."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


def peak_rss_bytes() -> int | None:
    """The most memory this process has had at once, mapped files included; None where the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024
