"""The answer that most samples of a prompt agree on: what is compared, and how votes are counted. Text only.

A sample's final answer is, whichever of these it has first:
1. what its last `\\boxed{...}` holds, which is a number if it holds just one;
2. what follows the last announcement (`####`, "answer is", "answer:", "答案是", "答案为", "答案：") on that line: its
   last number, if it holds any;
3. its last number;
4. its last line that is not empty.
Final answers are compared without case, width, blanks around them, Markdown marks and closing punctuation; numbers by
their value (`1,200` is `1200.0`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ANNOUNCEMENT = re.compile(r"####|\banswer(?:\s+is\s*:?|\s*:)|答案(?:是|为)?\s*:|答案(?:是|为)", re.IGNORECASE)
# 1,234,567 or 1234567, with or without decimals; a minus only where no word or number ends before it.
_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\d+(?:\.\d+)?")
_MARKS = " \t\r\n*_`$\"'“”‘’()[]<>.,;:!?。，；：！？、"


@dataclass(frozen=True)
class Vote:
    """What the samples of one prompt say. `counts` are (final answer, how many samples gave it), most first.

    `winner` is the number of the first sample that gave the most frequent answer; among equals the one given first
    wins. A sample without any answer counts as "" and wins only if all are so.
    """

    winner: int
    counts: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> str:
        return self.counts[0][0]

    def __str__(self) -> str:
        """'3 of 5 samples: 72; 1: 71; 1: no answer'."""
        (first, most), *others = self.counts
        total = sum(count for _, count in self.counts)
        told = [f"{most} of {total} samples: {first or 'no answer'}"]
        return "; ".join(told + [f"{count}: {answer or 'no answer'}" for answer, count in others])


def vote(texts: Sequence[str]) -> Vote:
    """Count the final answers of `texts`, at least one."""
    answers = [final_answer(text) for text in texts]
    # Counter keeps the order in which answers came, and sorting keeps it among equals.
    ranked = sorted(Counter(answers).items(), key=lambda item: (item[0] == "", -item[1]))
    return Vote(answers.index(ranked[0][0]), tuple(ranked))


def final_answer(text: str) -> str:
    """The final answer of a text in its compared form, "" where it has none; the module tells the rule."""
    text = unicodedata.normalize("NFKC", text)
    boxed = _last_boxed(text)
    if _plain(boxed):
        numbers = _numbers(boxed)
        return numbers[0] if len(numbers) == 1 else _plain(boxed)
    announced = _announced(text)
    if _plain(announced):
        return (_numbers(announced) or [_plain(announced)])[-1]
    lines = [_plain(line) for line in text.splitlines() if _plain(line)]
    return (_numbers(text) or lines or [""])[-1]


def _last_boxed(text: str) -> str:
    """What stands between the braces of the last `\\boxed{`; empty without one that is closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return ""


def _announced(text: str) -> str:
    found = list(_ANNOUNCEMENT.finditer(text))
    return text[found[-1].end() :].split("\n", 1)[0] if found else ""


def _numbers(text: str) -> list[str]:
    """The numbers of a text in the one spelling that their value has."""
    return [_spelled(number) for number in _NUMBER.findall(text)]


def _spelled(number: str) -> str:
    digits = number.replace(",", "").lstrip("-−")
    whole, _, decimals = digits.partition(".")
    value = (whole.lstrip("0") or "0") + f".{decimals}".rstrip("0").rstrip(".")
    return value if digits == number.replace(",", "") or value == "0" else "-" + value


def _plain(text: str) -> str:
    return " ".join(text.strip(_MARKS).casefold().split())
