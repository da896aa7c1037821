"""The known faults of the tokenizer and the chat template in a MiniCPM GGUF file.

`look_at_tokenizer` finds them in the metadata and changes it to that of a repaired copy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import cast

from minicpm.chat import CURRENT_TEMPLATE
from minicpm.doctor.faults import TEMPLATE_CURE, TEMPLATE_SYMPTOM, Fault, foreign_markers
from minicpm.formats.gguf import Field, ValueType
from minicpm.formats.gguf_tokenizer import SCORES, TEMPLATE, TOKENS, TYPES
from minicpm.tokenizer import PieceType

MODEL, MERGES, PRE = "tokenizer.ggml.model", "tokenizer.ggml.merges", "tokenizer.ggml.pre"
# MiniCPM-2B's tokenizer.model: its pieces, joined by NUL.
OFFICIAL_COUNT = 122_753
OFFICIAL_PIECES_SHA256 = "0642254dd5b244658a3a14628ff0b4c1fce0ada72c96dcc87555fd523ee54e8a"
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# llama.cpp's defaults for a SentencePiece tokenizer if the file has none.
DEFAULT_IDS = {"bos": 1, "eos": 2}


def look_at_tokenizer(fields: dict[str, Field]) -> list[Fault]:
    """The faults of the tokenizer. Changes `fields` to those of a copy without them."""
    tokens = fields.get(TOKENS)
    if tokens is None:
        return []
    pieces = [str(piece) for piece in cast("Sequence[str]", tokens.value)]
    found = [look(fields, pieces) for look in (_kind, _scores, _bos, _eos, _first_token, _last_token, _first_blank)]
    return [fault for fault in [*found, _template(fields, pieces)] if fault is not None]


def _kind(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    """Find SentencePiece pieces that are labelled as a byte-level tokenizer, GPT-2's kind."""
    if _value(fields, MODEL) != "gpt2" or "▁" not in pieces or "<0x0A>" not in pieces:
        return None
    types = fields.get(TYPES)
    kinds = [int(kind) for kind in cast("Sequence[int]", types.value)] if types is not None else []
    kinds = kinds if len(kinds) == len(pieces) else [int(PieceType.NORMAL)] * len(pieces)
    for index, piece in enumerate(pieces):
        if _BYTE.fullmatch(piece):
            kinds[index] = PieceType.BYTE
        elif piece in (BOS, EOS):
            kinds[index] = PieceType.CONTROL
        elif piece == UNKNOWN:
            kinds[index] = PieceType.UNKNOWN
    fields[MODEL] = Field(MODEL, ValueType.STRING, "llama")
    fields[PRE] = Field(PRE, ValueType.STRING, "default")
    fields[TYPES] = Field(TYPES, ValueType.ARRAY, kinds, ValueType.INT32)
    fields[SCORES] = _ranks(kinds, [0.0] * len(kinds))
    fields.pop(MERGES, None)
    return Fault(
        "byte-level-tokenizer",
        f"{MODEL} is gpt2, but its {len(pieces):,} pieces are SentencePiece's",
        "llama.cpp refuses to load it, or finds no piece for a blank or a Chinese character: questions reach the model "
        "as other tokens, and it answers something else",
        "the kind llama, with scores in the order of the pieces",
    )


def _scores(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    scores, types = fields.get(SCORES), fields.get(TYPES)
    if types is None or _value(fields, MODEL) != "llama":
        return None
    kinds = [int(kind) for kind in cast("Sequence[int]", types.value)]
    old = [0.0] * len(kinds) if scores is None else [float(one) for one in cast("Sequence[float]", scores.value)]
    normal = [index for index, kind in enumerate(kinds) if kind == PieceType.NORMAL]
    if len(old) != len(kinds) or len(normal) < 2 or len({old[index] for index in normal}) > 1:
        return None
    fields[SCORES] = _ranks(kinds, old)
    return Fault(
        "flat-scores",
        f"all {len(normal):,} normal pieces of the tokenizer have one score (made from tokenizer.json)",
        "answers are worse than they should be, above all in Chinese: llama.cpp merges by score, so texts get other "
        "tokens than in training",
        "scores in the order of the pieces, which is the order of SentencePiece's merges",
    )


def _ranks(kinds: list[int], scores: list[float]) -> Field:
    """Scores of the pieces: the negative rank of each merge. SentencePiece numbers BPE pieces in merge order."""
    made, rank = list(scores), 0
    for index, kind in enumerate(kinds):
        if kind == PieceType.NORMAL:
            made[index] = -float(rank)
            rank += 1
    return Field(SCORES, ValueType.ARRAY, made, ValueType.FLOAT32)


def _bos(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    return _special(
        fields,
        pieces,
        "bos",
        BOS,
        "answers are confused, or off from the first word on: every text starts with another token than in training",
    )


def _eos(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    return _special(
        fields,
        pieces,
        "eos",
        EOS,
        "it never stops (after the answer come more questions and answers, until the limit), or stops in the middle",
    )


def _special(fields: dict[str, Field], pieces: list[str], name: str, meant: str, symptom: str) -> Fault | None:
    """Find a begin or end token that is not a special token. Another special token may be right (<|im_end|>)."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = _value(fields, key, DEFAULT_IDS[name])
    if meant not in pieces or (isinstance(value, int) and _is_end(fields, pieces, value, name)):
        return None
    said = f"is {value}" + (f" ({pieces[value]!r})" if isinstance(value, int) and 0 <= value < len(pieces) else "")
    fields[key] = Field(key, ValueType.UINT32, pieces.index(meant))
    return Fault(
        f"wrong-{name}", f"{key} {said}, which is no special token", symptom, f"{pieces.index(meant)} ({meant})"
    )


def _is_end(fields: dict[str, Field], pieces: list[str], value: int, name: str) -> bool:
    types = fields.get(TYPES)
    kinds = cast("Sequence[int]", types.value) if types is not None else ()
    other = {"bos": EOS, "eos": BOS}[name]
    return 0 <= value < min(len(pieces), len(kinds)) and kinds[value] == PieceType.CONTROL and pieces[value] != other


def _first_token(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    key = "tokenizer.ggml.add_bos_token"
    writes_it = "bos_token" in str(_value(fields, TEMPLATE, "")) or BOS in str(_value(fields, TEMPLATE, ""))
    if _value(fields, key, True) is not False or BOS not in pieces or writes_it:
        return None
    fields[key] = Field(key, ValueType.BOOL, True)
    return Fault(
        "no-bos",
        f"{key} is false",
        "answers are worse than they should be: the model never saw a text without <s> in front",
        "true",
    )


def _last_token(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    key = "tokenizer.ggml.add_eos_token"
    if _value(fields, key, False) is not True:
        return None
    fields[key] = Field(key, ValueType.BOOL, False)
    return Fault(
        "adds-eos",
        f"{key} is true",
        "empty answers, or answers to something else: </s> ends every prompt before the answer",
        "false",
    )


def _first_blank(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    key = "tokenizer.ggml.add_space_prefix"
    if _value(fields, key, True) is not False or not is_official(pieces):
        return None
    fields[key] = Field(key, ValueType.BOOL, True)
    return Fault(
        "no-space-prefix",
        f"{key} is false, but the pieces are MiniCPM-2B's",
        "answers differ from those of transformers: the first word of a text becomes another token, as does <用户> "
        "(95396 instead of 1786)",
        "true: a blank in front of every text, as 2024's tokenizer.json has it",
    )


def is_official(pieces: Sequence[str]) -> bool:
    """Whether these are MiniCPM-2B's pieces, whatever padding follows them."""
    joined = "\0".join(pieces[:OFFICIAL_COUNT]).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest() == OFFICIAL_PIECES_SHA256


def _template(fields: dict[str, Field], pieces: list[str]) -> Fault | None:
    text = _value(fields, TEMPLATE)
    markers = foreign_markers(text, set(pieces).__contains__) if isinstance(text, str) else []
    if text is not None and not markers:
        return None
    fields[TEMPLATE] = Field(TEMPLATE, ValueType.STRING, CURRENT_TEMPLATE.text)
    if text is None:
        symptom = TEMPLATE_SYMPTOM.format(found="<|im_start|> or the like")
        return Fault("missing-template", f"{TEMPLATE} is missing", symptom, TEMPLATE_CURE)
    return Fault(
        "wrong-template",
        f"{TEMPLATE} writes {', '.join(markers[:3])}, which the vocabulary does not have",
        TEMPLATE_SYMPTOM.format(found=markers[0]),
        TEMPLATE_CURE,
    )


def _value(fields: dict[str, Field], key: str, default: object = None) -> object:
    field = fields.get(key)
    return default if field is None else field.value
