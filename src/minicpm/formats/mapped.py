"""Files of weights in memory: mapped, read lazily, never held twice.

Owns what every weight file has in common; what the bytes mean is decided by safetensors.py and torch_bin.py.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

from minicpm.errors import FormatError, brief
from minicpm.files import NO_WAIT, require_no_pointer
from minicpm.formats.tensor import STORAGE_DTYPES, TensorInfo, TensorView

# Python 3.11's mmap module does not name this flag. Without it Linux refuses a private mapping of a file larger
# than memory, although untouched pages cost nothing.
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0

# No weight has more axes or longer ones; sums of products of these stay far from any integer that costs time.
MAX_AXES, MAX_AXIS = 8, 1 << 40


class TensorFile(Protocol):
    """One opened file of weights, whatever its format."""

    path: Path
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> TensorView:
        """The tensor over the file's pages (copied only where its layout demands it); KeyError for an unknown name."""

    def release(self, name: str) -> None:
        """Give the pages of a tensor back; values written into its view are lost."""

    def close(self) -> None:
        """Let go of the file; views already handed out stay valid."""


class MappedFile:
    """A regular file mapped privately: pages are shared with the page cache, writes are seen by this process only.

    The mapping is writable only because torch.frombuffer and numpy want writable memory. Raises FormatError for
    anything that is no regular file with content.
    """

    def __init__(self, path: Path):
        self.path = path
        descriptor = _open_regular(path)
        try:
            self.size = os.fstat(descriptor).st_size
            if self.size == 0:
                raise FormatError(path, "the file is empty; download or copy it again")
            require_no_pointer(path)
            self._map: mmap.mmap | None = _mapped_privately(descriptor, self.size)
        finally:
            os.close(descriptor)

    def view(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the file."""
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        return memoryview(self._map)[start:stop]

    def release(self, start: int, stop: int) -> None:
        """Drop the whole pages inside [start, stop) from this process; they are read again when touched."""
        page = mmap.PAGESIZE
        first, last = -(-start // page) * page, stop // page * page
        if self._map is not None and last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        opened, self._map = self._map, None
        if opened is not None:
            # Somebody may still hold a view; the last of them unmaps the file.
            with contextlib.suppress(BufferError):
                opened.close()


def aligned_view(name: str, dtype: str, shape: tuple[int, ...], buffer: memoryview) -> TensorView:
    """A TensorView over `buffer`, or over a copy where the file put the tensor at an odd address."""
    itemsize = STORAGE_DTYPES[dtype].itemsize
    if buffer.nbytes and np.frombuffer(buffer, np.uint8).ctypes.data % itemsize:
        buffer = np.frombuffer(buffer, np.uint8).copy().data
    return TensorView(name, dtype, shape, buffer)


def checked_shape(path: Path, name: str, shape: object) -> tuple[int, ...]:
    """A tuple of axis lengths from an untrusted list, checked for size; FormatError otherwise."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_AXES:
        raise FormatError(path, f"{name}: a shape is a list of at most {MAX_AXES} lengths, got {brief(shape)}")
    for length in shape:
        if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= MAX_AXIS:
            raise FormatError(path, f"{name}: shape {brief(shape)} has an impossible length {brief(length)}")
    return tuple(shape)


def _mapped_privately(descriptor: int, size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE | MAP_NORESERVE, prot=prot)


def _open_regular(path: Path) -> int:
    try:
        # Without NO_WAIT opening a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | NO_WAIT)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise FormatError(path, "no such file") from error
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG):
            raise FormatError(path, f"not a regular file ({error.strerror})") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(path, "not a regular file")
    return descriptor
