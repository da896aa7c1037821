"""How the pieces of a vocabulary spell bytes: SentencePiece's way, and the byte-level way of GPT-2.

SentencePiece writes a blank as `▁` and a byte without a piece as `<0x0A>`. A byte-level vocabulary writes every byte as
one printable character, so each of its pieces is a string of bytes that may end inside a character.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Protocol

SPACE_MARK = "▁"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> str:
    """GPT-2's table (bytes_to_unicode): printable bytes of Latin-1 are themselves, the others U+0100 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_LETTERS = _byte_letters()  # the character of byte b is BYTE_LETTERS[b]
_BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


class Spelling(Protocol):
    """Pieces to bytes and back. Immutable."""

    @property
    def strips_first_blank(self) -> bool:
        """Whether decoding takes one leading blank away, because encoding put one there."""

    @property
    def errors(self) -> str:
        """The error handler that decodes bytes which are no UTF-8."""

    def piece_bytes(self, piece: str, is_added: bool) -> bytes:
        """The bytes that a piece adds to a text. An added token is not one of the model's own pieces."""

    def byte_piece(self, byte: int) -> str:
        """The piece of a single byte."""


def _replace_malformed_bytes(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for every malformed byte, as SentencePiece decodes; Python's own 'replace' merges some."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


_ONE_PER_BYTE = "minicpm.one-per-byte"
codecs.register_error(_ONE_PER_BYTE, _replace_malformed_bytes)


@dataclass(frozen=True)
class SentencePieceSpelling:
    strips_first_blank: bool
    errors: str = _ONE_PER_BYTE

    def piece_bytes(self, piece: str, is_added: bool) -> bytes:
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE_MARK, " ").encode()

    def byte_piece(self, byte: int) -> str:
        return f"<0x{byte:02X}>"


@dataclass(frozen=True)
class ByteLevelSpelling:
    strips_first_blank: bool = False
    errors: str = "replace"  # as the tokenizers library decodes: one U+FFFD for each cut-off sequence

    def piece_bytes(self, piece: str, is_added: bool) -> bytes:
        if is_added or not all(letter in _BYTE_OF_LETTER for letter in piece):
            return piece.encode()
        return bytes(_BYTE_OF_LETTER[letter] for letter in piece)

    def byte_piece(self, byte: int) -> str:
        return BYTE_LETTERS[byte]
