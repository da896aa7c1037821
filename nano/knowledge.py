"""Countries, words, small talk and everyday facts; and the honest answers to what so small a model cannot know."""

from __future__ import annotations

import random
import re
from functools import cache

from asking import Turn, turn, vary
from stories import an, up
from tables import DAYS, LETTERS, MONTHS, ORDINALS, SEASONS, countries, first_rows, groups, table, unknown_answers

WELL_KNOWN = """France;Germany;Italy;Spain;the United Kingdom;the United States;China;Japan;India;Russia;Canada;
Brazil;Mexico;Australia;Egypt;Greece;Portugal;Poland;the Netherlands;Belgium;Austria;Switzerland;
Sweden;Norway;Denmark;Finland;Ireland;Türkiye;Turkey;England;the USA;Argentina;South Africa;Kenya;
Nigeria;South Korea;Thailand;Vietnam;Indonesia;Ukraine;Hungary;Czechia;Iceland;Cuba;Peru;Chile;
Colombia;Israel;Iran;Iraq;Saudi Arabia;Pakistan;Morocco;New Zealand;the UK;Croatia;Romania;
Singapore;the Philippines;Scotland;Bulgaria;Nepal;Mongolia""".replace("\n", "").split(";")
CAPITAL = [
    "What is the capital of {c}?",
    "What is the capital of {c}?",
    "What is the capital city of {c}?",
    "Which city is the capital of {c}?",
    "What's the capital of {c}?",
    "Tell me the capital of {c}.",
    "Name the capital of {c}.",
    "capital of {c}",
    "Capital of {c}?",
    "The capital of {c}?",
    "Do you know the capital of {c}?",
    "{C}: what is the capital?",
    "What is {c}'s capital?",
    "I want to know the capital of {c}.",
    "Say the capital of {c}.",
    "What city is the capital of {c}?",
    "The capital of {c} is",
    "Give me the capital of {c}.",
]
OF_CAPITAL = [
    "Which country has the capital {k}?",
    "{k} is the capital of which country?",
    "What country is {k} the capital of?",
    "Of which country is {k} the capital?",
    "Which country's capital is {k}?",
]
CONTINENT = [
    "Which continent is {c} in?",
    "On which continent is {c}?",
    "Where is {c}?",
    "What continent is {c} on?",
    "In which part of the world is {c}?",
    "Where can I find {c}?",
    "Where is {c} on the map?",
]
WHERE_CITY = ["Where is {k}?", "In which country is {k}?", "Which country is {k} in?", "What country is {k} in?"]


def country(chosen: random.Random) -> Turn:
    rows = countries()
    if chosen.random() < 0.5:
        rows = [row for row in rows if row[0] in WELL_KNOWN]
    name, capital, continent, note = chosen.choice(rows)
    draw = chosen.random()
    same = name.split()[-1] in capital or capital in name
    if draw < 0.62:
        form = chosen.choice(CAPITAL)
        spoken = name.removeprefix("the ") if chosen.random() < 0.12 else name
        prompt = vary(form.format(c=spoken, C=up(spoken)), chosen, typos=False)
        return turn(prompt, f"The capital of {name} is {capital}.", country=name, answer=capital)
    others = {row[0]: row[1] for row in countries()}
    if draw < 0.74 and not note and not same:
        prompt = vary(chosen.choice(OF_CAPITAL).format(k=capital), chosen, typos=False)
        return turn(prompt, f"{capital} is the capital of {name}.", country=name, answer=name)
    if draw < 0.86:
        prompt = vary(chosen.choice(CONTINENT).format(c=name), chosen, typos=False)
        return turn(prompt, f"{up(name)} is in {continent}.", country=name, answer=continent)
    if draw < 0.91 and not note and not same:
        prompt = vary(chosen.choice(WHERE_CITY).format(k=capital), chosen, typos=False)
        return turn(prompt, f"{capital} is in {name}.", country=name, answer=name)
    if draw < 0.96:
        wrong = chosen.choice([one for one in others.values() if one != capital])
        if chosen.random() < 0.5:
            return turn(
                vary(f"Is {capital} the capital of {name}?", chosen, typos=False),
                f"Yes, the capital of {name} is {capital}.",
                country=name,
                answer=capital,
            )
        return turn(
            vary(f"Is {wrong} the capital of {name}?", chosen, typos=False),
            f"No, the capital of {name} is {capital}.",
            country=name,
            answer=capital,
        )
    asked = chosen.choice(["Tell me about {c}.", "What is {c}?", "What do you know about {c}?"]).format(c=name)
    kind = "a part of the United Kingdom" if name in ("England", "Scotland", "Wales") else f"a country in {continent}"
    return turn(
        vary(asked, chosen, typos=False),
        f"{up(name)} is {kind}. Its capital is {capital}.",
        country=name,
        answer=capital,
    )


def words(chosen: random.Random) -> Turn:
    """Opposites, plurals, sounds, colors, lists, days, definitions."""
    kinds = {
        _opposite: 14,
        _plural: 8,
        _past: 5,
        _sound: 8,
        _home: 7,
        _baby: 7,
        _color: 8,
        _category: 9,
        _list: 12,
        _calendar: 13,
        _use: 8,
        _definition: 26,
        _rhyme: 5,
    }
    asked, answer = chosen.choices(list(kinds), list(kinds.values()))[0](chosen)
    return turn(vary(asked, chosen), answer)


def _opposite(chosen: random.Random) -> tuple[str, str]:
    word, opposite = chosen.choice(first_rows("opposites"))
    forms = [
        "What is the opposite of {}?",
        "What is the opposite of {}?",
        "What's the opposite of {}?",
        "opposite of {}",
        "Tell me the opposite of {}.",
        "Which word is the opposite of {}?",
        "Name the opposite of {}.",
    ]
    return chosen.choice(forms).format(word), f"The opposite of {word} is {opposite}."


def _plural(chosen: random.Random) -> tuple[str, str]:
    word, plural = chosen.choice(table("plurals"))
    forms = [
        "What is the plural of {0}?",
        "plural of {0}",
        "Tell me the plural of {0}.",
        "One {0}, two what?",
        "What's the plural of {0}?",
    ]
    return chosen.choice(forms).format(word), f"The plural of {word} is {plural}."


def _past(chosen: random.Random) -> tuple[str, str]:
    word, past = chosen.choice(table("past"))
    forms = [
        "What is the past tense of {}?",
        "past tense of {}",
        "Tell me the past tense of {}.",
        "What is the past of {}?",
    ]
    return chosen.choice(forms).format(word), f"The past tense of {word} is {past}."


def _sound(chosen: random.Random) -> tuple[str, str]:
    animal, sound = chosen.choice(table("sounds"))
    if chosen.random() < 0.2:
        return f'Which animal says "{sound}"?', f'{up(an(animal))} says "{sound}".'
    forms = ["What does {} say?", "What sound does {} make?", "What noise does {} make?", "How does {} sound?"]
    return chosen.choice(forms).format(an(animal)), f'{up(an(animal))} says "{sound}".'


def _home(chosen: random.Random) -> tuple[str, str]:
    animal, home = chosen.choice(table("homes"))
    preposition = "on" if "web" in home else "in"
    return chosen.choice(["Where does {} live?", "What is the home of {}?", "Where is the home of {}?"]).format(
        an(animal)
    ), f"{up(an(animal))} lives {preposition} {home}."


def _baby(chosen: random.Random) -> tuple[str, str]:
    animal, baby = chosen.choice(table("babies"))
    forms = [
        "What do you call a baby {}?",
        "What is a baby {} called?",
        "What is the name for a baby {}?",
        "What's a baby {} called?",
    ]
    return chosen.choice(forms).format(animal), f"A baby {animal} is called {an(baby)}."


def _color(chosen: random.Random) -> tuple[str, str]:
    thing, color = chosen.choice(table("colors"))
    forms = [
        "What color is {}?",
        "What color is {}?",
        "Which color is {}?",
        "What is the color of {}?",
        "Tell me the color of {}.",
    ]
    if chosen.random() < 0.15:
        wrong = chosen.choice([one for one in ("red", "blue", "green", "yellow", "white", "black") if one != color])
        asked = chosen.choice([color, wrong])
        return f"Is {thing} {asked}?", f"{'Yes' if asked == color else 'No'}, {thing} is {color}."
    return chosen.choice(forms).format(thing), f"{up(thing)} is {color}."


PLAIN = ("animal", "fruit", "vegetable", "color", "drink", "toy", "vehicle", "tool", "flower", "bird", "insect")


def _category(chosen: random.Random) -> tuple[str, str]:
    rows = {row[0]: row[2].split(", ") for row in table("categories") if row[0] in PLAIN}
    kind = chosen.choice(list(rows))
    item = chosen.choice(rows[kind])
    named = up(item) if kind in ("color", "drink") else up(an(item))
    spoken = item if kind in ("color", "drink") else an(item)
    if chosen.random() < 0.4:
        forms = ["What kind of thing is {}?", "What is {}: an animal, a fruit, or a color?"][:1]
        return chosen.choice(forms).format(spoken), f"{named} is {an(kind)}."
    close = {"animal", "bird", "insect", "toy", "vehicle"}
    wrong = chosen.choice(
        [
            one
            for one in rows
            if one != kind
            and item not in rows[one]
            and not ({one, kind} <= close)
            and {one, kind} != {"fruit", "color"}
        ]
    )
    asked = chosen.choice([kind, wrong])
    if asked == kind:
        return f"Is {spoken} {an(kind)}?", f"Yes, {spoken} is {an(kind)}."
    return f"Is {spoken} {an(asked)}?", f"No, {spoken} is {an(kind)}."


def _list(chosen: random.Random) -> tuple[str, str]:
    kind, plural, items = chosen.choice(table("categories"))
    members = items.split(", ")
    number = chosen.choice([2, 3, 3, 3, 4, 5])
    number = min(number, len(members))
    word = {2: "two", 3: "three", 4: "four", 5: "five"}[number]
    picked = members[:number]
    form = chosen.choice(
        [
            "Name {n} {k}.",
            "List {n} {k}.",
            "Tell me {n} {k}.",
            "Can you name {n} {k}?",
            "Give me {n} {k}.",
            "Say {n} {k}.",
        ]
    )
    if chosen.random() < 0.12:
        return f"Name {an(kind)}.", f"{up(members[0])}."
    joined = f"{picked[0]} and {picked[1]}" if number == 2 else ", ".join(picked[:-1]) + f", and {picked[-1]}"
    return form.format(n=word if chosen.random() < 0.75 else number, k=plural), up(joined) + "."


def _calendar(chosen: random.Random) -> tuple[str, str]:
    draw = chosen.random()
    names, kind = (
        (DAYS, "day")
        if draw < 0.4
        else (MONTHS, "month")
        if draw < 0.75
        else (SEASONS, "season")
        if draw < 0.85
        else (list(LETTERS), "letter")
    )
    place = chosen.randrange(len(names) - (kind == "letter"))
    this, following = names[place], names[(place + 1) % len(names)]
    draw = chosen.random()
    if draw < 0.45:
        forms = [
            "What {k} comes after {x}?",
            "Which {k} comes after {x}?",
            "What comes after {x}?",
            "What is the {k} after {x}?",
        ]
        return chosen.choice(forms).format(k=kind, x=this), f"{up(following)} comes after {this}."
    if draw < 0.8 or kind in ("season", "letter"):
        forms = [
            "What {k} comes before {x}?",
            "Which {k} comes before {x}?",
            "What comes before {x}?",
            "What is the {k} before {x}?",
        ]
        return chosen.choice(forms).format(k=kind, x=following), f"{up(this)} comes before {following}."
    if kind == "day":
        if draw < 0.9:
            return f"If today is {this}, what day is tomorrow?", f"If today is {this}, tomorrow is {following}."
        return f"If today is {following}, what day was yesterday?", f"If today is {following}, yesterday was {this}."
    return f"What is the {ORDINALS[place]} month of the year?", f"{this} is the {ORDINALS[place]} month of the year."


def _use(chosen: random.Random) -> tuple[str, str]:
    thing, answer = chosen.choice(table("uses"))
    some = thing if thing in ("scissors", "soap") else an(thing)
    are = "are" if thing == "scissors" else "is"
    forms = [
        "What {b} {x} for?",
        "What {b} {x} used for?",
        "What do you do with {x}?",
        "What can you do with {x}?",
        "Why do we need {x}?",
    ]
    return chosen.choice(forms).format(b=are, x=some), answer


def _definition(chosen: random.Random) -> tuple[str, str]:
    word, answer = chosen.choice(table("definitions"))
    first = answer.split()[0].lower()
    spoken = f"{first} {word}" if first in ("a", "an", "the") else word
    forms = [
        "What is {x}?",
        "What is {x}?",
        "What's {x}?",
        "What does {w} mean?",
        "What does the word {w} mean?",
        "Explain the word {w}.",
        "What is {x}, please?",
        "Tell me what {x} is.",
        "Define {w}.",
        "Do you know what {x} is?",
        "Explain what {x} is.",
        "Can you tell me what {x} is?",
    ]
    return chosen.choice(forms).format(x=spoken, w=word), answer


def _rhyme(chosen: random.Random) -> tuple[str, str]:
    word, other = chosen.choice(table("rhymes"))
    forms = [
        "What rhymes with {}?",
        "Which word rhymes with {}?",
        "Tell me a word that rhymes with {}.",
        "Name a word that rhymes with {}.",
    ]
    return chosen.choice(forms).format(word), f"{up(other)} rhymes with {word}."


@cache
def _group_weights() -> list[int]:
    return [group.weight for group in groups()]


def small(chosen: random.Random) -> Turn:
    group = chosen.choices(groups(), _group_weights())[0]
    place = min(
        chosen.randrange(len(group.prompts)), chosen.randrange(len(group.prompts))
    )  # the first ones are the usual ones
    return turn(vary(group.prompts[place], chosen), group.answer, group=group.name)


def unknown(chosen: random.Random) -> Turn:
    answers, fillers = unknown_answers()
    answer = chosen.choice(list(answers))
    asked = chosen.choice(answers[answer])
    while "{" in asked:
        asked = re.sub(r"\{(\w+)\}", lambda match: chosen.choice(fillers[match[1]]), asked)
    return turn(vary(asked, chosen) if asked.isascii() else asked, answer)
