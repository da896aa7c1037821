"""Runs a job on a request in a child process with bounded time and memory.

The child has no site-packages and no environment variables. Once its job is prepared, it cannot open a file, start a
program, or exceed its `Limits` of time and memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Limits:
    """The limits of a child. `wall_s` ends one that waits instead of computing."""

    cpu_s: int
    wall_s: float
    address_space_bytes: int
    output_characters: int


class Stopped(Exception):
    """The child was ended before it answered, because it exceeded its limits."""


class Failed(Exception):
    """The job raised an error, or its answer is not text. The message is the child's."""


def has_limits() -> bool:
    """Whether this system can limit a process; Windows cannot."""
    return find_spec("resource") is not None


def run_job(job: Path, request: Mapping[str, object], limits: Limits, modules: tuple[str, ...] = ()) -> str:
    """The text that `work(request)` of the file `job` returns in a child, which can import only `modules`.

    `job` also has a function `prepare()`, which imports what `work` needs before the limits are set. Raises Stopped and
    Failed.
    """
    message = {
        "job": job.read_text(encoding="utf-8"),
        "request": dict(request),
        "limits": asdict(limits),
        "import_paths": _paths_of(modules),
    }
    # -I: nothing from the environment or the current folder; -S: no site-packages.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8"},
        cwd="/",
        close_fds=True,
    )
    alarm = threading.Timer(limits.wall_s, process.kill)
    alarm.start()
    try:
        answer = _converse(process, json.dumps(message).encode(), limits)
    finally:
        process.kill()
        alarm.cancel()
        process.wait()
    return _text_of(answer)


def _converse(process: subprocess.Popen[bytes], message: bytes, limits: Limits) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    with process.stdout as stdout:
        try:
            with process.stdin as stdin:
                stdin.write(message)
        except BrokenPipeError:
            pass  # the child died early; the missing answer shows that
        # The child limits its own output; this bound holds even if a job subverts it. JSON escapes take up to 6 bytes.
        return stdout.read(6 * limits.output_characters + 1024)


def _paths_of(modules: tuple[str, ...]) -> list[str]:
    """Folders to import the modules from, because the child has no site-packages."""
    folders = []
    for module in modules:
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None
        folders.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(folders))


def _text_of(answer: bytes) -> str:
    if not answer:
        raise Stopped
    try:
        fields = json.loads(answer)
        text, problem = fields.get("text"), fields.get("error", "its output is no text")
    except (ValueError, AttributeError, RecursionError):
        text, problem = None, "its output is no text"
    if not isinstance(text, str):
        raise Failed(str(problem))
    return text
