"""How much memory the system could still give."""

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
