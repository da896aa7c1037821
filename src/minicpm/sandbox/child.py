"""The child process of process.py: reads one JSON message on stdin, writes one JSON answer on stdout.

It is a separate program, started without site-packages, and must not import this package. The message contains the
source of its job.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable
from typing import Any


def main() -> None:
    message = json.loads(sys.stdin.buffer.read())
    sys.path += message["import_paths"]
    limits = message["limits"]
    job: dict[str, Any] = {"__name__": "job"}
    exec(compile(message["job"], "job", "exec"), job)
    job["prepare"]()
    limit_resources(limits["cpu_s"], limits["address_space_bytes"])
    try:
        answer = {"text": joined(job["work"](message["request"]), limits["output_characters"])}
    except MemoryError:
        answer = {"error": f"it needs more than {limits['address_space_bytes'] >> 20} MB"}
    except RecursionError:
        answer = {"error": "it is nested too deeply"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    sys.stdout.buffer.write(json.dumps(answer).encode())


def joined(pieces: Iterable[str], limit: int) -> str:
    """Join the pieces; stop as soon as they are longer than the limit."""
    kept = []
    length = 0
    for piece in pieces:
        kept.append(piece)
        length += len(piece)
        if length > limit:
            raise ValueError(f"its output has more than {limit:,} characters")
    return "".join(kept)


def limit_resources(cpu_s: int, address_space_bytes: int) -> None:
    """Limit this process: no more CPU time or memory than this, no writing or opening files, no new programs."""
    for name, limit in {
        "RLIMIT_CPU": cpu_s,
        "RLIMIT_AS": address_space_bytes,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 3,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))


main()
