"""The vocabulary: animals, things, people, jobs, countries and other tables, each entry in both languages."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bilingual.language import Both, Word, count_zh, number_en

TABLES = Path(__file__).parent / "tables"
NO_ARTICLE = ("the ", "a ", "an ")


def _lines(name: str) -> list[str]:
    lines = (TABLES / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def plural_of(word: str) -> str:
    """The regular plural."""
    if re.search(r"(s|x|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


@dataclass(frozen=True)
class Noun:
    """A countable noun. Slots see `en` with forms a, the, plural, A; `zh` with one (一只猫), that (那只猫), c (只)."""

    en: Word
    zh: Word

    def __getitem__(self, language: str) -> Word:
        return self.en if language == "en" else self.zh

    def some(self, n: int) -> Both:
        """So many of it: "3 cats", 3只猫; with digits."""
        return Both(f"{n} {self.en if n == 1 else self.en.plural}", f"{n}{self.zh.c}{self.zh}")

    def some_in_words(self, n: int) -> Both:
        """So many of it: "three cats", 三只猫."""
        noun = self.en if n == 1 else self.en.plural
        return Both(f"{number_en(n)} {noun}", f"{count_zh(n)}{self.zh.c}{self.zh}")


def noun(en: str, zh: str, classifier: str = "个") -> Noun:
    """A noun of its dictionary forms; `en` may carry an irregular plural behind a slash."""
    one, _, plural = en.partition("/")
    plural = plural or plural_of(one)
    forms = {"a": f"a {one}", "the": f"the {one}", "plural": plural, "A": one[:1].upper() + one[1:]}
    chinese = {"one": f"一{classifier}{zh}", "that": f"那{classifier}{zh}", "c": classifier}
    return Noun(Word(one, **forms), Word(zh, **chinese))


@dataclass(frozen=True)
class Animal:
    """An animal and what is known of it."""

    noun: Noun
    kind: str
    legs: int
    flies: bool
    swims: bool
    sound: Both | None
    young: Both
    home: Both
    food: Both
    size: int


KINDS = {
    "mammal": Both("mammal", "哺乳动物"),
    "bird": Both("bird", "鸟"),
    "fish": Both("fish", "鱼"),
    "insect": Both("insect", "昆虫"),
    "reptile": Both("reptile", "爬行动物"),
    "amphibian": Both("amphibian", "两栖动物"),
    "arachnid": Both("arachnid", "蛛形动物"),
    "mollusc": Both("mollusc", "软体动物"),
    "crustacean": Both("crustacean", "甲壳动物"),
}


@cache
def animals() -> tuple[Animal, ...]:
    found = []
    for line in _lines("animals.txt"):
        en, zh, c, kind, legs, moves, *rest = _cells(line)
        sound_en, sound_zh, young_en, young_zh, home_en, home_zh, food_en, food_zh, size = rest
        found.append(
            Animal(
                noun(en, zh, c),
                kind,
                int(legs),
                "f" in moves,
                "s" in moves,
                Both(sound_en, sound_zh) if sound_en else None,
                Both(young_en, young_zh),
                Both(home_en, home_zh),
                Both(food_en, food_zh),
                int(size),
            )
        )
    return tuple(found)


PETS = frozenset(
    [
        "cat",
        "dog",
        "rabbit",
        "hamster",
        "mouse",
        "turtle",
        "parrot",
        "goat",
        "pig",
        "horse",
        "chicken",
        "duck",
        "pigeon",
    ]
)


@cache
def pets() -> tuple[Animal, ...]:
    return tuple(animal for animal in animals() if animal.noun.en in PETS)


@dataclass(frozen=True)
class Thing:
    """A thing with its category; `colour` is the usual one if there is one, `about` its taste or use."""

    noun: Noun
    category: Both  # the singular, e.g. fruit
    category_plural: str
    colour: str
    about: Both | None
    is_edible: bool


EDIBLE = ("fruit", "vegetable", "food")


@cache
def things() -> tuple[Thing, ...]:
    found: list[Thing] = []
    category, plural = Both("", ""), ""
    for line in _lines("things.txt"):
        if line.startswith("= "):
            en, zh = _cells(line[2:])
            one, _, plural = en.partition("/")
            category = Both(one, zh)
            continue
        en, zh, c, colour, about_en, about_zh = _cells(line)
        about = Both(about_en, about_zh) if about_en else None
        found.append(Thing(noun(en, zh, c), category, plural, colour, about, category.en in EDIBLE))
    return tuple(found)


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """A table of facts.txt."""
    rows: list[tuple[str, ...]] = []
    current = ""
    for line in _lines("facts.txt"):
        if line.startswith("= "):
            current = line[2:].strip()
        elif current == name:
            rows.append(tuple(_cells(line)))
    if not rows:
        raise ValueError(f"facts.txt has no table {name!r}")
    return tuple(rows)


@cache
def colours() -> tuple[Both, ...]:
    return tuple(Both(en, zh) for en, zh in table("colours"))


def colour_named(en: str) -> Both:
    return next(colour for colour in colours() if colour.en == en)


@dataclass(frozen=True)
class Country:
    name: Both
    capital: Both
    continent: str


CONTINENTS = {
    "Asia": Both("Asia", "亚洲"),
    "Europe": Both("Europe", "欧洲"),
    "Africa": Both("Africa", "非洲"),
    "North America": Both("North America", "北美洲"),
    "South America": Both("South America", "南美洲"),
    "Oceania": Both("Oceania", "大洋洲"),
}


@cache
def countries() -> tuple[Country, ...]:
    rows = [_cells(line) for line in _lines("countries.txt")]
    return tuple(Country(Both(en, zh), Both(c_en, c_zh), continent) for en, zh, c_en, c_zh, continent in rows)


@dataclass(frozen=True)
class Person:
    """Somebody with a name in both scripts."""

    name: Both
    gender: str  # f, m; animals are one of both in English, and 它 in Chinese
    is_animal: bool = False
    is_arbitrary: bool = False  # the two names have nothing to do with each other

    @property
    def he(self) -> Both:
        return Both(
            "she" if self.gender == "f" else "he", "它" if self.is_animal else "她" if self.gender == "f" else "他"
        )

    @property
    def him(self) -> Both:
        return Both("her" if self.gender == "f" else "him", self.he.zh)

    @property
    def his(self) -> Both:
        return Both("her" if self.gender == "f" else "his", f"{self.he.zh}的")


@cache
def _names() -> dict[str, tuple[Both, ...]]:
    found: dict[str, tuple[Both, ...]] = {}
    current, is_chinese_first = "", False
    for line in _lines("names.txt"):
        if line.startswith("= "):
            current = line[2:].strip()
            is_chinese_first = current.startswith(("family", "given"))
            continue
        if current == "characters":
            found[current] = tuple(Both("", one) for one in line.split())
            continue
        pairs = [cell.strip().split(" ", 1) for cell in line.split(";")]
        found[current] = tuple(Both(b, a) if is_chinese_first else Both(a, b) for a, b in pairs)
    return found


def pet_name(draw: random.Random) -> Both:
    """A name for an animal: one of a table, or two or three syllables."""
    return draw.choice(_names()["pets"]) if draw.random() < 0.5 else invented_name(draw)


# Words that syllables of names.txt happen to make.
ENGLISH_WORDS = frozenset(
    [
        "bake",
        "bone",
        "date",
        "dome",
        "done",
        "fade",
        "fake",
        "fame",
        "fine",
        "game",
        "home",
        "hope",
        "lake",
        "lame",
        "lava",
        "like",
        "lime",
        "line",
        "made",
        "make",
        "male",
        "mine",
        "mode",
        "name",
        "nape",
        "nine",
        "none",
        "note",
        "poke",
        "polo",
        "pope",
        "ride",
        "ripe",
        "rode",
        "rope",
        "sake",
        "same",
        "side",
        "silo",
        "sofa",
        "soda",
        "solo",
        "some",
        "sole",
        "take",
        "tame",
        "tape",
        "time",
        "toga",
        "tone",
        "zone",
        "bode",
        "lido",
        "lobe",
        "lode",
        "robe",
        "bore",
        "nose",
    ]
)


def invented_name(draw: random.Random) -> Both:
    """A name of two or three syllables that nobody has, e.g. Kalomi 卡洛米."""
    while True:
        parts = draw.sample(_names()["syllables"], draw.choice([2, 2, 3]))
        name = "".join(part.en for part in parts)
        if name not in ENGLISH_WORDS:
            return Both(name.capitalize(), "".join(part.zh for part in parts))


def person(draw: random.Random, other_than: tuple[Person, ...] = ()) -> Person:
    """Somebody: a Western, Chinese or invented name, thousands in all. No two of a text share a name."""
    while True:
        found = _person(draw)
        taken = [other.name for other in other_than]
        if all(found.name.en != name.en and found.name.zh != name.zh for name in taken):
            return found


def _person(draw: random.Random) -> Person:
    gender = draw.choice("fm")
    chance = draw.random()
    names = _names()
    plural = "girls" if gender == "f" else "boys"
    if chance < 0.3:
        return Person(draw.choice(names[plural]), gender)
    given = names[f"given {plural}"]
    if chance < 0.38:  # a pet form: Xiaoming 小明
        one = draw.choice(given)
        return Person(Both(f"Xiao{one.en}", f"小{one.zh}"), gender)
    if chance < 0.72:
        family = draw.choice(names["family"])
        first = draw.choice(given)
        second = draw.choice(given) if draw.random() < 0.45 else None
        en = f"{family.en} {(first.en + (second.en if second else '')).capitalize()}"
        return Person(Both(en, family.zh + first.zh + (second.zh if second else "")), gender)
    if chance < 0.77:  # doubled, as children are called: Lele 乐乐
        one = draw.choice(given)
        return Person(Both((one.en * 2).capitalize(), one.zh * 2), gender)
    invented = invented_name(draw)
    if chance < 0.88:
        return Person(invented, gender)
    # Any name that one may be given: a family name and characters, called otherwise in English.
    characters = "".join(one.zh for one in draw.sample(names["characters"], draw.choice([1, 2, 2])))
    return Person(Both(invented.en, draw.choice(names["family"]).zh + characters), gender, is_arbitrary=True)


def animal_hero(draw: random.Random) -> Person:
    """An animal of a story, with a name."""
    return Person(pet_name(draw), draw.choice("fm"), is_animal=True)


def listed(items: list[Both], word_en: str = "and", word_zh: str = "和") -> Both:
    """a, b and c; a、b和c."""
    en = [item.en for item in items]
    zh = [item.zh for item in items]
    if len(items) == 1:
        return items[0]
    return Both(f"{', '.join(en[:-1])} {word_en} {en[-1]}", f"{'、'.join(zh[:-1])}{word_zh}{zh[-1]}")
