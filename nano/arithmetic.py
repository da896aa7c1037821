"""Sums, counting, and comparing: every answer is computed."""

from __future__ import annotations

import random
from typing import Any

from asking import CHILDREN, Turn, turn, vary

PLUS = [
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} =",
    "{a}+{b}=",
    "{a} plus {b}",
    "{a} plus {b}?",
    "{a}+{b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "How much is {a} and {b}?",
    "What is {a}+{b}?",
    "Add {a} and {b}.",
    "Calculate {a} + {b}.",
    "What's {a} + {b}?",
    "What do {a} and {b} make?",
    "What is the sum of {a} and {b}?",
    "Can you add {a} and {b}?",
    "Do you know {a} + {b}?",
]
MINUS = [
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} =",
    "{a}-{b}=",
    "{a} minus {b}",
    "{a} minus {b}?",
    "{a}-{b}?",
    "How much is {a} - {b}?",
    "How much is {a} minus {b}?",
    "What is {a}-{b}?",
    "Take {b} away from {a}.",
    "Subtract {b} from {a}.",
    "Calculate {a} - {b}.",
    "What's {a} - {b}?",
    "What is {a} take away {b}?",
    "Do you know {a} - {b}?",
]
TIMES = [
    "What is {a} x {b}?",
    "What is {a} times {b}?",
    "{a} * {b}",
    "{a} x {b}",
    "{a}*{b}",
    "{a} times {b}",
    "{a} times {b}?",
    "{a} * {b} =",
    "How much is {a} times {b}?",
    "What is {a} * {b}?",
    "Multiply {a} by {b}.",
    "Calculate {a} * {b}.",
]
DIVIDED = [
    "What is {a} / {b}?",
    "What is {a} divided by {b}?",
    "{a} / {b}",
    "{a} divided by {b}",
    "Divide {a} by {b}.",
    "How much is {a} divided by {b}?",
]
COUNTED = [
    "apples",
    "balls",
    "books",
    "cookies",
    "pencils",
    "flowers",
    "shells",
    "toys",
    "stones",
    "cards",
    "eggs",
    "nuts",
    "stars",
    "coins",
]
WORDS_OF_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
MORE = [
    (
        "{who} has {a} {things} and gets {b} more. How many {things} does {who} have?",
        "{a} plus {b} is {c}. {who} has {c} {things}.",
    ),
    (
        "{who} has {a} {things}. {other} gives {who} {b} more. How many {things} does {who} have now?",
        "{a} plus {b} is {c}. {who} has {c} {things}.",
    ),
    (
        "I have {a} {things} and you give me {b} more. How many {things} do I have?",
        "{a} plus {b} is {c}. You have {c} {things}.",
    ),
    (
        "{who} has {a} {things} and {other} has {b} {things}. How many {things} do they have together?",
        "{a} plus {b} is {c}. They have {c} {things}.",
    ),
]
LESS = [
    (
        "{who} has {a} {things} and gives away {b}. How many {things} are left?",
        "{a} minus {b} is {c}. {c} {things} are left.",
    ),
    (
        "{who} had {a} {things}. {who} lost {b}. How many {things} does {who} have now?",
        "{a} minus {b} is {c}. {who} has {c} {things}.",
    ),
    (
        "There are {a} {things} in a box. {who} takes {b} out. How many {things} are left?",
        "{a} minus {b} is {c}. {c} {things} are left.",
    ),
    (
        "I have {a} {things} and give you {b}. How many {things} do I have left?",
        "{a} minus {b} is {c}. You have {c} {things}.",
    ),
]


def easy_sum(highest: int, chosen: random.Random) -> tuple[int, int, int, str, list[str]]:
    """A sum or a difference with no number above the highest."""
    big = chosen.randint(0, highest)
    small_one = chosen.randint(0, big)
    if chosen.random() < 0.55:
        return small_one, big - small_one, big, "plus", PLUS
    return big, small_one, big - small_one, "minus", MINUS


def arithmetic(chosen: random.Random) -> Turn:
    draw = chosen.random()
    if draw < 0.8:
        a, b, c, name, forms = easy_sum(20 if draw < 0.6 else 100, chosen)
        asked = chosen.choice(forms).format(a=a, b=b)
        easy = max(a, b, c) <= 20
        return turn(
            vary(asked, chosen, typos=False) if asked[0].isalpha() else asked,
            f"{a} {name} {b} is {c}.",
            answer=c,
            is_sum_to_20=easy,
        )
    if draw < 0.9:
        a, b = chosen.randint(0, 10), chosen.randint(0, 10)
        if b and chosen.random() < 0.12:
            asked = chosen.choice(DIVIDED).format(a=a * b, b=b)
            return turn(asked, f"{a * b} divided by {b} is {a}.", answer=a, is_sum_to_20=False)
        asked = chosen.choice(TIMES).format(a=a, b=b)
        return turn(asked, f"{a} times {b} is {a * b}.", answer=a * b, is_sum_to_20=False)
    if draw < 0.94:
        return _word_problem(chosen)
    return _numbers(chosen)


def _word_problem(chosen: random.Random) -> Turn:
    who, other = chosen.sample(CHILDREN, 2)
    a, b = chosen.randint(2, 10), chosen.randint(1, 9)
    plus = chosen.random() < 0.55
    if not plus:
        a = b + chosen.randint(2, 9)
    c = a + b if plus else a - b
    asked, answer = chosen.choice(MORE if plus else LESS)
    named = {"who": who, "other": other, "a": a, "b": b, "c": c, "things": chosen.choice(COUNTED)}
    return turn(asked.format(**named), answer.format(**named), answer=c, is_sum_to_20=False)


def _numbers(chosen: random.Random) -> Turn:
    a, b = chosen.sample(range(0, chosen.choice([11, 21, 101])), 2)
    low = chosen.randint(1, 10)
    high = low + chosen.randint(2, 8)
    n = chosen.randint(3, 12)
    pairs: list[tuple[str, str, Any]] = [
        (f"What number comes after {a}?", f"{a + 1} comes after {a}.", a + 1),
        (f"What comes after {a}?", f"{a + 1} comes after {a}.", a + 1),
        (f"Which number is next after {a}?", f"{a + 1} comes after {a}.", a + 1),
        (f"What number comes before {a + 1}?", f"{a} comes before {a + 1}.", a),
        (f"Which is bigger, {a} or {b}?", f"{max(a, b)} is bigger than {min(a, b)}.", max(a, b)),
        (f"What is bigger, {a} or {b}?", f"{max(a, b)} is bigger than {min(a, b)}.", max(a, b)),
        (f"Which is smaller, {a} or {b}?", f"{min(a, b)} is smaller than {max(a, b)}.", min(a, b)),
        (f"Is {a} bigger than {b}?", f"{'Yes' if a > b else 'No'}, {max(a, b)} is bigger than {min(a, b)}.", max(a, b)),
        (f"Count to {WORDS_OF_NUMBERS[n]}.", ", ".join(str(i) for i in range(1, n + 1)) + ".", n),
        (f"Count to {n}.", ", ".join(str(i) for i in range(1, n + 1)) + ".", n),
        (f"Count from {low} to {high}.", ", ".join(str(i) for i in range(low, high + 1)) + ".", high),
        (f"Count down from {n}.", ", ".join(str(i) for i in range(n, 0, -1)) + ".", 1),
        (f"Count backwards from {n} to 1.", ", ".join(str(i) for i in range(n, 0, -1)) + ".", 1),
        (f"Is {a} even or odd?", f"{a} is {'odd' if a % 2 else 'even'}.", "odd" if a % 2 else "even"),
        (f"What is half of {2 * n}?", f"Half of {2 * n} is {n}.", n),
        (f"What is double {n}?", f"Double {n} is {2 * n}.", 2 * n),
        (f"Write {WORDS_OF_NUMBERS[n]} as a number.", f"{n}.", n),
        (f"Write {n} as a word.", f"{WORDS_OF_NUMBERS[n].capitalize()}.", n),
    ]
    asked, answer, value = chosen.choice(pairs)
    return turn(vary(asked, chosen, typos=False), answer, answer=value, is_sum_to_20=False)
