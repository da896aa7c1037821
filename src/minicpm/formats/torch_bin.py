"""PyTorch's zip checkpoints (`pytorch_model.bin`, `.pt`) read and written without torch, and without running pickle.

The pickle inside is interpreted by a machine that knows dicts, tuples, numbers, strings and tensors of a storage,
and nothing else: an unknown opcode or global is an error, and no name in the file is ever imported. Tensors stay in
the file until they are read. torch.load is the oracle in the tests.
"""

from __future__ import annotations

import itertools
import math
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm.errors import FormatError, brief
from minicpm.formats.mapped import MappedFile, aligned_view, checked_shape
from minicpm.formats.tensor import STORAGE_DTYPES, TensorInfo, TensorView

# MiniCPM-2B's own pickle has 40 kB and 17,000 opcodes, its directory 363 entries.
MAX_PICKLE_BYTES, MAX_OPCODES = 8 << 20, 500_000
MAX_DIRECTORY_BYTES, MAX_ENTRIES = 16 << 20, 100_000
MAX_INTEGER = 1 << 48

STORAGE_NAMES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
STORAGE_OF_DTYPE = {dtype: name for name, dtype in STORAGE_NAMES.items()}
ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
GLOBALS = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER} | {f"torch.{name}" for name in STORAGE_NAMES}

# First bytes of torch.save before 1.6: a pickled magic number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
ZIP64_LOCATOR = struct.Struct("<4sLQL")
ZIP64_END_OF_DIRECTORY = struct.Struct("<4sQ2H2L4Q")
DIRECTORY_ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
STORED, ENCRYPTED = 0, 1
LARGE_ENTRY_BYTES = 1 << 31  # from this size on zipfile needs force_zip64


class TorchFile:
    """A torch zip checkpoint opened for reading; raises FormatError for anything but named plain tensors."""

    def __init__(self, path: Path):
        self.path = path
        self._file = MappedFile(path)
        try:
            entries = _zip_entries(path, self._file)
            prefix = _archive_prefix(path, entries)
            _require_little_endian(path, self._file, entries, prefix)
            begin, end = entries[f"{prefix}/data.pkl"]
            if end - begin > MAX_PICKLE_BYTES:
                raise FormatError(path, f"its pickle has {end - begin} bytes, more than any model's")
            found = _Machine(path).run(bytes(self._file.view(begin, end)))
            self._tensors = {name: _locate(path, name, tensor, entries, prefix) for name, tensor in found.items()}
            self.tensors = {name: tensor.info for name, tensor in self._tensors.items()}
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> TensorView:
        tensor = self._tensors[name]
        info, buffer = tensor.info, self._file.view(tensor.begin, tensor.end)
        if tensor.stride is None:
            return aligned_view(name, info.dtype, info.shape, buffer)
        words = np.frombuffer(buffer, STORAGE_DTYPES[info.dtype])
        strides = [step * words.itemsize for step in tensor.stride]
        # _locate has proved that the last element lies inside the buffer.
        strided = np.lib.stride_tricks.as_strided(words, info.shape, strides, writeable=False)
        return TensorView(name, info.dtype, info.shape, np.ascontiguousarray(strided).reshape(-1).view(np.uint8).data)

    def release(self, name: str) -> None:
        tensor = self._tensors[name]
        self._file.release(tensor.begin, tensor.end)

    def close(self) -> None:
        self._file.close()


class TorchWriter:
    """Writes a checkpoint that torch.load(weights_only=True, mmap=True) reads, tensor by tensor."""

    def __init__(self, path: Path, tensors: Sequence[TensorInfo]):
        self.path = path
        self._expected = list(tensors)
        self._written = 0
        self._file = path.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._entry("data.pkl", [memoryview(_pickled(self._expected))])
        self._entry("byteorder", [memoryview(b"little")])

    def write(self, name: str, chunks: Iterable[memoryview]) -> int:
        """Write the next tensor's bytes; returns their CRC-32."""
        info = self._expected[self._written]
        assert info.name == name, f"{name} written where {info.name} was announced"
        nbytes, checksum = self._entry(f"data/{self._written}", chunks, info.nbytes)
        assert nbytes == info.nbytes, f"{name}: {nbytes} bytes written, {info.nbytes} announced"
        self._written += 1
        return checksum

    def close(self) -> None:
        assert self._written == len(self._expected), f"{self.path}: {self._written} of {len(self._expected)} tensors"
        self._entry("version", [memoryview(b"3\n")])
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close without a claim that the file is whole."""
        self._zip.fp = None  # its destructor would try to finish the archive
        self._file.close()

    def _entry(self, name: str, chunks: Iterable[memoryview], expected_bytes: int = 0) -> tuple[int, int]:
        entry = zipfile.ZipInfo(f"{self.path.stem}/{name}")
        is_large = expected_bytes >= LARGE_ENTRY_BYTES
        # torch maps storages at multiples of 64; the header is 30 bytes, the name, then the extra fields.
        zip64_bytes = 20 if is_large else 0
        start = self._file.tell() + LOCAL_HEADER.size + len(entry.filename) + zip64_bytes + 4
        padding = -start % 64
        entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        nbytes = checksum = 0
        with self._zip.open(entry, "w", force_zip64=is_large) as stream:
            for chunk in chunks:
                stream.write(chunk)
                checksum, nbytes = zlib.crc32(chunk, checksum), nbytes + chunk.nbytes
        return nbytes, checksum


# --- the zip archive ---------------------------------------------------------------------------------------------


def _zip_entries(path: Path, file: MappedFile) -> dict[str, tuple[int, int]]:
    """Name -> [begin, end) of every stored entry's content; only uncompressed, non-overlapping entries pass."""
    if bytes(file.view(0, len(LEGACY_MAGIC))) == LEGACY_MAGIC:
        raise FormatError(path, "saved by a torch before 1.6; load it once with torch and save it again")
    if bytes(file.view(0, 4)) != b"PK\x03\x04":
        raise FormatError(
            path, "not a torch zip checkpoint (no zip signature at its start); is it truncated or renamed?"
        )
    begin, nbytes, count = _directory_span(path, file)
    if nbytes > MAX_DIRECTORY_BYTES or count > MAX_ENTRIES:
        raise FormatError(path, f"its zip directory claims {count} entries in {nbytes} bytes, more than any model's")
    directory = bytes(file.view(begin, begin + nbytes))
    entries: dict[str, tuple[int, int]] = {}
    extents: list[tuple[int, int, str]] = []
    position = 0
    for _ in range(count):
        name, offset, size, position = _directory_entry(path, directory, position)
        start = _content_start(path, file, name, offset)
        if start + size > begin:
            raise FormatError(path, f"zip entry {brief(name)} reaches outside the file; it is truncated or damaged")
        if name in entries:
            raise FormatError(path, f"zip entry {brief(name)} appears twice")
        entries[name] = (start, start + size)
        extents.append((offset, start + size, name))
    extents.sort()
    for (_, end, one), (offset, _, other) in itertools.pairwise(extents):
        if offset < end:
            raise FormatError(path, f"zip entries {brief(one)} and {brief(other)} overlap")
    return entries


def _directory_span(path: Path, file: MappedFile) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory."""
    tail_start = max(0, file.size - END_OF_DIRECTORY.size - 0xFFFF)
    tail = bytes(file.view(tail_start, file.size))
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END_OF_DIRECTORY.size:
        raise FormatError(path, "truncated: the zip directory at its end is missing; download it again")
    fields = END_OF_DIRECTORY.unpack_from(tail, at)
    _, disk, directory_disk, on_disk, count, nbytes, begin, comment = fields
    end = tail_start + at
    if at + END_OF_DIRECTORY.size + comment != len(tail) or disk or directory_disk or on_disk != count:
        raise FormatError(path, "damaged zip directory")
    if count == 0xFFFF or nbytes == 0xFFFFFFFF or begin == 0xFFFFFFFF:
        begin, nbytes, count, end = _zip64_span(path, file, end)
    if begin + nbytes > end:
        raise FormatError(path, "damaged zip directory: it reaches past its own end")
    return begin, nbytes, count


def _zip64_span(path: Path, file: MappedFile, end: int) -> tuple[int, int, int, int]:
    locator_at = end - ZIP64_LOCATOR.size
    if locator_at >= 0:
        magic, _, record_at, _ = ZIP64_LOCATOR.unpack(file.view(locator_at, end))
        if magic == b"PK\x06\x07" and record_at + ZIP64_END_OF_DIRECTORY.size <= locator_at:
            record = file.view(record_at, record_at + ZIP64_END_OF_DIRECTORY.size)
            magic, _, _, _, disk, _, on_disk, count, nbytes, begin = ZIP64_END_OF_DIRECTORY.unpack(record)
            if magic == b"PK\x06\x06" and disk == 0 and on_disk == count:
                return begin, nbytes, count, record_at
    raise FormatError(path, "damaged zip64 directory")


def _directory_entry(path: Path, directory: bytes, position: int) -> tuple[str, int, int, int]:
    """Name, local header offset and size of one entry, and the position of the next."""
    if position + DIRECTORY_ENTRY.size > len(directory):
        raise FormatError(path, "damaged zip directory: it has fewer entries than it claims")
    fields = DIRECTORY_ENTRY.unpack_from(directory, position)
    magic, _, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes, comment_bytes = fields[:13]
    offset = fields[-1]
    name_at = position + DIRECTORY_ENTRY.size
    extra_at = name_at + name_bytes
    following = extra_at + extra_bytes + comment_bytes
    if magic != b"PK\x01\x02" or following > len(directory):
        raise FormatError(path, "damaged zip directory")
    name = directory[name_at:extra_at].decode("utf-8", errors="replace")
    if method != STORED:
        raise FormatError(path, f"zip entry {brief(name)} is compressed; torch never writes that, nothing was unpacked")
    if flags & ENCRYPTED:
        raise FormatError(path, f"zip entry {brief(name)} is encrypted")
    wide = _zip64_fields(directory[extra_at : extra_at + extra_bytes])
    try:
        size = wide.pop(0) if size == 0xFFFFFFFF else size
        packed = wide.pop(0) if packed == 0xFFFFFFFF else packed
        offset = wide.pop(0) if offset == 0xFFFFFFFF else offset
    except IndexError:
        raise FormatError(path, f"zip entry {brief(name)} lacks its 64-bit sizes") from None
    if packed != size:
        raise FormatError(path, f"zip entry {brief(name)} has two sizes, {packed} and {size}")
    return name, offset, size, following


def _zip64_fields(extra: bytes) -> list[int]:
    position = 0
    while position + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            content = extra[position + 4 : position + 4 + nbytes]
            return [int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content) - 7, 8)]
        position += 4 + nbytes
    return []


def _content_start(path: Path, file: MappedFile, name: str, offset: int) -> int:
    if offset + LOCAL_HEADER.size > file.size:
        raise FormatError(path, f"zip entry {brief(name)} begins outside the file; it is truncated or damaged")
    fields = LOCAL_HEADER.unpack(file.view(offset, offset + LOCAL_HEADER.size))
    name_bytes, extra_bytes = fields[-2:]
    name_at = offset + LOCAL_HEADER.size
    local_name = bytes(file.view(name_at, name_at + name_bytes)).decode("utf-8", errors="replace")
    if fields[0] != b"PK\x03\x04" or local_name != name:
        raise FormatError(path, f"zip entry {brief(name)} has a damaged header")
    return name_at + int(name_bytes) + int(extra_bytes)


def _archive_prefix(path: Path, entries: dict[str, tuple[int, int]]) -> str:
    prefixes = [
        name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(prefixes) != 1:
        raise FormatError(path, "a zip file, but no torch checkpoint: it must hold exactly one NAME/data.pkl")
    if f"{prefixes[0]}/constants.pkl" in entries:
        raise FormatError(path, "a TorchScript archive holding code; expected a checkpoint of weights")
    return prefixes[0]


def _require_little_endian(path: Path, file: MappedFile, entries: dict[str, tuple[int, int]], prefix: str) -> None:
    begin, end = entries.get(f"{prefix}/byteorder", (0, 0))
    order = bytes(file.view(begin, min(end, begin + 16)))
    # torch before 2.1 wrote no byte order; its checkpoints come from little-endian machines.
    if order not in (b"", b"little"):
        raise FormatError(path, f"its byte order is {brief(order)}; expected little-endian")


# --- the pickle --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    elements: int


@dataclass(frozen=True)
class _StoredTensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Located:
    """A tensor's place in the file; `stride` (in elements) is None when it is contiguous."""

    info: TensorInfo
    begin: int
    end: int
    stride: tuple[int, ...] | None


class _Machine:
    """Interprets the few pickle opcodes that a dict of tensors needs. It calls nothing that the file names."""

    def __init__(self, path: Path):
        self._path = path
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> dict[str, _StoredTensor]:
        """The state dict of a pickle; FormatError if it is anything else."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
                if count >= MAX_OPCODES:
                    raise FormatError(self._path, f"its pickle has over {MAX_OPCODES} opcodes, more than any model's")
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, UnicodeError, struct.error) as error:
            raise FormatError(self._path, f"its pickle is damaged ({brief(str(error))})") from error
        if len(self._stack) != 1 or self._marks:
            raise FormatError(self._path, "its pickle is damaged (it ends with more than one value)")
        return self._state_dict(self._stack[0])

    def _state_dict(self, value: object) -> dict[str, _StoredTensor]:
        if not isinstance(value, dict):
            raise FormatError(self._path, f"holds a {_kind(value)}, expected a dict of tensors by name")
        for name, tensor in value.items():
            if not isinstance(name, str) or not isinstance(tensor, _StoredTensor):
                problem = f"entry {brief(name)} is a {_kind(tensor)}, expected a dict of tensors by name"
                raise FormatError(self._path, f"{problem}; save model.state_dict() alone")
        return value

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO":
                if argument > 5:
                    raise ValueError(f"protocol {argument}")
            case "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                if abs(argument) > MAX_INTEGER:
                    raise ValueError("an absurdly large number")
                stack.append(argument)
            case "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "GLOBAL":
                self._push_global(argument.replace(" ", ".", 1))
            case "STACK_GLOBAL":
                module, attribute = self._pop(2)
                self._push_global(f"{module}.{attribute}" if isinstance(module, str) else "")
            case "BINPERSID":
                stack.append(self._storage(*self._pop(1)))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(self._call(function, arguments))
            case "BUILD":
                # A state dict's `_metadata` (versions of modules) is an attribute of the dict; it is not used.
                self._pop(1)
                if not isinstance(stack[-1], dict):
                    raise ValueError(f"attributes for a {_kind(stack[-1])}")
            case _:
                problem = f"its pickle uses opcode {name}, which no checkpoint of weights needs"
                raise FormatError(self._path, f"{problem}; the file may be hostile, nothing was run")

    def _pop(self, count: int) -> list[Any]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - count < floor:
            raise IndexError("stack underflow")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError(f"items for a {_kind(self._stack[-1])}")
        self._stack[-1].extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError(f"entries for a {_kind(target)}")
        for key, value in zip(values[::2], values[1::2]):
            # Only these hash in constant time: a tuple nested a million deep would overflow the C stack.
            if not isinstance(key, str | int):
                raise ValueError(f"a {_kind(key)} as a key")
            if key in target:
                raise ValueError(f"{brief(key)} twice")
            target[key] = value

    def _push_global(self, name: str) -> None:
        if name not in GLOBALS:
            problem = f"its pickle asks for {brief(name)}, which no checkpoint of weights needs"
            raise FormatError(self._path, f"{problem}; the file may be hostile, nothing was run")
        self._stack.append(_Global(name))

    def _storage(self, identifier: object) -> _Storage:
        match identifier:
            case ("storage", _Global(name), str(key), str(), int(elements)):
                dtype = STORAGE_NAMES.get(name.removeprefix("torch."))
                if dtype is not None and 0 <= elements <= MAX_INTEGER:
                    return _Storage(dtype, key, elements)
        raise ValueError("not a storage")

    def _call(self, function: object, arguments: object) -> object:
        match function, arguments:
            case _Global(name), () if name == ORDERED_DICT:
                return {}
            case _Global(name), (
                _Storage() as storage,
                int(offset),
                tuple(shape),
                tuple(stride),
                bool(),
                dict(),
                *_,
            ) if name == REBUILD_TENSOR:
                return self._tensor(storage, offset, shape, stride)
            case _Global(name), (_StoredTensor() as tensor, bool(), dict()) if name == REBUILD_PARAMETER:
                return tensor
        raise ValueError(f"a call of a {_kind(function)} with unexpected arguments")

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple[object, ...], stride: tuple[object, ...]
    ) -> _StoredTensor:
        lengths = checked_shape(self._path, "a tensor", shape)
        steps = checked_shape(self._path, "a tensor's strides", stride)
        if len(lengths) != len(steps):
            raise ValueError("a shape and strides of different length")
        return _StoredTensor(storage, offset, lengths, steps)


def _locate(path: Path, name: str, tensor: _StoredTensor, entries: dict[str, tuple[int, int]], prefix: str) -> _Located:
    """Check a tensor against its storage's bytes in the file."""
    label, storage = brief(name), tensor.storage
    entry = entries.get(f"{prefix}/data/{storage.key}")
    if entry is None:
        raise FormatError(path, f"{label}: its storage {brief(storage.key)} is missing from the file")
    begin, end = entry
    itemsize = STORAGE_DTYPES[storage.dtype].itemsize
    if storage.elements * itemsize != end - begin:
        expected = storage.elements * itemsize
        raise FormatError(path, f"{label}: its storage should have {expected} bytes, the file holds {end - begin}")
    info = TensorInfo(name, storage.dtype, tensor.shape)
    elements = math.prod(tensor.shape)
    # Strides of 0 could make one stored number a tensor of any size; weights never repeat.
    if elements > storage.elements:
        raise FormatError(path, f"{label}: shape {list(tensor.shape)} is larger than its storage of {storage.elements}")
    extent = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride)) if elements else 0
    if not 0 <= tensor.offset <= storage.elements - extent:
        raise FormatError(
            path, f"{label}: shape {list(tensor.shape)} reaches outside its storage of {storage.elements}"
        )
    first = begin + tensor.offset * itemsize
    is_contiguous = elements == 0 or all(
        length == 1 or step == expected
        for length, step, expected in zip(tensor.shape, tensor.stride, _contiguous_strides(tensor.shape))
    )
    return _Located(info, first, first + extent * itemsize, None if is_contiguous else tensor.stride)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _kind(value: object) -> str:
    return f"reference to {value.name}" if isinstance(value, _Global) else type(value).__name__.strip("_")


def _pickled(tensors: list[TensorInfo]) -> bytes:
    """The pickle of OrderedDict(name -> tensor on storage number i), as torch.save writes it."""
    ordered_dict = _global_opcode(ORDERED_DICT) + b")R"
    parts = [b"\x80\x02", ordered_dict, b"("]
    for number, info in enumerate(tensors):
        parts += [
            _text_opcode(info.name),
            _global_opcode(REBUILD_TENSOR),
            b"((",
            _text_opcode("storage"),
            _global_opcode(f"torch.{STORAGE_OF_DTYPE[info.dtype]}"),
            _text_opcode(str(number)),
            _text_opcode("cpu"),
            _integer_opcode(math.prod(info.shape)),
            b"tQ",
            _integer_opcode(0),
            b"(" + b"".join(map(_integer_opcode, info.shape)) + b"t",
            b"(" + b"".join(map(_integer_opcode, _contiguous_strides(info.shape))) + b"t",
            b"\x89" + ordered_dict + b"tR",
        ]
    return b"".join([*parts, b"u."])


def _global_opcode(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _text_opcode(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _integer_opcode(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(encoded)]) + encoded
