"""The GGUF container: a header of typed metadata, a list of tensors, then their bytes, each aligned.

It knows counts, lengths and offsets, and checks each one of an untrusted file before using it. gguf_model.py gives the
keys and tensors their meaning for MiniCPM, gguf_blocks.py decodes blocks of quantized types. The package gguf is the
oracle in the tests.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicpm.errors import FormatError, brief, counted
from minicpm.formats.mapped import MAX_AXIS, MappedFile
from minicpm.formats.sequential import SequentialWriter

MAGIC = b"GGUF"
VERSION, READ_VERSIONS = (
    3,
    (2, 3),
)  # 1 (2023) had lengths of 32 bits; 2 and 3 are the same where bytes are little-endian
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 16
# MiniCPM-2B's header has 2.6 MB, its vocabulary 122,753 pieces; other families bring their merges as well.
MAX_HEADER_BYTES = 64 << 20
MAX_KEYS, MAX_TENSORS, MAX_STRINGS = 1 << 12, 1 << 15, 1 << 20
MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_AXES = 1 << 12, 64, 4  # the last two are ggml's own


class ValueType(IntEnum):
    """The types of metadata values, by the format's numbers."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_LENGTH = struct.Struct("<Q")  # of a string
_NUMBERS: dict[ValueType, np.dtype] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True, eq=False)
class Array:
    """A metadata array of texts or numbers. It equals no scalar value, and prints in one line."""

    items: list[str] | npt.NDArray[np.generic]

    def __repr__(self) -> str:
        return f"an array of {len(self.items)}"


Value = int | float | bool | str | Array


@dataclass(frozen=True)
class Field:
    """A metadata entry to be written. With `item`, the value is a sequence of that type."""

    key: str
    type: ValueType
    value: int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
    item: ValueType | None = None


@dataclass(frozen=True)
class BlockType:
    """A storage type of tensors: `elements` numbers of a row share a block of `nbytes`."""

    name: str
    id: int
    elements: int
    nbytes: int

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor whose last axis is a multiple of `elements`."""
        return math.prod(shape) // self.elements * self.nbytes


F32, F16, BF16 = BlockType("F32", 0, 1, 4), BlockType("F16", 1, 1, 2), BlockType("BF16", 30, 1, 2)
Q4_0, Q4_1, Q8_0 = BlockType("Q4_0", 2, 32, 18), BlockType("Q4_1", 3, 32, 20), BlockType("Q8_0", 8, 32, 34)
Q5_0, Q5_1, IQ4_NL = BlockType("Q5_0", 6, 32, 22), BlockType("Q5_1", 7, 32, 24), BlockType("IQ4_NL", 20, 32, 18)
Q2_K, Q3_K, Q4_K = BlockType("Q2_K", 10, 256, 84), BlockType("Q3_K", 11, 256, 110), BlockType("Q4_K", 12, 256, 144)
Q5_K, Q6_K, IQ4_XS = BlockType("Q5_K", 13, 256, 176), BlockType("Q6_K", 14, 256, 210), BlockType("IQ4_XS", 23, 256, 136)
BLOCK_TYPES = {
    kind.id: kind
    for kind in (
        *(F32, F16, BF16),
        *(Q8_0, Q6_K, Q5_0, Q5_1, Q5_K, Q4_0, Q4_1, Q4_K, IQ4_NL, IQ4_XS, Q3_K, Q2_K),
    )
}
# Types of other files, for the message that refuses them.
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """A stored tensor: its shape in numpy's order (GGUF lists the axes in reverse) and its place in the file."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int = 0

    @property
    def nbytes(self) -> int:
        return self.type.size(self.shape)


def is_gguf(path: Path) -> bool:
    """Whether a file has the suffix .gguf or begins with GGUF's magic bytes."""
    return path.is_file() and (path.suffix == ".gguf" or has_magic(path))


def has_magic(path: Path) -> bool:
    """Whether a regular file begins with GGUF's magic bytes."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class GgufFile:
    """A GGUF file opened for reading. Raises FormatError for any error in it."""

    path: Path
    metadata: dict[str, Value]  # a FLOAT32 as the shortest decimal that rounds to it
    tensors: dict[str, GgufTensor]

    def __init__(self, path: Path):
        self.path = path
        self._file = MappedFile(path)
        try:
            header = _Header(path, self._file.view(0, min(self._file.size, MAX_HEADER_BYTES)), self._file.size)
            self.metadata, self.tensors = _parse(header, self._file.size)
            self._kinds = header.kinds
        except BaseException:
            self._file.close()
            raise

    def fields(self) -> dict[str, Field]:
        """The metadata in the form that a writer takes."""
        values = {key: value.items if isinstance(value, Array) else value for key, value in self.metadata.items()}
        plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}
        return {key: Field(key, kind, plain[key], item) for key, (kind, item) in self._kinds.items()}

    def view(self, name: str) -> memoryview:
        """The tensor's bytes, as a view of the file's pages."""
        tensor = self.tensors[name]
        return self._file.view(tensor.start, tensor.start + tensor.nbytes)

    def release(self, name: str) -> None:
        tensor = self.tensors[name]
        self._file.release(tensor.start, tensor.start + tensor.nbytes)

    def close(self) -> None:
        self._file.close()


class GgufWriter(SequentialWriter):
    """Writes one file tensor by tensor, in the order of `tensors`; `close` syncs it to disk."""

    def __init__(self, path: Path, fields: Sequence[Field], tensors: Sequence[GgufTensor]):
        super().__init__(path, path.open("wb"), header_bytes(fields, tensors), tensors, DEFAULT_ALIGNMENT)


# --- writing -----------------------------------------------------------------------------------------------------


def header_bytes(fields: Sequence[Field], tensors: Sequence[GgufTensor]) -> bytes:
    """Everything before the first tensor's bytes, padded to the alignment."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(fields))]
    for field in fields:
        parts += [_string(field.key), struct.pack("<I", field.type), _value(field)]
    offset = 0
    for tensor in tensors:
        axes = tensor.shape[::-1]
        parts += [_string(tensor.name), struct.pack(f"<I{len(axes)}Q", len(axes), *axes)]
        parts.append(struct.pack("<IQ", tensor.type.id, offset))
        offset += _padded(tensor.nbytes, DEFAULT_ALIGNMENT)
    header = b"".join(parts)
    return header + bytes(-len(header) % DEFAULT_ALIGNMENT)


def _value(field: Field) -> bytes:
    if field.item is None:
        if field.type == ValueType.STRING:
            return _string(str(field.value))
        return np.array(field.value, _NUMBERS[field.type]).tobytes()
    values = field.value
    assert isinstance(values, Sequence) and not isinstance(values, str), field.key
    head = struct.pack("<IQ", field.item, len(values))
    if field.item == ValueType.STRING:
        return head + b"".join(_string(str(value)) for value in values)
    return head + np.array(values, _NUMBERS[field.item]).tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


# --- reading -----------------------------------------------------------------------------------------------------


class _Header:
    """The header's bytes and the read position. Every length is checked against the bytes that are left."""

    def __init__(self, path: Path, data: memoryview, file_size: int):
        self.path = path
        self.at = 0
        self.kinds: dict[str, tuple[ValueType, ValueType | None]] = {}  # of the values read, and of their items
        self._data = data
        self._is_whole_file = len(data) == file_size
        self._strings_left = MAX_STRINGS

    def take(self, nbytes: int) -> memoryview:
        left = len(self._data) - self.at
        if nbytes > left:
            if self._is_whole_file:
                problem = f"truncated: the header needs {brief(nbytes)} bytes after byte {self.at}, but {left} are left"
            else:
                problem = f"its header is larger than {MAX_HEADER_BYTES:,} bytes"
            raise FormatError(self.path, f"{problem}; download or convert it again")
        self.at += nbytes
        return self._data[self.at - nbytes : self.at]

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def uint64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, what: str, limit: int) -> int:
        value = self.uint64()
        if value > limit:
            raise FormatError(self.path, f"{brief(value)} {what}, expected at most {limit:,}")
        return value

    def string(self, what: str, max_bytes: int = MAX_HEADER_BYTES) -> str:
        length = self.uint64()
        if length > max_bytes:
            raise FormatError(self.path, f"{what} has {brief(length)} bytes, expected at most {max_bytes:,}")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            raise FormatError(self.path, f"{what} is not UTF-8 text") from None

    def value_type(self, key: str) -> ValueType:
        number = self.uint32()
        if number not in ValueType.__members__.values():
            raise FormatError(self.path, f"{brief(key)} has a value of the unknown type {number}")
        return ValueType(number)

    def value(self, key: str) -> Value:
        kind = self.value_type(key)
        self.kinds[key] = kind, None
        if kind == ValueType.STRING:
            return self.string(brief(key))
        if kind == ValueType.ARRAY:
            return self._array(key)
        number = np.frombuffer(self.take(_NUMBERS[kind].itemsize), _NUMBERS[kind])[0]
        if kind == ValueType.BOOL:
            if number > 1:
                raise FormatError(self.path, f"{brief(key)} must be true or false, got the byte {number}")
            return bool(number)
        # 1e-5 was written as the nearest of 2**32 numbers; read it as 1e-5, not as 9.999999747378752e-06.
        return float(str(number)) if kind == ValueType.FLOAT32 else number.item()  # type: ignore[no-any-return]

    def _array(self, key: str) -> Array:
        item = self.value_type(key)
        if item == ValueType.ARRAY:
            raise FormatError(self.path, f"{brief(key)} is an array of arrays, which no key of a model is")
        self.kinds[key] = ValueType.ARRAY, item
        count = self.count(f"values of {brief(key)}", MAX_HEADER_BYTES)
        if item != ValueType.STRING:
            return Array(np.frombuffer(self.take(count * _NUMBERS[item].itemsize), _NUMBERS[item]).copy())
        self._strings_left -= count
        if self._strings_left < 0:
            raise FormatError(self.path, f"{brief(key)} and others have more than {MAX_STRINGS:,} strings")
        return Array(self._strings(f"a string of {brief(key)}", count))

    def _strings(self, what: str, count: int) -> list[str]:
        """The same as `string` again and again, in a third of the time: a vocabulary has 122,753 pieces."""
        data, end, strings = self._data, len(self._data), []
        for _ in range(count):
            start = self.at + _LENGTH.size
            length = _LENGTH.unpack_from(data, self.at)[0] if start <= end else end
            try:
                strings.append(str(data[start : start + length], "utf-8"))
            except UnicodeDecodeError:
                length = end
            if start + length > end:
                self.string(what)  # raises the error
            self.at = start + length
        return strings


def _parse(header: _Header, file_size: int) -> tuple[dict[str, Value], dict[str, GgufTensor]]:
    path = header.path
    if file_size < 4 or header.take(4) != MAGIC:
        raise FormatError(path, "not a GGUF file: it does not start with GGUF")
    version = header.uint32()
    if version not in READ_VERSIONS:
        is_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in READ_VERSIONS
        found = "big-endian" if is_swapped else f"of version {version}"
        raise FormatError(path, f"this GGUF file is {found}; little-endian files of versions 2 and 3 are read")
    tensor_count = header.count("tensors", MAX_TENSORS)
    key_count = header.count("metadata keys", MAX_KEYS)
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = header.string("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise FormatError(path, f"the metadata names {brief(key)} twice")
        metadata[key] = header.value(key)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise FormatError(path, f"general.alignment is {brief(alignment)}, expected a power of two up to 65,536")
    return metadata, _parse_tensors(header, tensor_count, alignment, file_size)


def _parse_tensors(header: _Header, count: int, alignment: int, file_size: int) -> dict[str, GgufTensor]:
    path = header.path
    relative: dict[str, GgufTensor] = {}
    expected = 0
    for _ in range(count):
        tensor = _parse_tensor(header)
        if tensor.name in relative:
            raise FormatError(path, f"two tensors are called {brief(tensor.name)}")
        if tensor.start != expected:
            problem = f"{brief(tensor.name)} starts at {brief(tensor.start)}, expected {brief(expected)}"
            raise FormatError(path, f"{problem}: tensors must be contiguous, each at a multiple of {alignment}")
        relative[tensor.name] = tensor
        expected += _padded(tensor.nbytes, alignment)
        if expected > file_size + alignment:
            raise FormatError(path, f"truncated: {brief(tensor.name)} ends beyond the file's {file_size} bytes")
    data_start = _padded(header.at, alignment)
    tensors = {
        name: GgufTensor(name, tensor.type, tensor.shape, data_start + tensor.start)
        for name, tensor in relative.items()
    }
    end = max((tensor.start + tensor.nbytes for tensor in tensors.values()), default=data_start)
    if end > file_size:
        raise FormatError(path, f"truncated: the tensors need {end} bytes, the file has {file_size}; download it again")
    if file_size > data_start + expected:
        spare = file_size - data_start - expected
        raise FormatError(path, f"{counted(spare, 'byte')} too long; the header accounts for {data_start + expected}")
    return tensors


def _parse_tensor(header: _Header) -> GgufTensor:
    name = header.string("a tensor's name", MAX_NAME_BYTES)
    label = brief(name)
    axis_count = header.uint32()
    if not 1 <= axis_count <= MAX_AXES:
        raise FormatError(header.path, f"{label} has {brief(axis_count)} axes, expected 1 to {MAX_AXES}")
    shape = tuple(header.uint64() for _ in range(axis_count))[::-1]
    if not all(1 <= length <= MAX_AXIS for length in shape):
        raise FormatError(header.path, f"{label}: shape {brief(shape)} has an impossible length")
    number, start = header.uint32(), header.uint64()
    kind = BLOCK_TYPES.get(number)
    if kind is None:
        known = ", ".join(kind.name for kind in BLOCK_TYPES.values())
        found = _OTHER_TYPES.get(number, f"of the unknown type {number}")
        raise FormatError(
            header.path,
            f"{label} is {found}; this version reads {known}. Convert the model again from its folder: "
            "minicpm convert SRC DST.gguf --to gguf --dtype q4_0",
        )
    if shape[-1] % kind.elements:
        raise FormatError(header.path, f"{label}: rows of {shape[-1]} are no whole {kind.name} blocks")
    return GgufTensor(name, kind, shape, start)
