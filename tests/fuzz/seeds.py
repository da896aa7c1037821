"""Valid models of a few kilobytes in every form that is read: what the fuzzer damages."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

from minicpm.engine.backends import packed
from minicpm.engine.backends.native import NativeBackend
from minicpm.export.convert import convert
from minicpm.export.gguf import write_gguf
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, BlockType
from minicpm.tokenizer.loading import build_from_sentencepiece
from minicpm.tokenizer.sentencepiece import read_sentencepiece
from small_gguf import PIECES, TOKENIZER, Parts, random_blocks
from small_models import ONE_BLOCK, random_weights, write_model

# Of the float, and of the packed ones whose cache is damaged and not their folder.
GGUFS = ("float32", "float16", "bfloat16", "q8_0", "q4_0")
# Files of types that are widened: what is stored as what, and the widths that their blocks divide.
BLOCKS: dict[str, tuple[dict[str, BlockType], int, int]] = {
    "blocks-of-32.gguf": (
        {
            "blk.0.attn_q.weight": Q4_1,
            "blk.0.attn_k.weight": Q5_0,
            "blk.0.attn_v.weight": Q5_1,
            "blk.0.ffn_up.weight": IQ4_NL,
        },
        32,
        64,
    ),
    "blocks-of-256.gguf": (
        {
            "token_embd.weight": Q6_K,
            "blk.0.attn_q.weight": Q4_K,
            "blk.0.attn_k.weight": Q5_K,
            "blk.0.attn_v.weight": IQ4_XS,
            "blk.0.attn_output.weight": Q6_K,
            "blk.0.ffn_gate.weight": Q2_K,
            "blk.0.ffn_up.weight": Q3_K,
        },
        256,
        32,
    ),
}


def make_seeds(root: Path) -> dict[str, Path]:
    """Name -> folder or file. Beside `packed` lies `packed-home`, whose cache holds its packed file."""
    source = write_model(root / "float32", ONE_BLOCK, random_weights(ONE_BLOCK, std=0.1))
    scores, types = (next(f.value for f in TOKENIZER if f.key.endswith(key)) for key in ("scores", "token_type"))
    (source / "tokenizer.model").write_bytes(sentencepiece_bytes(PIECES, scores, types))
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.8, "eos_token_id": [2, 1]}))
    seeds = {"float32": source}

    for preset in ("int4", "int8"):
        quantize_folder(source, root / preset, preset=preset)
        seeds[preset] = root / preset
    library = build_from_sentencepiece(read_sentencepiece(source / "tokenizer.model"), True)
    (root / "int8" / "tokenizer.model").unlink()
    (root / "int8" / "tokenizer.json").write_text(library.to_str(), encoding="utf-8")

    convert(source, root / "sharded", to="hf", dtype="bfloat16", max_shard_bytes=20_000)
    seeds["sharded"] = root / "sharded"
    for dtype in GGUFS:
        write_gguf(source, root / f"{dtype}.gguf", dtype=dtype)
        seeds[f"{dtype}.gguf"] = root / f"{dtype}.gguf"
    for name, (kinds, hidden_size, intermediate_size) in BLOCKS.items():
        seeds[name] = _of_blocks(root / name, kinds, hidden_size, intermediate_size)
    seeds["packed"] = _packed(root)
    return seeds


def sentencepiece_bytes(pieces: list[str], scores: list[float], types: list[int]) -> bytes:
    """A tokenizer.model: the messages of sentencepiece_model.proto that MiniCPM's has."""

    def message(field: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes([field << 3 | 2, len(content)]) + content

    entries = [
        message(1, message(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))
        for piece, score, kind in zip(pieces, scores, types, strict=True)
    ]
    return b"".join(entries) + message(2, bytes([3 << 3, 2]))  # trainer_spec: BPE


def _of_blocks(path: Path, kinds: dict[str, BlockType], hidden_size: int, intermediate_size: int) -> Path:
    """Some tensors of other types, filled with any codes; the other matrices are float32."""
    heads = hidden_size // 32
    config = replace(
        ONE_BLOCK,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    parts = Parts(config)
    for name, kind in kinds.items():
        N, K = parts.tensors[name][0].shape
        parts.store(name, kind, random_blocks(kind, 0, [1e-4], N, K // kind.elements), (N, K))
    return parts.write(path)


def _packed(root: Path) -> Path:
    quantize_folder(root / "float32", root / "packed", preset="int4")
    os.environ["MINICPM_HOME"] = str(root / "packed-home")
    packed.SMALLEST_FILE_BYTES = 0
    NativeBackend(open_checkpoint(root / "packed", allow_quantized=True), 1)
    return root / "packed"
