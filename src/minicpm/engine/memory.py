"""How much memory the system has and could still give, and how much this process has had."""

from __future__ import annotations

import os
import re
from pathlib import Path


def total_memory_bytes() -> int | None:
    """All of the system's memory; None where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


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
