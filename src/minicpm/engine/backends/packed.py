"""The packed file: weights in the kernels' layout. The first load of a model writes it; later loads map it.

Offsets come from the model's own files, never from the packed file. A packed file is used only if no other user can
write it, its length is right, and its header is the expected key: layout, plan, and the name, size and times of every
file of the model. Otherwise it is written again, under a temporary name first, so no process maps a half-written file.
minicpm.hub.packed_files decides which files are kept, and for how long.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicpm.files import NO_FOLLOW, NO_WAIT, lock, sync_folder
from minicpm.formats.checkpoint import Checkpoint
from minicpm.hub import packed_files

Bytes = npt.NDArray[np.uint8]

# Increment it whenever csrc/packing.cc writes different bytes for the same weights.
LAYOUT_VERSION = 1
# Packing a smaller model takes less time than opening and checking a file.
SMALLEST_FILE_BYTES = 64 << 20
ROOM_STEP_BYTES = 1 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it

_LOGGER = logging.getLogger(__name__)


def packed_weights(
    checkpoint: Checkpoint, plan: str, nbytes: int, fill: Callable[[Bytes], None], *, keeps_file: bool = True
) -> tuple[Bytes, bool]:
    """`nbytes` of packed weights, and whether they are mapped from a file.

    `fill` writes all of them; `plan` describes their layout. If no file can be kept, they are held in memory. Without
    `keeps_file` none is read or written: for weights that are not those of the checkpoint's files.
    """
    if keeps_file and nbytes >= SMALLEST_FILE_BYTES:
        path, header = _path_of(checkpoint), _header(checkpoint, plan, nbytes)
        try:
            found = _mapped(path, header, nbytes)
            if found is None and _make(path, header, nbytes, fill):
                found = _mapped(path, header, nbytes)
        except OSError as error:
            _LOGGER.warning("%s cannot be kept (%s), so every start packs the weights again", path, error.strerror)
            found = None
        if found is not None:
            return found, True
    arena = _arena(nbytes)
    fill(arena)
    return arena, False


def _path_of(checkpoint: Checkpoint) -> Path:
    return packed_files.path_of(checkpoint.path)


def _header(checkpoint: Checkpoint, plan: str, nbytes: int) -> bytes:
    """The header that the packed file of exactly these weights begins with."""
    return packed_files.header(
        checkpoint.path,
        checkpoint.weight_files,
        layout=LAYOUT_VERSION,
        byte_order=sys.byteorder,
        plan=hashlib.sha256(plan.encode()).hexdigest(),
        nbytes=nbytes,
    )


def _mapped(path: Path, header: bytes, nbytes: int) -> Bytes | None:
    """The file's weights, mapped; None unless the file is trusted and begins with `header`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW | NO_WAIT)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not packed_files.is_trusted(status) or status.st_size != len(header) + nbytes:
            return None
        if os.read(descriptor, len(header)) != header:
            return None
        # The mapping keeps a duplicate of the descriptor, and with it the lock: no process removes a file in use.
        with suppress(OSError):
            lock(descriptor, shared=True)
        with suppress(OSError):  # for removal by last use; from a read-only folder nothing is removed
            os.utime(descriptor)
        memory = mmap.mmap(descriptor, len(header) + nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    for advice in (mmap.MADV_WILLNEED, getattr(mmap, "MADV_HUGEPAGE", None), _MADV_POPULATE_READ):
        with suppress(OSError, TypeError):
            memory.madvise(advice)  # type: ignore[arg-type]
    return np.frombuffer(memory, np.uint8)[len(header) :]


def _make(path: Path, header: bytes, nbytes: int, fill: Callable[[Bytes], None]) -> bool:
    """Write the file; False if another process is writing it. Raises OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(packed_files.PARTIAL_SUFFIX)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o644)
    try:
        try:
            lock(descriptor)
        except BlockingIOError:
            return False
        # The process that held the lock may have renamed the file we opened: it is finished, so do not write to it.
        if not packed_files.is_at(partial, descriptor):
            return False
        if not packed_files.is_trusted(os.fstat(descriptor)):
            raise PermissionError(errno.EPERM, f"{partial.name} belongs to another user; delete it")
        try:
            packed_files.make_room(len(header) + nbytes, LAYOUT_VERSION)
            os.ftruncate(descriptor, 0)
            _take_room(descriptor, len(header) + nbytes)
            memory = mmap.mmap(descriptor, len(header) + nbytes)
            fill(np.frombuffer(memory, np.uint8)[len(header) :])
            memory.flush()
            os.pwrite(descriptor, header, 0)
            os.fsync(descriptor)
            partial.replace(path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)
    return True


def _take_room(descriptor: int, nbytes: int) -> None:
    """Allocate disk space first: a full disk raises OSError here, but kills a process that writes a mapped page."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
        return
    zeros = bytes(ROOM_STEP_BYTES)  # macOS
    for start in range(0, nbytes, len(zeros)):
        os.pwrite(descriptor, zeros[: nbytes - start], start)


def _arena(nbytes: int) -> Bytes:
    """Zeroed memory, in huge pages if the system has them: every token reads all of the weights."""
    memory = mmap.mmap(-1, max(nbytes, 1))
    with suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:nbytes]
