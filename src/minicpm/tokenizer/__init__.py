"""Text <-> token ids: `Tokenizer` for whole texts, `Detokenizer` for streams."""

from minicpm.tokenizer.loading import read_tokenizer_config
from minicpm.tokenizer.sentencepiece import PieceType, SentencePieceModel, bpe_merges, read_sentencepiece
from minicpm.tokenizer.tokenizer import MAX_TEXT_CHARACTERS, Detokenizer, Tokenizer

__all__ = [
    "MAX_TEXT_CHARACTERS",
    "Detokenizer",
    "PieceType",
    "SentencePieceModel",
    "Tokenizer",
    "bpe_merges",
    "read_sentencepiece",
    "read_tokenizer_config",
]
