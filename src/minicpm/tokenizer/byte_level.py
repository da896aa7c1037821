"""Byte-level BPE: a text is cut by regular expressions, each part is spelled in bytes, and bytes are merged by rank.

A GGUF file names its expressions (`tokenizer.ggml.pre`) and llama.cpp knows them by that name, so they are listed here;
a tokenizer.json holds its own, of which only the known ones are let through: the library's regular expressions
backtrack, and a hostile one could make a prompt take for ever.

Source of names, expressions and flags: llama.cpp's `llm_tokenizer_bpe` and vocabulary loader. It applies the
expressions one after another, each to every part that the one before left or matched, which is what a sequence of
isolating Splits does in the tokenizers library.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, brief
from minicpm.tokenizer.sentencepiece import PieceType
from minicpm.tokenizer.spelling import BYTE_LETTERS

# GPT-2's expression. The library's own copy also has `|\s+`, which matches what else remains as a part of its own.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT2_WHOLE = _GPT2 + r"|\s+"
# Contractions in any case. llama.cpp spells the cases out, so a long s (ſ) is no s there.
_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BOTH_CASES = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_DIGIT, _DIGITS, _THREE_DIGITS = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"


def _words(contractions: str, numbers: str) -> str:
    """The expression of GPT-4's kind, with another rule for numbers in every family."""
    return (
        rf"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class PreTokenizer:
    """What a value of `tokenizer.ggml.pre` means."""

    expressions: tuple[str, ...]
    ignores_merges: bool = False  # a part that is a piece as a whole is taken without merging
    adds_bos: bool = False  # unless the file says otherwise


_LLAMA_3 = PreTokenizer((_words(_BOTH_CASES, _THREE_DIGITS),), ignores_merges=True, adds_bos=True)
PRE_TOKENIZERS = {
    "minicpm5": PreTokenizer((_THREE_DIGITS, _words(_BOTH_CASES, _DIGITS)), ignores_merges=True),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": PreTokenizer((_words(_BOTH_CASES, _DIGIT),)),
    "smollm": PreTokenizer((_DIGIT, _GPT2)),
    "gpt-2": PreTokenizer((_GPT2,)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, _DIGITS, "[0-9][0-9][0-9]")),
}
# Those of a tokenizer.json. A class of byte letters drops or isolates bytes that a vocabulary does not have.
KNOWN_EXPRESSIONS = frozenset(
    {
        *(expression for pre in PRE_TOKENIZERS.values() for expression in pre.expressions),
        *(_words(_ANY_CASE, numbers) for numbers in (_DIGIT, _DIGITS, _THREE_DIGITS)),
        _GPT2_WHOLE,
    }
)
_PLAIN = "".join(letter for letter in BYTE_LETTERS if letter.isalnum() or not letter.isascii())
_LETTER_CLASS = re.compile(rf"\[(?:[{_PLAIN}]|\\[!-/:-@\[-`{{-~])+\]")
NORMALIZERS, PRE_TOKENIZER_STEPS = {"NFC"}, {"Split", "Digits", "ByteLevel"}
POST_PROCESSORS = {"ByteLevel", "TemplateProcessing"}


@dataclass(frozen=True)
class ByteLevelVocabulary:
    """A byte-level vocabulary as GGUF stores it: pieces and their types by id, merges by rank."""

    pieces: tuple[str, ...]
    types: tuple[PieceType, ...]
    merges: tuple[tuple[str, str], ...]
    pre: str  # a key of PRE_TOKENIZERS

    def __post_init__(self) -> None:
        assert self.pre in PRE_TOKENIZERS, self.pre


def build_from_vocabulary(vocabulary: ByteLevelVocabulary, source: Path) -> Any:
    """The `tokenizers.Tokenizer` that splits texts as llama.cpp does. FormatError for merges of unknown pieces."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as LibraryTokenizer

    pre = PRE_TOKENIZERS[vocabulary.pre]
    ids = {piece: token_id for token_id, piece in enumerate(vocabulary.pieces)}
    merges = dict.fromkeys(vocabulary.merges)  # of two equal ones llama.cpp takes the first, the library the last
    for left, right in merges:
        if not (left in ids and right in ids and left + right in ids):
            raise FormatError(source, f"the merge {brief(f'{left} {right}')} has a piece that its vocabulary lacks")
    tokenizer = LibraryTokenizer(models.BPE(ids, list(merges), ignore_merges=pre.ignores_merges))
    steps: list[Any] = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in pre.expressions]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if missing := [letter for letter in BYTE_LETTERS if letter not in ids]:
        # llama.cpp drops a byte without a piece after merging, so its neighbours never merge with each other.
        letters = "".join(letter if letter in _PLAIN else f"\\{letter}" for letter in missing)
        steps.append(pre_tokenizers.Split(Regex(f"[{letters}]"), "removed"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for kinds, add in (
        ((PieceType.CONTROL, PieceType.UNKNOWN), tokenizer.add_special_tokens),
        ((PieceType.USER_DEFINED,), tokenizer.add_tokens),
    ):
        chosen = [piece for piece, kind in zip(vocabulary.pieces, vocabulary.types) if kind in kinds]
        add([AddedToken(piece, normalized=False, special=PieceType.CONTROL in kinds) for piece in chosen])
    return tokenizer


def is_byte_level(raw: dict[str, Any]) -> bool:
    """Whether a tokenizer.json describes a byte-level tokenizer; its decoder says so."""
    decoder = raw.get("decoder")
    steps = decoder.get("decoders") if isinstance(decoder, dict) and decoder.get("type") == "Sequence" else [decoder]
    return isinstance(steps, list) and any(isinstance(s, dict) and s.get("type") == "ByteLevel" for s in steps)


def check_step(step: dict[str, Any], field: str, path: Path) -> None:
    """Raise FormatError for a step of a tokenizer.json that costs or changes more than byte-level tokenizers need."""
    kind = step["type"]
    if kind == "Split":
        pattern = step.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        if not isinstance(expression, str) or not (
            expression in KNOWN_EXPRESSIONS or _LETTER_CLASS.fullmatch(expression)
        ):
            raise FormatError(
                path, f"{field} splits by {brief(expression or pattern)}, which is no expression of a known family"
            )
        behavior = step.get("behavior")
        if behavior not in ("Isolated", "Removed") or step.get("invert"):
            raise FormatError(path, f"{field} has a Split of behavior {brief(behavior)}, expected 'Isolated'")
        if behavior == "Removed" and expression in KNOWN_EXPRESSIONS:
            raise FormatError(path, f"{field} removes what {brief(expression)} matches; expected 'Isolated'")
    if kind == "ByteLevel" and field == "pre_tokenizer" and step.get("add_prefix_space", True):
        raise FormatError(path, f"{field} puts a blank in front of every text (add_prefix_space); expected false")


def puts_bos_in_front(raw: dict[str, Any], bos: object) -> bool:
    """Whether the post-processor of a tokenizer.json begins a single text with the token `bos`."""
    processor = raw.get("post_processor")
    steps = processor.get("processors") if isinstance(processor, dict) else None
    for step in steps if isinstance(steps, list) else [processor]:
        single = step.get("single") if isinstance(step, dict) and step.get("type") == "TemplateProcessing" else None
        first = single[0] if isinstance(single, list) and single else None
        special = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(special, dict) and bos is not None and special.get("id") == bos:
            return True
    return False


def vocabulary_of(library_tokenizer: Any, source: Path) -> ByteLevelVocabulary:
    """The inverse of `build_from_vocabulary`. FormatError for a way to split texts that GGUF has no name for."""
    raw = json.loads(library_tokenizer.to_str())
    pieces = {token_id: (piece, PieceType.NORMAL) for piece, token_id in raw["model"]["vocab"].items()}
    for token in raw["added_tokens"]:
        kind = PieceType.CONTROL if token["special"] else PieceType.USER_DEFINED
        pieces[token["id"]] = token["content"], kind
    listed = [pieces.get(token_id, (f"[PAD{token_id}]", PieceType.UNUSED)) for token_id in range(max(pieces) + 1)]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in raw["model"]["merges"]]
    return ByteLevelVocabulary(
        pieces=tuple(piece for piece, _ in listed),
        types=tuple(kind for _, kind in listed),
        merges=tuple((left, right) for left, right in merges),
        pre=_pre_of(raw, source),
    )


def _pre_of(raw: dict[str, Any], source: Path) -> str:
    """The name in PRE_TOKENIZERS of the way that a tokenizer.json splits a text."""
    found = tuple(map(_normal, _expressions(raw.get("pre_tokenizer"))))
    ignores_merges = bool(raw["model"].get("ignore_merges"))
    normalizer = raw.get("normalizer")
    for name, pre in PRE_TOKENIZERS.items():
        # Qwen2's own file normalizes to NFC first; llama.cpp does not.
        has_its_normalizer = normalizer is None or (name == "qwen2" and normalizer.get("type") == "NFC")
        # MiniCPM5's own file does not set ignore_merges, llama.cpp does.
        has_its_flag = pre.ignores_merges or not ignores_merges
        if found == pre.expressions and has_its_flag and has_its_normalizer:
            return name
    raise FormatError(source, f"it splits texts by {brief(list(found))}, for which GGUF has no name")


def _expressions(step: Any) -> list[str]:
    """The expressions of a pre-tokenizer in order; the steps between them are the library's."""
    if not isinstance(step, dict):
        return []
    kind = step["type"]
    if kind == "Sequence":
        return [expression for part in step["pretokenizers"] for expression in _expressions(part)]
    if kind == "Digits":
        return [_DIGIT] if step.get("individual_digits") else [_DIGITS]
    if kind == "ByteLevel":
        return [_GPT2] if step.get("use_regex", True) else []
    expression = step["pattern"]["Regex"]
    return [] if _LETTER_CLASS.fullmatch(expression) else [expression]


def _normal(expression: str) -> str:
    return _GPT2 if expression == _GPT2_WHOLE else expression.replace(_ANY_CASE, _BOTH_CASES)
