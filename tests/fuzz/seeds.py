"""Valid models of a few kilobytes in every form that is read: what the fuzzer damages."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np

from minicpm.engine import packed
from minicpm.engine.native import NativeBackend
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.convert import convert
from minicpm.formats.gguf import Q6_K
from minicpm.quant.folder import quantize_folder
from minicpm.quant.gguf import write_gguf
from minicpm.tokenizer.loading import build_from_sentencepiece
from minicpm.tokenizer.sentencepiece import read_sentencepiece
from small_gguf import PIECES, TINY, TOKENIZER, Parts
from small_models import random_weights, write_model

# Of the float, and of the packed ones whose cache is damaged and not their folder.
GGUFS = ("float32", "float16", "bfloat16", "q8_0", "q4_0")


def make_seeds(root: Path) -> dict[str, Path]:
    """Name -> folder or file. Beside `packed` lies `packed-home`, whose cache holds its packed file."""
    source = write_model(root / "float32", TINY, random_weights(TINY, std=0.1))
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
    seeds["q6_k.gguf"] = _q6_k(root / "q6_k.gguf")
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


def _q6_k(path: Path) -> Path:
    """Q6_K embedding, whose blocks are 256 numbers; the other matrices are float32."""
    from dataclasses import replace

    config = replace(TINY, hidden_size=256, intermediate_size=32, num_hidden_layers=1, num_attention_heads=8)
    parts = Parts(config)
    blocks = np.random.default_rng(0).integers(0, 256, (config.vocab_size, Q6_K.nbytes), dtype=np.uint8)
    blocks[:, 208:] = np.full((config.vocab_size, 1), 1e-4, "<f2").view(np.uint8)
    parts.store("token_embd.weight", Q6_K, blocks, (config.vocab_size, config.hidden_size))
    return parts.write(path)


def _packed(root: Path) -> Path:
    quantize_folder(root / "float32", root / "packed", preset="int4")
    os.environ["MINICPM_HOME"] = str(root / "packed-home")
    packed.SMALLEST_FILE_BYTES = 0
    NativeBackend(open_checkpoint(root / "packed", allow_quantized=True), 1)
    return root / "packed"
