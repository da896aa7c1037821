"""tokenizer.model, SentencePiece's own file: a protocol buffer, read with every length checked before it is believed.

Formats that carry scores and types on (GGUF) take them from here; a BPE tokenizer.json holds merges instead.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from minicpm.errors import FormatError
from minicpm.files import read_bytes

# The real file has 1,994,871 bytes and its longest piece 16 characters.
MAX_FILE_BYTES = 16 << 20
MAX_PIECES = 1 << 19
MAX_PIECE_CHARACTERS = 256


class PieceType(IntEnum):
    """What a piece is for; the numbers are sentencepiece_model.proto's, and GGUF's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceModel:
    """A BPE model: pieces, scores and types have one entry per token id."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[PieceType, ...]
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int


def read_sentencepiece(path: str | Path) -> SentencePieceModel:
    """Read tokenizer.model. Raises FormatError if it is damaged, hostile, or no BPE model with identity normaliser."""
    path = Path(path)
    data = read_bytes(path, MAX_FILE_BYTES)
    try:
        return _read_model(memoryview(data))
    except _Malformed as error:
        raise FormatError(path, f"not a SentencePiece model: {error}") from None


def bpe_merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Pairs to merge, best first: every way to split a piece in two pieces, by falling score, then by ids."""
    ids = {piece: i for i, piece in enumerate(model.pieces)}
    ranked = sorted(range(len(model.pieces)), key=lambda i: -model.scores[i])  # stable: equal scores stay in id order
    merges: list[tuple[str, str]] = []
    for i in ranked:
        if model.types[i] in (PieceType.UNKNOWN, PieceType.CONTROL):
            continue
        piece = model.pieces[i]
        splits = [
            (left, right)
            for cut in range(1, len(piece))
            if (left := piece[:cut]) in ids and (right := piece[cut:]) in ids
        ]
        if len(splits) > 1:
            splits.sort(key=lambda split: (ids[split[0]], ids[split[1]]))
        merges += splits
    return merges


def sentencepiece_bytes(model: SentencePieceModel) -> bytes:
    """The content of a tokenizer.model file with this model (sentencepiece_model.proto), for read_sentencepiece."""
    trainer = _numbers({3: 2, 4: len(model.pieces), 35: int(model.byte_fallback)})
    trainer += _numbers({40: model.unk_id, 41: model.bos_id, 42: model.eos_id, 43: model.pad_id})
    # 5 is escape_whitespaces: a blank becomes the piece's mark, as in every model of this kind.
    flags = {3: int(model.add_dummy_prefix), 4: int(model.remove_extra_whitespaces), 5: 1}
    normalizer = _lengthened(1, b"identity") + _numbers(flags)
    pieces = (
        _lengthened(1, text.encode()) + bytes([2 << 3 | _FIXED32]) + struct.pack("<f", score) + _numbers({3: int(kind)})
        for text, score, kind in zip(model.pieces, model.scores, model.types)
    )
    return b"".join([*(_lengthened(1, piece) for piece in pieces), _lengthened(2, trainer), _lengthened(3, normalizer)])


def _numbers(fields: dict[int, int]) -> bytes:
    """Fields of whole numbers; a negative one takes 64 bits."""
    return b"".join(
        _encoded(number << 3 | _VARINT) + _encoded(value & (1 << 64) - 1) for number, value in fields.items()
    )


def _lengthened(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


class _Malformed(Exception):
    """The bytes are no such message; the caller adds the file's name."""


# Wire types of the protocol buffer encoding.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _read_model(data: memoryview) -> SentencePieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[PieceType] = []
    trainer: dict[int, int | memoryview] = {}
    normalizer: dict[int, int | memoryview] = {}
    denormalizer: dict[int, int | memoryview] = {}
    for field, value in _fields(data):
        if field == 1:
            piece, score, kind = _read_piece(_message(value, "pieces"), len(pieces))
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
            if len(pieces) > MAX_PIECES:
                raise _Malformed(f"more than {MAX_PIECES:,} pieces")
        elif field == 2:
            trainer = dict(_fields(_message(value, "trainer_spec")))
        elif field == 3:
            normalizer = dict(_fields(_message(value, "normalizer_spec")))
        elif field == 5:
            denormalizer = dict(_fields(_message(value, "denormalizer_spec")))
    if not pieces:
        raise _Malformed("no pieces in it")
    if len(set(pieces)) != len(pieces):
        raise _Malformed("a piece appears twice")
    if _integer(trainer, 3, default=1) != 2:
        raise _Malformed("model_type is not BPE, which every MiniCPM tokenizer is")
    if _message(normalizer.get(2, memoryview(b"")), "precompiled_charsmap").nbytes:
        raise _Malformed("it normalises characters; MiniCPM's tokenizers keep them as they are")
    if _message(denormalizer.get(2, memoryview(b"")), "precompiled_charsmap").nbytes:
        raise _Malformed("it changes characters when decoding (denormalizer_spec); MiniCPM's tokenizers do not")
    if not _integer(normalizer, 5, default=1):
        raise _Malformed("escape_whitespaces is off; expected pieces that spell a blank as ▁")
    if _integer(trainer, 24, default=0):
        raise _Malformed("treat_whitespace_as_suffix is on; expected the blank in front of a word")
    model = SentencePieceModel(
        pieces=tuple(pieces),
        scores=tuple(scores),
        types=tuple(types),
        byte_fallback=bool(_integer(trainer, 35, default=0)),
        add_dummy_prefix=bool(_integer(normalizer, 3, default=1)),
        remove_extra_whitespaces=bool(_integer(normalizer, 4, default=1)),
        unk_id=_integer(trainer, 40, default=0),
        bos_id=_integer(trainer, 41, default=1),
        eos_id=_integer(trainer, 42, default=2),
        pad_id=_integer(trainer, 43, default=-1),
    )
    if not 0 <= model.unk_id < len(pieces) or types[model.unk_id] != PieceType.UNKNOWN:
        raise _Malformed(f"unk_id {model.unk_id} is not its unknown piece")
    for name, token_id in (("bos_id", model.bos_id), ("eos_id", model.eos_id), ("pad_id", model.pad_id)):
        if not -1 <= token_id < len(pieces):
            raise _Malformed(f"{name} {token_id} is not the id of a piece")
    return model


def _read_piece(data: memoryview, token_id: int) -> tuple[str, float, PieceType]:
    fields = dict(_fields(data))
    raw_score = fields.get(2, memoryview(b"\0\0\0\0"))
    try:
        piece = str(_message(fields.get(1, memoryview(b"")), "piece"), "utf-8")
        kind = PieceType(_integer(fields, 3, default=PieceType.NORMAL))
        (score,) = struct.unpack("<f", raw_score)  # type: ignore[arg-type]
    except (ValueError, TypeError, struct.error):
        raise _Malformed(f"piece {token_id} is not text with a score and a type") from None
    if not 0 < len(piece) <= MAX_PIECE_CHARACTERS:
        raise _Malformed(f"piece {token_id} has {len(piece)} characters, expected 1 to {MAX_PIECE_CHARACTERS}")
    if score != score:
        raise _Malformed(f"piece {token_id} has a score that is no number")
    return piece, score, kind


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Fields of one message as (number, value): int of a varint, bytes of everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire_type = key & 7
        if wire_type == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise _Malformed(f"unknown wire type {wire_type}")
        if size > len(data) - at:
            raise _Malformed(f"a field of {size:,} bytes where {len(data) - at:,} are left")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Malformed("it ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Malformed("a number of more than ten bytes")


def _message(value: int | memoryview, name: str) -> memoryview:
    if isinstance(value, int):
        raise _Malformed(f"{name} is a number")
    return value


def _integer(fields: dict[int, int | memoryview], field: int, *, default: int) -> int:
    value = fields.get(field, default)
    if not isinstance(value, int):
        raise _Malformed(f"field {field} is not a number")
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value  # int32 fields store -1 in 64 bits
