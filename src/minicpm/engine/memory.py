"""How much memory the system has and could still give, and how much this process has had."""

from __future__ import annotations

import os
import re
from pathlib import Path


def total_memory_bytes() -> int | None:
    """All of the system's memory; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def free_memory_bytes() -> int | None:
    """Memory that is available without swapping: free pages and droppable file pages; None if unknown."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


def peak_rss_bytes() -> int | None:
    """Peak memory of this process, mapped files included; None if the system does not report it."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024
