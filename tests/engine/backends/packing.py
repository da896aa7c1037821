"""A process that packs a model, for tests that disturb it: `packing.py FOLDER HOW`. Prints one JSON object.

It says which bits the model answers with, whether they come from a mapped file, how often weights were packed, what it
warned of, and what is left in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from minicpm.engine.backend import Row
from minicpm.engine.backends import packed
from minicpm.engine.backends.native import NativeBackend, _Weights
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import packed_files

NOBODY = 65534
packed.SMALLEST_FILE_BYTES = 0

fills: list[int] = []
_fill = _Weights._fill


def counted_fill(self: _Weights, out: np.ndarray) -> None:
    fills.append(len(out))
    _fill(self, out)


_Weights._fill = counted_fill  # type: ignore[method-assign]


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def answer(folder: Path) -> dict[str, Any]:
    warnings = Warnings()
    logging.getLogger("minicpm").addHandler(warnings)
    fills.clear()
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        backend = NativeBackend(checkpoint, 1)
        (logits,) = backend.forward([Row(backend.new_sequence(9), [5, 6, 7], "all")])
    logging.getLogger("minicpm").removeHandler(warnings)
    home = packed_files.folder()
    return {
        "bits": hashlib.sha256(logits.tobytes()).hexdigest(),
        "fills": len(fills),
        "is_mapped": is_mapped(home),
        "warnings": warnings.texts,
        "files": sorted(path.name for path in home.iterdir()) if home.is_dir() else [],
    }


def is_mapped(home: Path) -> bool:
    return f"{home}{os.sep}" in Path("/proc/self/maps").read_text()


def meeting(folder: Path) -> dict[str, Any]:
    """Packs when a line comes, so that several do it at once."""
    print("ready", flush=True)
    sys.stdin.readline()
    return answer(folder)


def holding(folder: Path) -> dict[str, Any]:
    """Answers, and keeps the model until a line comes."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        backend = NativeBackend(checkpoint, 1)
        print("ready", flush=True)
        sys.stdin.readline()
    return {"threads": backend.threads}


def with_small_files(folder: Path) -> dict[str, Any]:
    """No file may grow beyond a few kilobytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    return answer(folder)


def as_nobody(folder: Path) -> dict[str, Any]:
    """Run as a user who may read, but not write root's files. Any user but root is one already."""
    if os.geteuid() == 0:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    return answer(folder)


def killed_everywhere(folder: Path) -> dict[str, Any]:
    """Killed at every third line that packing executes, each time on an empty cache, then started again.

    Gives how many kills there were, and every outcome of the starts after them that is another than the first's.
    """
    expected = answer(folder)
    kills, line, bad = 0, 0, []
    while True:
        for file in packed_files.folder().iterdir():
            file.unlink()
        child = os.fork()
        if child == 0:
            kill_at_line(line)
            answer(folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return {"kills": kills, "bad": bad, "expected": expected}
        left = sorted(path.name for path in packed_files.folder().iterdir())
        again = answer(folder)
        # One whose rename was done is whole and used; from any other the weights are packed again.
        wanted = expected | {"fills": 0 if [name.endswith(".bin") for name in left] == [True] else 1}
        if again != wanted or os.WTERMSIG(status) != signal.SIGKILL:
            bad.append({"line": line, "left": left, "again": again})
        kills, line = kills + 1, line + 3


def kill_at_line(line: int) -> None:
    """SIGKILL to this process when it comes to the line of that number among those that make the file."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        if frame.f_code.co_name not in ("_make", "_fill", "make_room") or "minicpm" not in frame.f_code.co_filename:
            return None
        if event == "line":
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
        return trace

    sys.settrace(trace)


if __name__ == "__main__":
    how = {
        "plain": answer,
        "meeting": meeting,
        "holding": holding,
        "small-files": with_small_files,
        "nobody": as_nobody,
        "killed": killed_everywhere,
    }
    print(json.dumps(how[sys.argv[2]](Path(sys.argv[1]))))
