"""A new tokenizer from texts: a SentencePiece BPE in the layout of MiniCPM-2B's, learned by the `tokenizers` library.

Byte fallback, single digits, no blank in front of a text, and the turn markers as pieces of their own, so that one of
them costs a token. Knows texts and files only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from minicpm.errors import DataError
from minicpm.files import write_text
from minicpm.tokenizer.loading import (
    CONFIG_FILE,
    JSON_FILE,
    MAX_VOCAB_SIZE,
    SENTENCEPIECE_FILE,
    load_library_tokenizer,
)
from minicpm.tokenizer.sentencepiece import MAX_PIECE_CHARACTERS, PieceType
from minicpm.tokenizer.spelling import SPACE_MARK

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# At most 1 / ALPHABET_SHARE of the learned pieces are single characters. Rarer characters are spelled in bytes.
ALPHABET_SHARE = 3
MAX_LEARNED_CHARACTERS = 16  # the longest piece of MiniCPM-2B's


def train_tokenizer(
    texts: Iterable[str], folder: Path, *, vocab_size: int, markers: Sequence[str], chat_template: str, context: int
) -> int:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json into `folder`; return the number of pieces.

    There are at most `vocab_size` pieces, fewer where the texts hold no more. `markers` stay whole in every text.
    Raises ValueError for a size that is out of range, DataError where the texts hold nothing to learn.
    """
    first = len(SPECIAL) + len(markers) + len(BYTES)
    if not first + 64 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(f"the vocabulary must have from {first + 64} to {MAX_VOCAB_SIZE:,} pieces, got {vocab_size}")
    learned, characters = _learn(texts, vocab_size - first, markers)
    if not characters:
        raise DataError("the data hold no text to learn a tokenizer from")
    pieces = [
        *((piece, 0.0, PieceType.UNKNOWN if piece == SPECIAL[0] else PieceType.CONTROL) for piece in SPECIAL),
        *((piece, 0.0, PieceType.USER_DEFINED) for piece in markers),
        *((piece, 0.0, PieceType.BYTE) for piece in BYTES),
        # A score is the negative rank, as in the official tokenizer.model.
        *((piece, -float(rank), PieceType.NORMAL) for rank, piece in enumerate([*learned, *characters])),
    ]
    (folder / SENTENCEPIECE_FILE).write_bytes(_sentencepiece_file(pieces))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "unk_token": SPECIAL[0],
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": context,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": chat_template,
    }
    write_text(folder / CONFIG_FILE, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
    load_library_tokenizer(folder, config)[0].save(str(folder / JSON_FILE))
    return len(pieces)


def _learn(texts: Iterable[str], size: int, markers: Sequence[str]) -> tuple[list[str], list[str]]:
    """The pieces that merging yields, best first, and the single characters, most frequent first; `size` in all."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme="never"), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        limit_alphabet=size // ALPHABET_SHARE,
        max_token_length=MAX_LEARNED_CHARACTERS,
        show_progress=False,
    )
    library.train_from_iterator(_lines(texts, markers), trainer)
    vocab = library.get_vocab()
    pieces = [piece for piece in sorted(vocab, key=vocab.__getitem__) if piece not in markers]
    return [piece for piece in pieces if len(piece) > 1], [piece for piece in pieces if len(piece) == 1]


def _lines(texts: Iterable[str], markers: Sequence[str]) -> Iterator[str]:
    """What lies between markers: no piece goes over one."""
    for text in texts:
        parts = [text]
        for marker in markers:
            parts = [part for longer in parts for part in longer.split(marker)]
        yield from filter(None, parts)


# --- sentencepiece_model.proto: ModelProto {1: pieces, 2: trainer_spec, 3: normalizer_spec} ------------------------


def _sentencepiece_file(pieces: Sequence[tuple[str, float, PieceType]]) -> bytes:
    """A model file: field numbers as in sentencepiece.py, which reads it."""
    out = bytearray()
    for piece, score, kind in pieces:
        assert len(piece) <= MAX_PIECE_CHARACTERS
        out += _message(1, _message(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
    byte_fallback, bpe = _number(35, 1), _number(3, 2)
    out += _message(2, bpe + _number(4, len(pieces)) + byte_fallback + _number(40, 0) + _number(41, 1) + _number(42, 2))
    no_dummy_prefix, keep_whitespace = _number(3, 0), _number(4, 0)
    return bytes(out + _message(3, _message(1, b"identity") + no_dummy_prefix + keep_whitespace))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
