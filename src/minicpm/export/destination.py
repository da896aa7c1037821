"""Checks the destination of a new folder or file, and replaces it in one step or not at all.

Everything is written under a hidden name beside the destination, synced to disk, and renamed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from minicpm.errors import ModelError
from minicpm.files import HAS_LOCKS, NO_FOLLOW, is_disk_full, lock, naming_full_disk, open_folder, sync_folder
from minicpm.formats.config import CONFIG_FILE
from minicpm.formats.folder import ModelFolder
from minicpm.formats.gguf import is_gguf

AT_FDCWD, RENAME_EXCHANGE = -100, 2
# For directories and the file system's own data.
DISK_RESERVE_BYTES = 16 << 20


@contextlib.contextmanager
def new_folder(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `destination`; if the block succeeds, it becomes `destination` in one step.

    After an error nothing is left. After kill -9 the hidden folder remains, and the next run for the same destination
    empties and reuses it; a lock distinguishes a killed run from a running one. Raises ValueError if the destination
    cannot be used, ModelError if another process is writing it.
    """
    check_destination(destination, overwrite)
    destination = destination.resolve()
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.parent / f".{destination.name}.partial"
    descriptor = _lock_folder(partial)
    try:
        _clear(partial)
        try:
            with naming_full_disk(destination):
                yield partial
            check_destination(destination, overwrite)
            sync_folder(partial)
            _move_into_place(partial, destination)
            sync_folder(destination.parent)
        finally:
            # After a failure the folder still exists; after a replacement it holds the old model.
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """Yield a hidden file beside `destination`; if the block succeeds, it becomes `destination` in one step.

    An existing file is replaced. After an error nothing is left; after kill -9 the next run reuses the hidden file.
    Raises ModelError if another process is writing it. The block must sync the content to disk.
    """
    destination = destination.resolve()
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.parent / f".{destination.name}.partial"
    descriptor = _lock_file(partial)
    try:
        with naming_full_disk(destination):
            yield partial
        partial.replace(destination)
        sync_folder(destination.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def check_destination(destination: Path, overwrite: bool = False) -> None:
    """Raise ValueError unless a new model folder may be written to `destination`."""
    if destination.is_symlink() and not destination.exists():
        raise ValueError(f"{destination}: a symbolic link to nothing; remove it or choose another destination")
    if Path.cwd().is_relative_to(destination.resolve()):
        raise ValueError(f"{destination}: the destination is the current folder or holds it; name a new folder")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ValueError(f"{destination}: exists and is not a folder; choose another destination")
    content = list(destination.iterdir())
    if not content:
        return
    if not overwrite:
        raise ValueError(f"{destination}: already exists; choose another destination or pass --force to replace it")
    if not (destination / CONFIG_FILE).is_file() or any(path.is_dir() for path in content):
        raise ValueError(f"{destination}: --force replaces model folders only, and this is not one; remove it yourself")


def check_places(source: Path, destination: Path, overwrite: bool) -> None:
    """Raise ValueError or ModelError unless `source` is a folder or a GGUF file and `destination` may be written."""
    if not is_gguf(source):
        ModelFolder(source)
    inside, outside = destination.resolve(), source.resolve()
    if inside == outside:
        raise ValueError(f"{destination}: source and destination are the same; name another destination")
    if inside.is_relative_to(outside):
        raise ValueError(f"{destination}: the destination is inside the source folder; choose a place outside it")
    if outside.is_relative_to(inside):
        raise ValueError(f"{destination}: the source folder is inside the destination; choose another destination")
    check_destination(destination, overwrite)


def require_disk(destination: Path, weight_bytes: int, copies: Sequence[Path] = ()) -> None:
    """Raise ModelError unless weights and copied files fit on the destination's disk."""
    needed = weight_bytes + sum(path.stat().st_size for path in copies) + DISK_RESERVE_BYTES
    parent = destination.resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ModelError(
            f"{destination}: needs {needed} bytes of disk, {free} are free; make room or choose another disk"
        )


@contextlib.contextmanager
def report_full_disk(destination: Path, needed_bytes: int) -> Iterator[None]:
    """Raise ModelError in place of OSError if the disk fills up. `new_folder` and `new_file` clean up."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        problem = f"{destination}: the disk is full; the model needs {needed_bytes} bytes"
        raise ModelError(f"{problem}, nothing was kept") from error


def copy_file(source: Path, destination: Path) -> None:
    """Copy a file and sync it to disk, sharing blocks if the file system can. Never makes a hard link.

    Programs that save in place would write through a hard link into the source model.
    """
    with source.open("rb") as reader, destination.open("xb") as writer:
        if not _copy_in_kernel(reader.fileno(), writer.fileno()):
            shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def forget_cached_pages(path: Path) -> None:
    """Drop the file from the page cache, so that the check reads it from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _copy_in_kernel(reader: int, writer: int) -> bool:
    if not hasattr(os, "copy_file_range"):
        return False
    copied = 0
    try:
        while step := os.copy_file_range(reader, writer, 1 << 26):
            copied += step
    except OSError as error:
        if copied or error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return False
    return copied == os.fstat(reader).st_size


def _lock_folder(partial: Path) -> int | None:
    """Create the hidden folder if needed and lock it; the lock ends with the process. None on Windows."""
    while True:
        with contextlib.suppress(FileExistsError):
            partial.mkdir()
        if partial.is_symlink() or not partial.is_dir():
            raise ValueError(f"{partial}: in the way and not a folder; remove it")
        descriptor = open_folder(partial, NO_FOLLOW)
        if descriptor is None or _lock(descriptor, partial):
            return descriptor


def _lock_file(partial: Path) -> int | None:
    """Create the hidden file if needed and lock it; the lock ends with the process. None on Windows."""
    while True:
        if partial.is_symlink() or (partial.exists() and not partial.is_file()):
            raise ValueError(f"{partial}: in the way and not a file; remove it")
        if not HAS_LOCKS:  # Windows, which also cannot rename an open file
            return None
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        if _lock(descriptor, partial):
            return descriptor


def _lock(descriptor: int, partial: Path) -> bool:
    """Lock the descriptor of `partial`. Closes it and returns False if another run has moved the file into place."""
    try:
        lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise ModelError(f"{partial}: another process is writing this model; wait for it") from None
    except OSError:
        # Some network file systems cannot lock; the user must then avoid two runs to one destination.
        return True
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), partial.stat()):
            return True
    os.close(descriptor)
    return False


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _move_into_place(partial: Path, destination: Path) -> None:
    if not destination.exists() or not any(destination.iterdir()):
        partial.rename(destination)
    elif not _exchange(partial, destination):
        # Without an atomic exchange the destination is absent for a moment, but never incomplete.
        replaced = destination.parent / f".{destination.name}.replaced"
        destination.rename(replaced)
        partial.rename(destination)
        shutil.rmtree(replaced)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False if the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)
