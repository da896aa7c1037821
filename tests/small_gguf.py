"""A GGUF file of a few kilobytes, in parts that a test can spoil before it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from minicpm.formats.config import DecoderConfig
from minicpm.formats.gguf import (
    F32,
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    BlockType,
    Field,
    GgufTensor,
    GgufWriter,
    ValueType,
)
from minicpm.formats.gguf_model import model_fields, stored_name
from small_models import ONE_BLOCK, random_weights

PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "c", "ab", "▁a", "▁ab", "abc"]
TOKENIZER = [
    Field("tokenizer.ggml.model", ValueType.STRING, "llama"),
    Field("tokenizer.ggml.tokens", ValueType.ARRAY, PIECES, ValueType.STRING),
    Field("tokenizer.ggml.scores", ValueType.ARRAY, [0, 0, 0, 0, *range(-4, -12, -1)], ValueType.FLOAT32),
    Field("tokenizer.ggml.token_type", ValueType.ARRAY, [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1], ValueType.INT32),
    Field("tokenizer.ggml.bos_token_id", ValueType.UINT32, 1),
    Field("tokenizer.ggml.eos_token_id", ValueType.UINT32, 2),
]

# Where a block has its float16 numbers.
HALVES = {
    Q4_1: (0, 2), Q5_0: (0,), Q5_1: (0, 2), IQ4_NL: (0,), IQ4_XS: (0,), Q2_K: (80, 82), Q3_K: (108,), Q4_K: (0, 2),
    Q5_K: (0, 2), Q6_K: (208,),
}  # fmt: skip


def random_blocks(kind: BlockType, seed: int, scales: list[float], rows: int = 6, blocks: int = 3) -> np.ndarray:
    """Any bytes, but for the float16 numbers, which are some of `scales`."""
    random = np.random.default_rng(seed)
    made = random.integers(0, 256, (rows, blocks, kind.nbytes), dtype=np.uint8)
    for at in HALVES[kind]:
        chosen = random.choice(np.array(scales, "<f2"), (rows, blocks, 1))
        made[:, :, at : at + 2] = chosen.view(np.uint8)
    return made.reshape(rows, -1)


class Parts:
    """Metadata by key and tensors by name; `write` puts them together."""

    def __init__(self, config: DecoderConfig = ONE_BLOCK):
        fields = [Field("general.architecture", ValueType.STRING, "minicpm"), *model_fields(config), *TOKENIZER]
        self.fields = {field.key: field for field in fields}
        self.tensors: dict[str, tuple[GgufTensor, np.ndarray]] = {}
        for name, values in random_weights(config, std=0.1).items():
            self.store(stored_name(name), F32, values, values.shape)

    def set(self, key: str, value: object) -> None:
        """Another value of the same type."""
        self.fields[key] = replace(self.fields[key], value=value)

    def put(self, key: str, kind: ValueType, value: object) -> None:
        self.fields[key] = Field(key, kind, value)

    def store(self, name: str, kind: BlockType, data: np.ndarray, shape: tuple[int, ...]) -> None:
        """Bytes `data` as a tensor of a shape."""
        self.tensors[name] = (GgufTensor(name, kind, shape), data)

    def write(self, path: Path) -> Path:
        writer = GgufWriter(path, list(self.fields.values()), [tensor for tensor, _ in self.tensors.values()])
        for tensor, data in self.tensors.values():
            writer.write(tensor.name, [np.ascontiguousarray(data).reshape(-1).view(np.uint8).data])
        writer.close()
        return path
