"""Text <-> token ids, whole or one token at a time.

`tokenizer.json` is loaded verbatim by the `tokenizers` library: that pipeline is the one MiniCPM was trained and served
with, and transformers 5 rebuilds another one from the same file (docs/chat-and-sampling.md). Where a folder holds only
`tokenizer.model`, the same pipeline is built from it; byte_level.py builds that of a GGUF file with merges. This file
knows nothing of chats, models or sampling.

Decoding is ours: every token is a fixed string of bytes, so a text decodes in one join and a stream decodes token by
token to the very same characters.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, brief
from minicpm.tokenizer.byte_level import ByteLevelVocabulary, build_from_vocabulary, vocabulary_of
from minicpm.tokenizer.loading import (
    adds_bos,
    build_from_sentencepiece,
    load_library_tokenizer,
    prepends_blank,
    read_tokenizer_config,
    special_token,
    spelling_of,
)
from minicpm.tokenizer.sentencepiece import SentencePieceModel
from minicpm.tokenizer.spelling import ByteLevelSpelling

# Room for the longest context (131,072 tokens) in English; rare characters of that number take 3 s and 0.5 GB.
MAX_TEXT_CHARACTERS = 1 << 20


class Tokenizer:
    """A MiniCPM tokenizer; make one with `Tokenizer.from_folder(path)`. Safe to share between threads."""

    def __init__(self, library_tokenizer: Any, config: dict[str, Any], source: Path):
        self._library = library_tokenizer
        self._source = source
        # A file may carry the truncation of somebody's training run; ids must not depend on it. Of the post-processor
        # <s> is all that is wanted, and the configuration decides about that.
        self._library.no_truncation()
        self._library.no_padding()
        self._library.post_processor = None
        self.vocab_size: int = self._library.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._special_id(config, "bos_token")
        self.eos_token_id = self._special_id(config, "eos_token")
        self.adds_bos = adds_bos(config, source.parent) and self.bos_token_id is not None
        self.spelling = spelling_of(self._library, source)
        added = self._library.get_added_tokens_decoder()
        self._added_token_ids = frozenset(added)
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes_by_id: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a model folder: tokenizer.json, or tokenizer.model where that is all there is.

        Raises FormatError naming the file when it is missing, damaged, hostile or of another kind.
        """
        folder = Path(path)
        config = read_tokenizer_config(folder)
        library_tokenizer, source = load_library_tokenizer(folder, config)
        return cls(library_tokenizer, config, source)

    @classmethod
    def from_sentencepiece(cls, model: SentencePieceModel, config: dict[str, Any], source: Path) -> Tokenizer:
        """The tokenizer of a model read from elsewhere, e.g. from a GGUF file; `config` is a tokenizer_config.json."""
        return cls(build_from_sentencepiece(model, prepends_blank(config, source.parent)), config, source)

    @classmethod
    def from_byte_level(cls, vocabulary: ByteLevelVocabulary, config: dict[str, Any], source: Path) -> Tokenizer:
        """The tokenizer of a byte-level vocabulary, e.g. from a GGUF file; `config` is a tokenizer_config.json."""
        return cls(build_from_vocabulary(vocabulary, source), config, source)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text by the tokenizer's word; a model's generation_config may name more."""
        return () if self.eos_token_id is None else (self.eos_token_id,)

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Ids of `text`, with `<s>` in front if `add_bos` and the tokenizer's configuration asks for it.

        Special tokens written in the text (`</s>`) become their ids, as in every 2024 caller.
        Raises ValueError for what is no text: another type, lone surrogates, more than MAX_TEXT_CHARACTERS.
        """
        _check_text(text)
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return self._with_bos(ids) if add_bos else ids

    def encode_batch(self, texts: Sequence[str], *, add_bos: bool = True) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        for text in texts:
            _check_text(text)
        batch = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._with_bos(encoding.ids) if add_bos else encoding.ids for encoding in batch]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
        """Text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids beyond the vocabulary are nothing.

        The blank that encoding puts in front of a text is taken away again, once, at the very start; not so where the
        text `continues` another one, whose end and this blank belong together.
        """
        data = b"".join(self.token_bytes(i, skip_special_tokens=skip_special_tokens) for i in ids)
        text = data.decode("utf-8", self.spelling.errors)
        return text.removeprefix(" ") if self.spelling.strips_first_blank and not continues else text

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = False) -> bytes:
        """What a token adds to the text, in UTF-8: possibly a part of a character, possibly nothing."""
        if skip_special_tokens and token_id in self.special_token_ids:
            return b""
        try:
            return self._bytes_by_id[token_id]
        except KeyError:
            data = self._bytes_by_id[token_id] = self._piece_bytes(token_id)
            return data

    def id_to_token(self, token_id: int) -> str | None:
        """The piece as the vocabulary spells it (`▁the` or `Ġthe`, `<0x0A>` or `Ċ`), or None."""
        token: str | None = self._library.id_to_token(_checked_id(token_id))
        return token

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._library.token_to_id(token)
        return token_id

    def byte_token_id(self, byte: int) -> int | None:
        """The id of the piece that is a single byte, None where the vocabulary has none."""
        return self.token_to_id(self.spelling.byte_piece(byte))

    def to_json(self) -> str:
        """The text of a tokenizer.json with this pipeline; `<s>` is for tokenizer_config.json to decide."""
        text: str = self._library.to_str(pretty=True)
        return text

    def byte_level_vocabulary(self) -> ByteLevelVocabulary | None:
        """What GGUF stores of a byte-level tokenizer, None for SentencePiece's.

        Raises FormatError where GGUF has no name for the way that it splits texts.
        """
        if not isinstance(self.spelling, ByteLevelSpelling):
            return None
        return vocabulary_of(self._library, self._source)

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self.id_to_token(token_id)
        if piece is None:
            return b""  # a head padded beyond the vocabulary (MiniCPM-2B-128k has 122,760 rows)
        return self.spelling.piece_bytes(piece, token_id in self._added_token_ids)

    def _with_bos(self, ids: list[int]) -> list[int]:
        return [self.bos_token_id, *ids] if self.adds_bos else ids  # type: ignore[list-item]

    def _special_id(self, config: dict[str, Any], key: str) -> int | None:
        named = special_token(config, key)
        if named is None:
            return None
        token_id = self.token_to_id(named) if isinstance(named, str) else None
        if token_id is None and key in config:
            raise FormatError(self._source, f"has no token {brief(named)}, which tokenizer_config.json names as {key}")
        return token_id


class Detokenizer:
    """Turns a stream of ids into text that never needs to be taken back.

    All pieces of `push` and the last one of `flush` join to exactly `tokenizer.decode(ids)`, with the same keywords;
    each costs the same, however long the text already is. A text that `continues` a prompt can be put behind it as it
    is: prompt and pieces are what both decode to together, unless the border cuts a character.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, continues: bool = False):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokenizer.spelling.errors)
        self._at_start = tokenizer.spelling.strips_first_blank and not continues

    def push(self, token_id: int) -> str:
        """Text that is final once this token is known; empty while a character is incomplete."""
        data = self._tokenizer.token_bytes(token_id, skip_special_tokens=self._skip_special_tokens)
        return self._without_first_blank(self._utf8.decode(data))

    def flush(self) -> str:
        """What is left when no more tokens come: U+FFFD for a character that never ended."""
        return self._without_first_blank(self._utf8.decode(b"", final=True))

    def _without_first_blank(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text must be a str, got {type(text).__name__}")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"text has {len(text):,} characters, at most {MAX_TEXT_CHARACTERS:,} are encoded at once")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds half of a surrogate pair ({text[error.start]!r} at character {error.start}), "
            "which is no Unicode character; decode the input as UTF-8 first"
        ) from None


def _checked_id(token_id: int) -> int:
    token_id = int(token_id)
    if not 0 <= token_id < 1 << 31:
        raise ValueError(f"a token id must be from 0 to 2**31 - 1, got {token_id}")
    return token_id
