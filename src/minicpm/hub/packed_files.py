"""The cache of packed weights: the place of its files, their keys, and their eviction.

It knows the files, not their content: minicpm.engine.backends.packed writes and maps them. Like the other caches here
it needs only the standard library. A process that maps a file holds a shared lock on it; a file in use is never
removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm.files import NO_FOLLOW, NO_WAIT, lock
from minicpm.hub.cache import home

# Beyond it the least recently used files are evicted; MiniCPM-2B needs 1.7 GB.
MAX_TOTAL_BYTES = 16 << 30
PARTIAL_SUFFIX = ".partial"
_TITLE = b"minicpm packed weights\n"
_PAGE_BYTES = 4096  # a header fills whole pages, because the weights after it are mapped
_MAX_HEADER_BYTES = 1 << 20


def folder() -> Path:
    return home() / "packed"


def path_of(model: Path) -> Path:
    """The packed file of a model's folder or file."""
    return folder() / f"{hashlib.sha256(os.fsencode(model.resolve())).hexdigest()[:24]}.bin"


def header(model: Path, weight_files: Iterable[Path], **key: str | int) -> bytes:
    """The header of the packed file of these weights: its whole key, including the model's path.

    The marks include inode and ctime: a copy can keep the modification time, but no program can set ctime, and another
    machine has other inodes.
    """
    says = {"model": str(model.resolve()), "files": [_mark(path) for path in weight_files], **key}
    text = _TITLE + json.dumps(says).encode() + b"\n"
    return text.ljust(-(-len(text) // _PAGE_BYTES) * _PAGE_BYTES, b"\0")


def is_trusted(status: os.stat_result) -> bool:
    """Whether only this user or root can have written a file, and can write to it while it is mapped."""
    return stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def is_at(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the opened file: another process may have renamed it before it was locked."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class PackedFile:
    """A file of the cache. `model` is None if the file is incomplete or its header cannot be read."""

    path: Path
    model: Path | None
    nbytes: int
    last_used_s: float
    is_dead: bool  # it can never be mapped again: its model is gone or has changed


def list_files(layout: int | None = None) -> list[PackedFile]:
    """All files, the least recently used first. If `layout` is given, files of other layouts count as dead."""
    found = []
    with suppress(OSError):
        for path in folder().iterdir():
            with suppress(OSError):
                found.append(_described(path, layout))
    return sorted(found, key=lambda file: file.last_used_s)


def bytes_of(model: Path, files: Iterable[PackedFile]) -> int:
    """Bytes of those `files` that belong to a model, or to models inside a folder."""
    inside = model.resolve()
    return sum(f.nbytes for f in files if f.model is not None and f.model.is_relative_to(inside))


def remove_of(model: Path) -> int:
    """Remove the dead files of a model, or of models inside a folder; return the freed bytes."""
    inside = model.resolve()
    dead = [file for file in list_files() if file.is_dead and file.model and file.model.is_relative_to(inside)]
    return sum(_removed_bytes(file) for file in dead)


def make_room(nbytes: int, layout: int) -> None:
    """Evict dead files, then the least recently used, until `nbytes` more fit into MAX_TOTAL_BYTES."""
    files = list_files(layout)
    left = sum(file.nbytes for file in files)
    for file in sorted(files, key=lambda file: not file.is_dead):
        if file.is_dead or left + nbytes > MAX_TOTAL_BYTES:
            left -= _removed_bytes(file)


def _removed_bytes(file: PackedFile) -> int:
    """Remove a file unless a process maps, writes or has replaced it; return the freed bytes."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | NO_FOLLOW | NO_WAIT)
    except OSError:
        return 0
    try:
        lock(descriptor)
        if not is_at(file.path, descriptor):
            return 0
        file.path.unlink()
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    return file.nbytes


def _described(path: Path, layout: int | None) -> PackedFile:
    status = path.lstat()
    says = _read_header(path) if path.suffix != PARTIAL_SUFFIX and stat.S_ISREG(status.st_mode) else {}
    is_of_layout = layout is None or says.get("layout") == layout
    model = Path(str(says["model"])) if "model" in says else None
    is_dead = not (is_of_layout and model is not None and model.exists() and _is_unchanged(says.get("files")))
    return PackedFile(path, model, status.st_size, status.st_mtime, is_dead)


def _read_header(path: Path) -> dict[str, Any]:
    """The key in a packed file's header; {} if it cannot be read."""
    with path.open("rb") as file:
        title, line = file.readline(len(_TITLE)), file.readline(_MAX_HEADER_BYTES)
    try:
        says = json.loads(line) if title == _TITLE else None
    except (ValueError, RecursionError):
        return {}
    return says if isinstance(says, dict) else {}


def _mark(path: Path) -> list[str | int]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_unchanged(marks: object) -> bool:
    try:
        return isinstance(marks, list) and all(_mark(Path(str(mark[0]))) == mark for mark in marks)
    except (OSError, TypeError, IndexError, KeyError, ValueError):
        return False
