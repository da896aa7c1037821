"""Greetings, questions about the model, small talk, and what it cannot know: the groups of talk.txt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bilingual.language import Both, Exchange, fill, punctuated
from bilingual.reading import PORTABLE
from bilingual.stories import MEALS, PLACES, hero_animals
from bilingual.words import colours, countries, invented_name, person, pet_name

TALK = Path(__file__).parent / "talk.txt"
SCIENCES = [
    Both("the theory of relativity", "相对论"),
    Both("quantum physics", "量子物理"),
    Both("nuclear fusion", "核聚变"),
    Both("differential equations", "微分方程"),
    Both("the stock market", "股票市场"),
    Both("black holes", "黑洞"),
    Both("the tax law", "税法"),
    Both("machine learning", "机器学习"),
    Both("philosophy", "哲学"),
    Both("the human brain", "人脑"),
    Both("an electric motor", "电动机"),
    Both("organic chemistry", "有机化学"),
]


@dataclass(frozen=True)
class Group:
    part: str
    prompts: Both
    answers: Both


@cache
def groups() -> tuple[tuple[Group, ...], tuple[float, ...]]:
    """The groups of talk.txt and their weights: the part's weight, shared by its groups."""
    found: list[Group] = []
    part_weights: dict[str, int] = {}
    part, pending = "", []
    for line in TALK.read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            *name, weight = line[2:].split()
            part = " ".join(name)
            part_weights[part] = int(weight)
        elif line.startswith(("<", ">")):
            pending.append(line.split(" ", 1)[1])
            if len(pending) == 4:
                found.append(Group(part, Both(pending[0], pending[1]), Both(pending[2], pending[3])))
                pending = []
    if pending:
        raise ValueError(f"talk.txt: a group of {part} has not four lines: {pending[0]}")
    sizes = {name: sum(group.part == name for group in found) for name in part_weights}
    return tuple(found), tuple(part_weights[group.part] / sizes[group.part] for group in found)


def _slots(draw: random.Random) -> dict[str, Any]:
    animal = draw.choice(hero_animals()).noun
    thing = draw.choice(PORTABLE)
    place = draw.choice(PLACES)
    strange = invented_name(draw)
    who = person(draw).name
    if " " not in who.en and draw.random() < 0.5:  # a Western full name
        family = invented_name(draw)
        who = Both(f"{who.en} {family.en}", f"{who.zh}·{family.zh}")
    return {
        "name": who,
        "pet": pet_name(draw),
        "animal": animal,
        "animal_p": Both(animal.en.plural, str(animal.zh)),
        "ac": animal.zh.c,
        "thing": thing,
        "tc": thing.zh.c,
        "food": Both(*draw.choice(MEALS)),
        "colour": draw.choice(colours()),
        "place": Both(place[0], place[3]),
        "to": Both(place[2], place[3]),
        "at": Both(place[1], place[4]),
        "city": draw.choice(countries()).capital,
        "strange": Both(strange.en.lower(), strange.zh),
        "Strange": strange,
        "science": draw.choice(SCIENCES),
        "n2": draw.randint(12, 99),
        "n3": draw.randint(113, 998),
        "n4": draw.randint(23, 987),
        "n5": draw.randint(12345, 98765),
        "year": draw.randint(800, 1990),
    }


def of_group(group: Group, draw: random.Random) -> Exchange:
    slots = _slots(draw)
    asked = Both(fill(group.prompts.en, "en", draw, slots), fill(group.prompts.zh, "zh", draw, slots))
    answer = Both(fill(group.answers.en, "en", draw, slots), fill(group.answers.zh, "zh", draw, slots))
    return Exchange(punctuated(asked, draw, group.part == "greeting"), answer, facts={"part": group.part})


def talk(draw: random.Random, part: str | None = None) -> list[Exchange]:
    """One exchange; of one part of talk.txt, or of any."""
    found, weights = groups()
    if part is not None:
        return [of_group(draw.choice([group for group in found if group.part == part]), draw)]
    return [of_group(draw.choices(found, weights)[0], draw)]


def starting(first_prompt: str, draw: random.Random) -> Exchange:
    """An exchange of the group whose English prompts begin with `first_prompt`."""
    found, _ = groups()
    return of_group(next(group for group in found if group.prompts.en.startswith(first_prompt)), draw)
