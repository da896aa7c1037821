"""Texts that two tokenizers of one model must split alike before they are taken for the same."""

from __future__ import annotations

from minicpm.tokenizer.tokenizer import Tokenizer

PROBES = (
    "Which city is the capital of China?",
    "<用户>你好，世界！<AI>",
    "def f(x):\n\treturn x + 12345  # éàü 𝔘🙂\n\n",
    "</s> a  b <unk>",
    "  two blanks, and more lines\n  ",
)


def first_difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """The first probe that both split in different ways, None for none."""
    return next((text for text in PROBES if one.encode(text) != other.encode(text)), None)
