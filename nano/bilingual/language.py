"""Texts that exist in English and in Chinese, and how a template becomes one.

A template holds alternatives, `[one|two]`, one of which is drawn, and slots, `{hero}` or `{thing.a}`. English is mended
afterwards (a or an, capitals at the start of a sentence), so templates need not know what fills their slots.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

from arithmetic import WORDS_OF_NUMBERS

LANGUAGES = ("en", "zh")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_AN = re.compile(r"\b([Aa]) (?!uni|use|usu|eu|one\b|once\b)(?=[aeiouAEIOU]|hour|honest|8\b|11\b|18\b)")
_START = re.compile(r"(^|[.!?] |\n)([a-z])")
_FIRST = re.compile(r"^([\"“(]?)([a-z])")
SMALL_EN = [
    *WORDS_OF_NUMBERS,
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS_EN = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
DIGITS_ZH = "零一二三四五六七八九"


@dataclass(frozen=True)
class Both:
    """The same in two languages."""

    en: str
    zh: str

    def __getitem__(self, language: str) -> str:
        return self.en if language == "en" else self.zh


@dataclass(frozen=True)
class Exchange:
    """A question or request, and the answer. `short` is the answer in a word or two, if there is one."""

    asked: Both
    answer: Both
    short: Both | None = None
    facts: dict[str, Any] = field(default_factory=dict, compare=False)


class Word(str):
    """A text for slots with other forms of itself as attributes: {x.plural}, {x.one}."""

    def __new__(cls, text: str, **forms: str) -> Word:
        word = super().__new__(cls, text)
        word.__dict__.update(forms)
        return word


def choose(text: str, draw: random.Random) -> str:
    """Replace each `[one|two]` by one of its alternatives, the inner ones first."""
    while "[" in text:
        text = _CHOICE.sub(lambda found: draw.choice(found[1].split("|")), text)
    return text


def mended(text: str) -> str:
    """English with "an" where it belongs and a capital letter at the start of each sentence."""
    text = _AN.sub(lambda found: found[1] + "n ", text)
    text = _START.sub(lambda found: found[1] + found[2].upper(), text)
    return _FIRST.sub(lambda found: found[1] + found[2].upper(), text)


def fill(template: str, language: str, draw: random.Random, slots: dict[str, Any]) -> str:
    """One wording of a template: alternatives separated by " / " or in brackets, slots filled for the language."""
    template = choose(draw.choice(template.split(" / ")), draw)
    values = {name: value[language] if hasattr(value, "en") else value for name, value in slots.items()}
    text = template.format(**values)
    return mended(text) if language == "en" else text


def both(draw: random.Random, en: str, zh: str, **slots: Any) -> Both:
    """A text from an English and a Chinese template; slots are Both, of another type with en and zh, or plain."""
    return Both(fill(en, "en", draw, slots), fill(zh, "zh", draw, slots))


def lower_first(text: str) -> str:
    """An English text that continues a sentence; names and "I" keep their capital (callers pass common words)."""
    return text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]


def number_en(n: int) -> str:
    """A number up to 999 in English words."""
    if n < 20:
        return SMALL_EN[n]
    if n < 100:
        return TENS_EN[n // 10] + (f"-{SMALL_EN[n % 10]}" if n % 10 else "")
    rest = f" and {number_en(n % 100)}" if n % 100 else ""
    return f"{SMALL_EN[n // 100]} hundred{rest}"


def number_zh(n: int) -> str:
    """A number up to 999 in Chinese."""
    if n < 10:
        return DIGITS_ZH[n]
    if n < 20:
        return "十" + (DIGITS_ZH[n % 10] if n % 10 else "")
    if n < 100:
        return DIGITS_ZH[n // 10] + "十" + (DIGITS_ZH[n % 10] if n % 10 else "")
    rest = n % 100
    tail = (
        "" if not rest else "零" + DIGITS_ZH[rest] if rest < 10 else DIGITS_ZH[rest // 10] + "十" + number_zh(rest)[-1]
    )
    if rest and rest % 10 == 0:
        tail = DIGITS_ZH[rest // 10] + "十"
    return DIGITS_ZH[n // 100] + "百" + tail


def count_zh(n: int) -> str:
    """A number in front of a measure word: 两只, not 二只."""
    return "两" if n == 2 else number_zh(n)


def number(n: int) -> Both:
    """A number in words."""
    return Both(number_en(n), number_zh(n))


QUESTION_EN = frozenset(
    [
        "who",
        "whose",
        "whom",
        "what",
        "which",
        "where",
        "when",
        "why",
        "how",
        "is",
        "are",
        "was",
        "were",
        "do",
        "does",
        "did",
        "can",
        "could",
        "will",
        "would",
        "may",
        "should",
        "has",
        "have",
        "in",
        "on",
        "at",
        "of",
        "to",
        "what's",
    ]
)
QUESTION_ZH = ("吗", "谁", "什么", "哪", "几", "多少", "怎", "如何", "多大", "贵不贵", "有没有")


def punctuated(asked: Both, draw: random.Random, is_exclaimed: bool = False) -> Both:
    """A prompt with the mark that it lacks: a question mark, or a full stop; if it may be exclaimed, "!" or none."""
    end_en, end_zh = (draw.choice([(".", "。"), ("!", "！"), ("", "")])) if is_exclaimed else (".", "。")
    en, zh = asked.en, asked.zh
    if en[-1] not in ".?!":
        en += "?" if en.split()[0].lower().rstrip(",") in QUESTION_EN else end_en
    if zh[-1] not in "。？！":
        zh += "？" if any(word in zh for word in QUESTION_ZH) else end_zh
    return Both(en, zh)
