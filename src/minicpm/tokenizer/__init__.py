"""Text <-> token ids: `Tokenizer` for whole texts, `Detokenizer` for streams."""

from minicpm.tokenizer.byte_level import PRE_TOKENIZERS, ByteLevelVocabulary
from minicpm.tokenizer.loading import (
    adds_bos,
    build_from_sentencepiece,
    prepends_blank,
    read_tokenizer_config,
    special_token,
)
from minicpm.tokenizer.probes import PROBES, first_difference
from minicpm.tokenizer.sentencepiece import PieceType, SentencePieceModel, bpe_merges, read_sentencepiece
from minicpm.tokenizer.tokenizer import MAX_TEXT_CHARACTERS, Detokenizer, Tokenizer

__all__ = [
    "MAX_TEXT_CHARACTERS",
    "PRE_TOKENIZERS",
    "PROBES",
    "ByteLevelVocabulary",
    "Detokenizer",
    "PieceType",
    "SentencePieceModel",
    "Tokenizer",
    "adds_bos",
    "bpe_merges",
    "build_from_sentencepiece",
    "first_difference",
    "prepends_blank",
    "read_sentencepiece",
    "read_tokenizer_config",
    "special_token",
]
