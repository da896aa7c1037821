"""Types of the native extension (csrc/bindings.cc)."""

from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

def runnable_isas() -> list[str]: ...
def packed_bytes(kind: str, rows: int, columns: int, group_size: int, has_half_scales: bool) -> int: ...
def pack(
    kind: str,
    columns: int,
    group_size: int,
    has_half_scales: bool,
    sources: list[tuple[Bytes, Bytes]],
    out: Bytes,
) -> None: ...
def uniform53(seed: int, choice: int, position: int) -> int: ...
def draw(
    isa: str,
    scores: Floats,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    choice: int,
    position: int,
) -> int: ...

class Machine:
    def __init__(self, *, isa: str, threads: int, memory_bytes: int) -> None: ...
    def read_bandwidth(self) -> float: ...
    def product_rate(self, seconds: float) -> float: ...
    @property
    def threads(self) -> int: ...

class Weight:
    def __init__(
        self, kind: str, data: Bytes, rows: int, columns: int, group_size: int = 0, has_half_scales: bool = False
    ) -> None: ...

class KvPool:
    def __init__(self, layers: int, kv_heads: int, head_dim: int, blocks: int, dtype: str = "int8") -> None: ...
    @property
    def blocks(self) -> int: ...
    def copy(self, source: int, destination: int) -> None: ...
    def release(self, blocks: SequenceOf[int]) -> None: ...

class Batch:
    def __init__(
        self,
        *,
        pools: list[KvPool],
        tables: list[Integers],
        lengths: list[int],
        counts: list[int],
        token_ids: Integers,
        cos: Floats,
        sin: Floats,
        wanted: Integers,
        out: Floats,
        is_hidden: bool = False,
        sink_cos: Floats | None = None,
        sink_sin: Floats | None = None,
        embeddings: Floats | None = None,
    ) -> None: ...

class Model:
    def __init__(
        self,
        *,
        isa: str,
        threads: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        intermediate: int,
        vocabulary: int,
        eps: float,
        embedding_scale: float,
        residual_scale: float,
        logit_scale: float,
        query_scale: float,
        sink_blocks: int = 0,
        window_blocks: int = 0,
    ) -> None: ...
    def set_embedding(self, weight: Weight) -> None: ...
    def add_layer(
        self,
        attention_norm: Floats,
        qkv: list[Weight],
        o: list[Weight],
        mlp_norm: Floats,
        gate_up: list[Weight],
        down: list[Weight],
    ) -> None: ...
    def set_head(self, norm: Floats, weights: list[Weight]) -> None: ...
    def forward(self, batch: Batch) -> None: ...
    @property
    def threads(self) -> int: ...
