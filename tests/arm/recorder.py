"""A pytest plugin that writes down what tests ask of the native extension and what it answers, for replay.cc.

`pytest -p recorder --record FILE`: the extension then offers its generic kernels alone. All is little-endian and a
multiple of 8 bytes, as replay.cc says; a record is its kind and the fields that are written here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minicpm import native

# Kinds of records, as replay.cc numbers them.
WEIGHT, MODEL, EMBEDDING, LAYER, HEAD, POOL, COPY, FORWARD, DRAW = range(9)
KINDS = ("int4", "int8", "float16", "bfloat16", "float32")
CACHE_KINDS = ("int8", "bfloat16")

Field = int | float | np.ndarray | Sequence[int]


def encoded(field: Field) -> bytes:
    if isinstance(field, np.ndarray):
        data = np.ascontiguousarray(field).tobytes()
        return struct.pack("<q", len(data)) + data + bytes(-len(data) % 8)
    if isinstance(field, float):
        return struct.pack("<d", field)
    if isinstance(field, Sequence):
        return struct.pack(f"<{len(field) + 1}q", len(field), *field)
    return struct.pack("<Q", int(field) & (1 << 64) - 1)


class Trace:
    """The file. Objects are numbered, each kind by itself, in the order in which they are made."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._counts: dict[int, int] = {}

    def number(self, kind: int) -> int:
        self._counts[kind] = self._counts.get(kind, -1) + 1
        return self._counts[kind]

    def write(self, kind: int, *fields: Field) -> None:
        self._file.write(b"".join(map(encoded, (kind, *fields))))

    def close(self) -> None:
        self._file.close()


class RecordedWeight:
    def __init__(self, trace: Trace, made: Any, kind: str, data: np.ndarray, *shape: int):
        self.made, self.number = made, trace.number(WEIGHT)
        trace.write(WEIGHT, KINDS.index(kind), *(*shape, 0, 0)[:4], data)  # rows, columns, group size, half scales


class RecordedPool:
    def __init__(self, trace: Trace, made: Any, shape: Sequence[int], dtype: str):
        self.made, self.number, self._trace = made, trace.number(POOL), trace
        trace.write(POOL, CACHE_KINDS.index(dtype), *shape)

    def copy(self, source: int, destination: int) -> None:
        self.made.copy(source, destination)
        self._trace.write(COPY, self.number, source, destination)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)


class RecordedBatch:
    """The fields of a step; what it computes stands in `out` afterwards."""

    def __init__(self, extension: ModuleType, fields: dict[str, Any]):
        self.fields = {"is_hidden": False, "sink_cos": None, "sink_sin": None, "embeddings": None, **fields}
        self.made = extension.Batch(**{**fields, "pools": [pool.made for pool in fields["pools"]]})


class RecordedModel:
    def __init__(self, trace: Trace, made: Any, sizes: Sequence[int], scales: Sequence[float]):
        self._made, self._number, self._trace = made, trace.number(MODEL), trace
        trace.write(MODEL, *sizes, *(float(np.float32(scale)) for scale in scales))

    def set_embedding(self, weight: RecordedWeight) -> None:
        self._made.set_embedding(weight.made)
        self._trace.write(EMBEDDING, self._number, weight.number)

    def add_layer(self, *parts: Any) -> None:
        self._made.add_layer(*(part if isinstance(part, np.ndarray) else [w.made for w in part] for part in parts))
        fields = (part if isinstance(part, np.ndarray) else [w.number for w in part] for part in parts)
        self._trace.write(LAYER, self._number, *fields)

    def set_head(self, norm: np.ndarray, weights: Sequence[RecordedWeight]) -> None:
        self._made.set_head(norm, [weight.made for weight in weights])
        self._trace.write(HEAD, self._number, norm, [weight.number for weight in weights])

    def forward(self, batch: RecordedBatch) -> None:
        self._made.forward(batch.made)
        pools, tables, lengths, counts = (batch.fields[name] for name in ("pools", "tables", "lengths", "counts"))
        # Without a sliding window the sinks' arrays are empty, without spans the embeddings.
        names = ("token_ids", "cos", "sin", "sink_cos", "sink_sin", "embeddings", "wanted", "out")
        arrays = [batch.fields[name] for name in names]
        arrays = [np.zeros(0, np.float32) if array is None else np.asarray(array) for array in (*tables, *arrays)]
        numbers = [pool.number for pool in pools]
        is_hidden = int(batch.fields["is_hidden"])
        self._trace.write(FORWARD, self._number, is_hidden, numbers, list(lengths), list(counts), *arrays)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


class RecordedExtension:
    """The extension, where what computes is written down; the rest is its own."""

    SIZES = ("threads", "hidden", "heads", "kv_heads", "intermediate", "vocabulary", "sink_blocks", "window_blocks")
    SCALES = ("eps", "embedding_scale", "residual_scale", "logit_scale", "query_scale")

    def __init__(self, extension: ModuleType, trace: Trace):
        self._extension, self._trace = extension, trace

    def runnable_isas(self) -> list[str]:
        return ["generic"]

    def Weight(self, kind: str, data: np.ndarray, *shape: int) -> RecordedWeight:  # noqa: N802
        return RecordedWeight(self._trace, self._extension.Weight(kind, data, *shape), kind, data, *shape)

    def KvPool(self, layers: int, kv_heads: int, head_dim: int, blocks: int, dtype: str = "int8") -> RecordedPool:  # noqa: N802
        shape = (layers, kv_heads, head_dim, blocks)
        return RecordedPool(self._trace, self._extension.KvPool(*shape, dtype), shape, dtype)

    def Batch(self, **fields: Any) -> RecordedBatch:  # noqa: N802
        return RecordedBatch(self._extension, fields)

    def Model(self, **arguments: Any) -> RecordedModel:  # noqa: N802
        made = self._extension.Model(**arguments)
        sizes, scales = ([arguments[name] for name in names] for names in (self.SIZES, self.SCALES))
        return RecordedModel(self._trace, made, sizes, scales)

    def draw(self, isa: str, scores: np.ndarray, temperature: float, *rest: Any) -> int:
        before = scores.copy()
        token_id: int = self._extension.draw(isa, scores, temperature, *rest)
        top_k, top_p, min_p, seed, choice, position = rest
        fields = (float(np.float32(temperature)), top_k, float(top_p), float(min_p), seed, choice, position)
        self._trace.write(DRAW, before, *fields, token_id)
        return token_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extension, name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, required=True, help="write what the native extension computes to this file")


def pytest_configure(config: pytest.Config) -> None:
    trace = Trace(config.getoption("--record"))
    recorded = RecordedExtension(native.extension(), trace)
    native.extension = lambda: recorded  # type: ignore[assignment, return-value]
    config.add_cleanup(trace.close)
