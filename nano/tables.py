"""The tables of the grammar: what answers.txt, words.txt, countries.tsv and unknown.txt hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
SEASONS = ["spring", "summer", "autumn", "winter"]
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@cache
def countries() -> list[list[str]]:
    """Rows of country, capital, continent, note."""
    lines = (HERE / "countries.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]


@cache
def table(name: str) -> list[tuple[str, ...]]:
    """A table of words.txt."""
    for block in re.split(r"^= ", (HERE / "words.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        if head.strip() == name:
            cells = [cell for line in body.splitlines() if line.strip() for cell in line.split("; ")]
            return [tuple(part.strip() for part in cell.split(" : ")) for cell in cells]
    raise ValueError(f"words.txt has no table {name!r}: add one, or ask for another")


@cache
def first_rows(name: str) -> list[tuple[str, ...]]:
    rows: dict[str, tuple[str, ...]] = {}
    for row in table(name):
        rows.setdefault(row[0], row)
    return list(rows.values())


@dataclass(frozen=True)
class Group:
    name: str
    part: str
    weight: int
    answer: str
    prompts: tuple[str, ...]


@cache
def groups() -> list[Group]:
    """The questions of answers.txt."""
    found, part, weight = [], "", 0
    for line in (HERE / "answers.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            part, weight = line.split()[1], int(line.split()[2])
        elif " <= " in line and not line.startswith("#"):
            answer, _, asked = line.partition(" <= ")
            forms = tuple(prompt.strip() for prompt in asked.split(" | "))
            name = re.sub(r"[^a-z0-9]+", "_", forms[0].lower()).strip("_")
            found.append(Group(name, part, weight, answer.strip(), forms))
    return found


@cache
def unknown_answers() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The answers of unknown.txt with their questions, and what may stand in braces."""
    answers: dict[str, list[str]] = {}
    fillers: dict[str, list[str]] = {}
    for line in (HERE / "unknown.txt").read_text(encoding="utf-8").splitlines():
        if " <= " in line and not line.startswith("#"):
            answer, _, asked = line.partition(" <= ")
            answers[answer] = asked.split(" | ")
        elif " : " in line and not line.startswith("#"):
            name, _, listed = line.partition(" : ")
            fillers[name] = listed.split(" | ")
    return answers, fillers
