"""Byte-level tokenizers for tests: SmolLM2's, cut to what a few texts need, and small ones in every known way."""

from __future__ import annotations

import functools
import json
import random
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from minicpm.formats.gguf import Array, Field, Value, ValueType

CUT = Path(__file__).parent / "data" / "tokenizer" / "SmolLM2-cut"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _splits(*expressions: str) -> list[Any]:
    return [
        *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _by_library(*before: Any) -> list[Any]:
    return [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


# How the families' own tokenizer.json files split, by the name of it in GGUF; whether they take whole pieces first.
PUBLISHED: dict[str, tuple[list[Any], bool]] = {
    "minicpm5": (_splits(r"\p{N}{1,3}", _WORDS.format(r"\p{N}+")), True),
    "llama-bpe": (_splits(_WORDS.format(r"\p{N}{1,3}")), True),
    "qwen2": (_splits(_WORDS.format(r"\p{N}")), False),
    "smollm": (_by_library(pre_tokenizers.Digits(individual_digits=True)), False),
    "gpt-2": (_by_library(), False),
    "default": (_splits(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), False),
}
SPECIAL, USER = ("<s>", "</s>", "<|im_start|>", "<|im_end|>"), ("<think>", "</think>")

_TRAINING = (
    "The capital of France is Paris. It's what they'd've said, isn't it? I'll say: we're 12345 and 2026-11-30! "
    "def f(x):\n\treturn x ** 2\n\n  # 3.14, 1,000,000\r\n\r\n"
    "naïve café déjà vu 你好，世界！今天天气怎么样？ русский язык "
    "<tag attr=\"value\">text</tag> $5+$6=$11 ~ ^_^ || <=> don't DON'T 'tis      many    blanks   \n\n\n"
)


@functools.cache
def trained(size: int = 700) -> dict[str, Any]:
    """A vocabulary and its merges (`vocab`, `merges`) as in a tokenizer.json, of a few lines of text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([_TRAINING] * 2, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def published(pre: str) -> tokenizers.Tokenizer:
    """The small vocabulary in a pipeline as the family's own tokenizer.json has it."""
    model = trained()
    steps, ignores_merges = PUBLISHED[pre]
    merges = [tuple(merge) for merge in model["merges"]]
    made = tokenizers.Tokenizer(models.BPE(model["vocab"], merges, ignore_merges=ignores_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in USER])
    return made


def gguf_values(tokenizer: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    """The same in a GGUF file's words, made without this package."""
    raw = json.loads(tokenizer.to_str())
    pieces = {token_id: piece for piece, token_id in raw["model"]["vocab"].items()}
    types = dict.fromkeys(pieces, NORMAL)
    for token in raw["added_tokens"]:
        pieces[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    ids = {piece: token_id for token_id, piece in pieces.items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [pieces[token_id] for token_id in range(len(pieces))],
        "tokenizer.ggml.token_type": [types[token_id] for token_id in range(len(pieces))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in raw["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": ids["<s>"],
        "tokenizer.ggml.eos_token_id": ids["</s>"],
        "tokenizer.ggml.add_bos_token": False,
    }


def metadata(values: dict[str, Any]) -> dict[str, Value]:
    """What is read of such values."""
    as_array = {"tokenizer.ggml.token_type": lambda items: np.array(items, np.int32)}
    return {
        key: Array(as_array.get(key, list)(value)) if isinstance(value, list) else value
        for key, value in values.items()
    }


def fields(values: dict[str, Any]) -> list[Field]:
    """What is written of such values."""
    kinds = {str: ValueType.STRING, bool: ValueType.BOOL, int: ValueType.UINT32}
    made = []
    for key, value in values.items():
        if isinstance(value, list):
            item = ValueType.INT32 if key.endswith("token_type") else ValueType.STRING
            made.append(Field(key, ValueType.ARRAY, value, item))
        else:
            made.append(Field(key, kinds[type(value)], value))
    return made


@functools.cache
def cut_values() -> dict[str, Any]:
    """SmolLM2's vocabulary with its own ids, cut to the pieces and merges that data/tokenizer/SmolLM2-cut keeps."""
    raw = json.loads((CUT / "vocabulary.json").read_text(encoding="utf-8"))
    pieces = [raw["pieces"].get(str(token_id), f"[{token_id}]") for token_id in range(raw["size"])]
    types = [NORMAL if str(token_id) in raw["pieces"] else UNUSED for token_id in range(raw["size"])]
    for token_id in raw["special"]:
        types[token_id] = CONTROL
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": raw["merges"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


_BLANKS = " \t\n\r\u00a0\u2003\u3000\x0b\x0c\x85"
_CONTRACTIONS = ("'s", "'LL", "'Ve", "'", "don't", "I'd've", "x's's")
_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<s>", "<think>", "<|im_", "|>")
_SCRIPTS = ("🙂", "👩‍👩‍👧", "🇨🇳", "é", "e\u0301", "你好", "한국어", "русский", "عربي", "½", "Ⅷ", "٣")


def odd_texts(count: int, seed: int = 15) -> list[str]:
    """Texts of words, contractions, numbers, blanks, signs, scripts, emoji, controls and special tokens.

    Without the long s and its ligatures, which are an s to the library in any case of a letter, and none to llama.cpp.
    """
    draw = random.Random(seed)
    signs = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isalnum()]
    assigned = [
        chr(code)
        for code in range(0xA0, 0x30000)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co", "Cc") and chr(code) not in "\u017f\ufb05\ufb06"
    ]
    words = _TRAINING.split()
    kinds: list[Callable[[], str]] = [
        lambda: draw.choice(words),
        lambda: "".join(draw.choices(string.ascii_letters, k=draw.randint(1, 12))),
        lambda: str(draw.randint(0, 10 ** draw.randint(1, 12))),
        lambda: "".join(draw.choices(signs, k=draw.randint(1, 5))),
        lambda: "".join(draw.choices(_BLANKS, k=draw.randint(1, 4))),
        lambda: "".join(draw.choices(assigned, k=draw.randint(1, 6))),
        lambda: draw.choice(_CONTRACTIONS),
        lambda: draw.choice(_TOKENS),
        lambda: draw.choice(_SCRIPTS),
        lambda: chr(draw.randint(0, 0x1F)),
    ]
    return [draw.choice(["", " "]).join(draw.choice(kinds)() for _ in range(draw.randint(1, 12))) for _ in range(count)]
