"""Writing a file of weights from front to back, one tensor after the other, none of them ever held whole.

Knows what was announced and counts what comes; headers and dtypes are those of safetensors.py and gguf.py.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar


class Announced(Protocol):
    """A tensor that is going to be written."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


class TensorWriter(Protocol):
    """A file of weights that is being written."""

    def close(self) -> None:
        """Finish the file and make it durable."""

    def abandon(self) -> None:
        """Close without a claim that the file is whole."""


_Writer = TypeVar("_Writer", bound=TensorWriter)


@contextlib.contextmanager
def writing(writer: _Writer) -> Iterator[_Writer]:
    """The writer, closed when the block ends well and abandoned otherwise."""
    try:
        yield writer
        writer.close()
    except BaseException:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            writer.abandon()
        raise


class SequentialWriter:
    """Writes a header, then tensors as announced, each filled up to `alignment`; `close` makes it durable."""

    def __init__(self, path: Path, file: BinaryIO, header: bytes, tensors: Sequence[Announced], alignment: int = 1):
        self.path = path
        self._file = file
        self._expected = list(tensors)
        self._alignment = alignment
        self._written = 0
        self._file.write(header)

    def write(self, name: str, chunks: Iterable[memoryview]) -> int:
        """Write the next tensor's bytes; returns their CRC-32."""
        tensor = self._expected[self._written]
        assert tensor.name == name, f"{name} written where {tensor.name} was announced"
        checksum, nbytes = 0, 0
        for chunk in chunks:
            self._file.write(chunk)
            checksum, nbytes = zlib.crc32(chunk, checksum), nbytes + chunk.nbytes
        assert nbytes == tensor.nbytes, f"{name}: {nbytes} bytes written, {tensor.nbytes} announced"
        self._file.write(bytes(-nbytes % self._alignment))
        self._written += 1
        return checksum

    def close(self) -> None:
        assert self._written == len(self._expected), f"{self.path}: {self._written} of {len(self._expected)} tensors"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close without a claim that the file is whole."""
        self._file.close()
