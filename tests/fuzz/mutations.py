"""Ways to damage a model file: as bytes, as JSON, as a safetensors header, as the parts of a GGUF file.

Every function takes a `random.Random` and bytes and gives other bytes; the same generator state gives the same damage.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 8, 11, 12, 13, 16, 31, 32, 33, 63, 64, 96, 127, 128, 255, 256, 4095, 65535, 65536, 1 << 20),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 40) + 1, 1 << 53, 1 << 62, (1 << 63) - 1, 1 << 63),
    *((1 << 64) - 1, 1 << 64, 10**30, -(1 << 31), -(1 << 63)),
]
FLOATS = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-320, 1e-45, 1e-38, 0.5, -1.0, 6.6e4, 1e38, 3.4e38, 1e308]
TEXTS = [
    *("", "a", "\0", "../x", "/etc/passwd", ".", "x" * 70, "x" * 5000, "ab" * 300_000, "\ud800", "▁", "\x1b[31m"),
    *("float16", "bfloat16", "F16", "BF16", "F32", "I32", "I64", "U8", "BOOL", "F64", "int", "group", "pack-quantized"),
    *(
        "model.safetensors",
        "model.norm.weight",
        "linear",
        "dynamic",
        "minicpm",
        "llama",
        "granite",
        "MiniCPMForCausalLM",
    ),
    *("compressed-tensors", "gptq", "BPE", "Sequence", "ByteFallback"),
]


def damage_bytes(rng: random.Random, data: bytes, head: int | None = None) -> bytes:
    """One change to bytes; two of three lie among the first `head`, where a format has its lengths and counts."""
    out = bytearray(data)
    if not out:
        return bytes(rng.randbytes(rng.randrange(64)))
    reach = min(len(out), head or len(out)) if rng.random() < 0.67 else len(out)
    at = rng.randrange(reach)
    kind = rng.randrange(8)
    if kind == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        width = rng.choice([1, 2, 4, 8])
        at -= at % rng.choice([1, width])
        out[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        out += rng.randbytes(rng.choice([1, 31, 32, 4096]))
    elif kind == 4:
        stop = min(len(out), at + rng.choice([1, 2, 8, 64, 1000]))
        del out[at:stop]
    elif kind == 5:
        out[at:at] = out[at : at + rng.choice([1, 4, 8, 32, 500])]
    elif kind == 6:
        size = rng.choice([1, 4, 16, 256])
        out[at : at + size] = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)])
    else:
        other, size = rng.randrange(len(out)), rng.choice([4, 8, 16, 64])
        out[at : at + size] = out[other : other + size]
    return bytes(out)


# --- JSON --------------------------------------------------------------------------------------------------------


def some_value(rng: random.Random) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(FLOATS),
        lambda: rng.choice(TEXTS),
        lambda: rng.choice([None, True, False, [], {}, [[]], {"a": 1}, [0], [1, 2], [1 << 40] * 8, [-1, 4], ["a"] * 9]),
        lambda: [0] * rng.choice([10, 1000, 100_000]),
        lambda: {str(i): i for i in range(rng.choice([3, 3000]))},
    ]
    return rng.choice(kinds)()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys)[:3000]:
        found.append((value, key))
        found += _places(value[key])
    return found


def damage_value(rng: random.Random, value: Any) -> None:
    """One change somewhere inside a JSON object or array, in place."""
    places = _places(value)
    if not places:
        return
    container, key = rng.choice(places)
    other_container, other_key = rng.choice(places)
    kind = rng.randrange(7)
    if kind < 3:
        container[key] = some_value(rng)
    elif kind == 3:
        del container[key]
    elif kind == 4:
        number = container[key]
        if isinstance(number, int | float) and not isinstance(number, bool):
            container[key] = rng.choice([number + 1, number - 1, -number, number * 2, float(number), str(number)])
        else:
            container[key] = [number] * rng.choice([1, 2, 5])
    elif kind == 5:
        container[key] = json.loads(json.dumps(other_container[other_key]))
    elif isinstance(container, dict):
        container[rng.choice([str(key) + "x", str(key).upper(), rng.choice(TEXTS), str(other_key)])] = container.pop(
            key
        )
    else:
        container.insert(key, some_value(rng))


def damage_json(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(10)
    if kind == 0:
        return damage_bytes(rng, data)
    if kind == 1:  # a key twice
        text = data.decode("utf-8", "replace")
        return text.replace("{", '{"model_type": "minicpm", "model_type": "llama", ', 1).encode()
    if kind == 2:
        depth = rng.choice([50, 900, 5000, 100_000])
        return b'{"a":' * depth + b"1" + b"}" * depth
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        damage_value(rng, value)
    made = json.dumps(value).encode()
    return made.replace(b"a", b"\xff", 1) if kind == 3 else made


# --- safetensors -------------------------------------------------------------------------------------------------


def damage_safetensors(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.1 or len(data) < 8 + length:
        return damage_bytes(rng, data, head=8 + min(length, 200))
    header, body = data[8 : 8 + length], bytearray(data[8 + length :])
    entries = json.loads(header)
    names = [name for name in entries if name != "__metadata__" and isinstance(entries[name], dict)]
    kind = rng.choices(range(2, 10), [3, 1, 1, 2, 2, 4, 0.3, 3])[0]
    if kind == 2 or len(names) < 2:
        damage_value(rng, entries)
    elif kind == 3:  # one over the other
        one, other = rng.sample(names, 2)
        entries[one]["data_offsets"] = list(entries[other].get("data_offsets", [0, 0]))
    elif kind == 4:  # a name for another tensor
        one, other = rng.sample(names, 2)
        entries[one], entries[other] = entries[other], entries[one]
    elif kind == 5:  # as many bytes of another type or shape
        entry = entries[rng.choice(names)]
        same = [("F32", "I32"), ("F16", "BF16", "I16"), ("I64", "F64"), ("U8", "I8", "BOOL")]
        entry["dtype"] = rng.choice(next((group for group in same if entry.get("dtype") in group), ("F32",)))
        if rng.random() < 0.5 and isinstance(entry.get("shape"), list):
            entry["shape"] = entry["shape"][::-1] if rng.random() < 0.5 else [*entry["shape"], 1]
    elif kind == 6:  # nothing, in huge shapes
        entries[rng.choice(TEXTS)] = {"dtype": "F32", "shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}
        if rng.random() < 0.5:
            entries[rng.choice(names)] = {"dtype": "F16", "shape": [1 << 40, 0], "data_offsets": [0, 0]}
    elif kind == 7:
        _damage_numbers(rng, body, entries, names)
    elif kind == 8:
        entries["__metadata__"] = some_value(rng)
    elif rng.random() < 0.5:  # fewer bytes than the header says, or more
        del body[rng.randrange(len(body)) :]
    else:
        body += rng.randbytes(rng.choice([1, 8, 4096]))
    text = json.dumps(entries).encode()
    if rng.random() < 0.02:  # a name twice
        text = text.replace(b"{", b'{"model.norm.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, ', 1)
    said = len(text) if rng.random() < 0.93 else rng.choice([n for n in NUMBERS if 0 <= n < 1 << 64])
    return said.to_bytes(8, "little") + text + bytes(body)


def _damage_numbers(rng: random.Random, body: bytearray, entries: dict[str, Any], names: list[str]) -> None:
    """Scales that are negative or no numbers, codes of -128, shapes that contradict, norms of infinity."""
    for name in rng.sample(names, min(len(names), rng.choice([1, 3, 30]))):
        entry = entries[name]
        width = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I64": 8}.get(str(entry.get("dtype")), 1)
        start, stop = entry["data_offsets"] if isinstance(entry.get("data_offsets"), list) else (0, 0)
        if isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= len(body):
            at = rng.randrange(start, stop, width)
            body[at : at + width] = _number_bytes(rng, width)


def _number_bytes(rng: random.Random, width: int) -> bytes:
    if width in (2, 4) and rng.random() < 0.7:
        value = rng.choice(FLOATS)
        if width == 4:
            return struct.pack("<f", value if abs(value) < 3.4e38 else float("inf"))
        return struct.pack("<e", value if abs(value) < 65504 else float("inf"))
    return (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")


# --- GGUF --------------------------------------------------------------------------------------------------------

STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass
class GgufEntry:
    """A metadata entry; `payload` is all that follows its type."""

    key: bytes
    kind: int
    payload: bytes


@dataclass
class GgufInfo:
    name: bytes
    axes: list[int]
    kind: int
    start: int


@dataclass
class GgufFile:
    """A GGUF file in pieces that need not fit together."""

    magic: bytes
    version: int
    entries: list[GgufEntry]
    infos: list[GgufInfo]
    body: bytearray
    counts: dict[str, int] = field(default_factory=dict)  # instead of the true ones

    @classmethod
    def parse(cls, data: bytes) -> GgufFile:
        """Of a valid file whose alignment is 32."""
        at = 24
        _, version, tensor_count, key_count = struct.unpack_from("<4sIQQ", data)

        def text() -> bytes:
            nonlocal at
            (length,) = struct.unpack_from("<Q", data, at)
            at += 8 + length
            return data[at - length : at]

        entries, infos = [], []
        for _ in range(key_count):
            key = text()
            (kind,) = struct.unpack_from("<I", data, at)
            at += 4
            start = at
            if kind == STRING:
                text()
            elif kind == ARRAY:
                item, count = struct.unpack_from("<IQ", data, at)
                at += 12
                for _ in range(count if item == STRING else 0):
                    text()
                at += 0 if item == STRING else count * SIZES[item]
            else:
                at += SIZES[kind]
            entries.append(GgufEntry(key, kind, data[start:at]))
        for _ in range(tensor_count):
            name = text()
            (axis_count,) = struct.unpack_from("<I", data, at)
            axes = list(struct.unpack_from(f"<{axis_count}Q", data, at + 4))
            kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * axis_count)
            at += 16 + 8 * axis_count
            infos.append(GgufInfo(name, axes, kind, offset))
        return cls(data[:4], version, entries, infos, bytearray(data[-(-at // 32) * 32 :]))

    def bytes(self) -> bytes:
        parts = [self.magic, struct.pack("<I", self.version)]
        parts.append(
            _u64(self.counts.get("tensors", len(self.infos))) + _u64(self.counts.get("keys", len(self.entries)))
        )
        for entry in self.entries:
            parts += [_text(entry.key), struct.pack("<I", entry.kind % (1 << 32)), entry.payload]
        for info in self.infos:
            axis_count = self.counts.get("axes", len(info.axes)) if info is self.infos[-1] else len(info.axes)
            parts += [_text(info.name), struct.pack("<I", axis_count % (1 << 32)), *map(_u64, info.axes)]
            parts.append(struct.pack("<I", info.kind % (1 << 32)) + _u64(info.start))
        head = b"".join(parts)
        return head + bytes(-len(head) % 32) + bytes(self.body)


def _u64(value: int) -> bytes:
    return (value % (1 << 64)).to_bytes(8, "little")


def _text(data: bytes) -> bytes:
    return _u64(len(data)) + data


def damage_gguf(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.15:
        return damage_bytes(rng, data, head=2000)
    file = GgufFile.parse(data)
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.randrange(12)
        if kind < 5 and file.entries:
            _damage_entry(rng, file)
        elif kind < 9 and file.infos:
            _damage_info(rng, file)
        elif kind == 9:
            file.counts[rng.choice(["tensors", "keys", "axes"])] = rng.choice(NUMBERS)
        elif kind == 10:
            for _ in range(rng.choice([1, 10, 200])):  # scales, codes and norms
                at = rng.randrange(len(file.body) or 1) // 2 * 2
                file.body[at : at + 2] = _number_bytes(rng, 2)
        elif rng.random() < 0.5:
            file.version = rng.choice([0, 1, 2, 4, 3 << 24, 1 << 31])
        else:
            alignment = struct.pack("<I", rng.choice(NUMBERS) % (1 << 32))
            file.entries.append(GgufEntry(b"general.alignment", 4, alignment))
    return file.bytes()


def _damage_entry(rng: random.Random, file: GgufFile) -> None:
    entry = rng.choice(file.entries)
    kind = rng.randrange(9)
    if kind == 0:
        file.entries.remove(entry)
    elif kind == 1:
        file.entries.append(entry)
    elif kind == 2:
        entry.key = rng.choice([b"", b"\xff\xfe", entry.key + b"x", rng.choice(file.entries).key, b"k" * 5000])
    elif kind == 3:
        entry.kind = rng.choice([*range(14), 255, 1 << 31])
    elif kind == 4:
        other = rng.choice(file.entries)
        entry.kind, entry.payload = other.kind, other.payload
    elif kind == 5:  # an array of arrays of arrays ...
        depth = rng.choice([1, 3, 1000])
        entry.kind, entry.payload = ARRAY, struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", 4, 0)
    elif entry.kind == ARRAY:
        item, count = struct.unpack_from("<IQ", entry.payload)
        content = entry.payload[12:]
        if item == STRING and rng.random() < 0.6:
            content = _damage_texts(rng, content, count)
        elif item in SIZES and rng.random() < 0.5:
            at = rng.randrange(len(content) or 1) // SIZES[item] * SIZES[item]
            content = content[:at] + _number_bytes(rng, SIZES[item]) + content[at + SIZES[item] :]
        else:
            item, count = rng.choice([(item, count - 1), (item, count + 1), (item, rng.choice(NUMBERS)), (4, count)])
        entry.payload = struct.pack("<I", item) + _u64(count) + content
    elif entry.kind == STRING:
        text = rng.choice([b"", b"\xff\xff", b"\0", rng.choice(TEXTS).encode("utf-8", "replace"), entry.payload[8:]])
        entry.payload = rng.choice([_text(text), _u64(rng.choice(NUMBERS)) + text])
    else:
        entry.payload = _number_bytes(rng, SIZES.get(entry.kind, 4))


def _damage_texts(rng: random.Random, content: bytes, count: int) -> bytes:
    texts, at = [], 0
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, at)
        texts.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    texts[rng.randrange(len(texts))] = rng.choice([b"", b"\xc3", b"x" * 400, rng.choice(texts), b"<0x41>", b"\0"])
    return b"".join(map(_text, texts))


def _damage_info(rng: random.Random, file: GgufFile) -> None:
    info = rng.choice(file.infos)
    kind = rng.randrange(9)
    if kind == 0:
        file.infos.remove(info)
    elif kind == 1:
        file.infos.insert(rng.randrange(len(file.infos)), info)
    elif kind == 2:
        info.name = rng.choice([b"", b"\xff", b"n" * 65, rng.choice(file.infos).name, b"blk.99.attn_q.weight"])
    elif kind == 3:
        info.kind = rng.choice([*range(42), 255, 1 << 31])
    elif kind == 4:
        info.start = rng.choice([*NUMBERS, info.start + 32, info.start + 1, rng.choice(file.infos).start])
    elif kind == 5:
        info.axes[rng.randrange(len(info.axes))] = rng.choice(NUMBERS)
    elif kind == 6:
        info.axes = rng.choice([info.axes[::-1], [*info.axes, 1], [], [*info.axes, 0], [1 << 32, 1 << 32], [1] * 9])
    elif kind == 7:
        other = rng.choice(file.infos)
        info.axes, info.kind = list(other.axes), other.kind
    else:
        del file.body[rng.randrange(len(file.body) or 1) :]


# --- files -------------------------------------------------------------------------------------------------------


def damage_file(rng: random.Random, path: Path) -> None:
    """One change to one file by the form that its name says, or something else in its place."""
    if rng.random() < 0.04:
        _replace_by_something_else(rng, path)
        return
    if not path.is_file() or path.is_symlink() or path.stat().st_size > 1 << 24:
        return
    data = path.read_bytes()
    by_suffix = {".safetensors": damage_safetensors, ".json": damage_json, ".gguf": damage_gguf}
    head = {".bin": 400}.get(path.suffix)
    try:
        made = by_suffix[path.suffix](rng, data) if path.suffix in by_suffix else damage_bytes(rng, data, head)
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError, struct.error):
        made = damage_bytes(rng, data)  # it was so damaged before that its parts are no more to be told apart
    path.write_bytes(made)


def _replace_by_something_else(rng: random.Random, path: Path) -> None:
    kind = rng.choice([0, 1, 2, 3, 4, 5] if path.suffix != ".gguf" else [0, 1, 2, 4, 5])  # a lone file may be a link
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", path.name, "nowhere", "/"]))
    elif kind == 4:
        path.write_bytes(b"")
    elif kind == 5:
        with path.open("wb") as file:
            file.truncate(rng.choice([1, 1 << 20, 1 << 40]))  # a hole: no bytes on the disk
