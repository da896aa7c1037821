"""The safetensors format: an 8-byte length, a JSON header, then the tensors' bytes without gaps.

Read and written here rather than by the library, because tensors are written one at a time without ever being
held together, and because bfloat16 has no numpy type. The library is the oracle in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, brief, counted
from minicpm.formats.mapped import MappedFile, aligned_view, checked_shape
from minicpm.formats.sequential import SequentialWriter
from minicpm.formats.tensor import STORAGE_DTYPES, TensorInfo, TensorView

# MiniCPM-2B's 362 tensors take 40 kB. The library allows 100 MB, which takes seconds to parse.
MAX_HEADER_BYTES = 8 << 20
DATA_ALIGNMENT = 64

DTYPE_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint32": "U32",
    "uint8": "U8",
    "bool": "BOOL",
}
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}


class SafetensorsFile:
    """A safetensors file opened for reading; raises FormatError for every way in which it can be wrong."""

    def __init__(self, path: Path):
        self.path = path
        self._file = MappedFile(path)
        try:
            self.tensors, self._spans = _parse(path, self._file)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> TensorView:
        info = self.tensors[name]
        return aligned_view(name, info.dtype, info.shape, self._file.view(*self._spans[name]))

    def span(self, name: str) -> tuple[int, int]:
        """The offsets in the file at which the tensor's bytes begin and end."""
        return self._spans[name]

    def release(self, name: str) -> None:
        self._file.release(*self._spans[name])

    def close(self) -> None:
        self._file.close()


class SafetensorsWriter(SequentialWriter):
    """Writes one file tensor by tensor, in the order of `tensors`; `close` makes it durable.

    Give tensors of wider dtypes first (see `write_order`), so that each starts at a multiple of its item size.
    """

    def __init__(self, path: Path, tensors: Sequence[TensorInfo]):
        super().__init__(path, path.open("xb"), _header(tensors), tensors)


def write_order(tensors: Sequence[TensorInfo]) -> list[TensorInfo]:
    """The same tensors, wider dtypes first, otherwise as given."""
    return sorted(tensors, key=lambda info: -STORAGE_DTYPES[info.dtype].itemsize)


def _header(tensors: Sequence[TensorInfo]) -> bytes:
    # transformers refuses a file without the "format" note.
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in tensors:
        entries[info.name] = {
            "dtype": DTYPE_CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _parse(path: Path, file: MappedFile) -> tuple[dict[str, TensorInfo], dict[str, tuple[int, int]]]:
    if file.size < 8:
        raise FormatError(path, f"no safetensors file: it has {counted(file.size, 'byte')}; download or copy it again")
    header_length = int.from_bytes(file.view(0, 8), "little")
    if header_length > MAX_HEADER_BYTES or bytes(file.view(8, 9)) not in (b"", b"{"):
        raise FormatError(path, "not a safetensors file: it does not start with the length of a JSON header")
    data_start = 8 + header_length
    if data_start > file.size:
        raise FormatError(path, f"truncated: the header needs {data_start} bytes, the file has {file.size}")
    entries = _load_header(path, bytes(file.view(8, data_start)))
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(path, "__metadata__ must be an object of strings")
    tensors: dict[str, TensorInfo] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, entry in entries.items():
        tensors[name], (begin, end) = _entry(path, name, entry)
        spans[name] = (data_start + begin, data_start + end)
    _require_gapless(path, spans, data_start, file.size)
    return tensors, spans


def _load_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise FormatError(path, "the header names a key twice")
        return made

    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"the header is not valid JSON: {brief(str(error))}") from error
    if not isinstance(entries, dict):
        raise FormatError(path, "the header must be a JSON object")
    return entries


def _entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    label = brief(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(path, f"{label}: an entry has exactly dtype, shape and data_offsets")
    dtype = DTYPE_NAMES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise FormatError(path, f"{label}: dtype {brief(entry['dtype'])} is none of {', '.join(DTYPE_NAMES)}")
    shape = checked_shape(path, label, entry["shape"])
    offsets = entry["data_offsets"]
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(isinstance(offset, int) and not isinstance(offset, bool) for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise FormatError(path, f"{label}: data_offsets must be [begin, end], got {brief(offsets)}")
    begin, end = offsets
    info = TensorInfo(name, dtype, shape)
    if end - begin != info.nbytes:
        problem = (
            f"{label}: {dtype} {list(shape)} takes {brief(info.nbytes)} bytes, data_offsets hold {brief(end - begin)}"
        )
        raise FormatError(path, problem)
    return info, (begin, end)


def _require_gapless(path: Path, spans: dict[str, tuple[int, int]], data_start: int, size: int) -> None:
    position = data_start
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            kind = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise FormatError(path, f"{brief(name)}: data_offsets [{begin - data_start}, {end - data_start}] {kind}")
        position = end
    if position > size:
        raise FormatError(path, f"truncated: the tensors need {position} bytes, the file has {size}; download it again")
    if position < size:
        spare = counted(size - position, "byte")
        raise FormatError(path, f"{spare} too long; the header accounts for {position} of {size}")
