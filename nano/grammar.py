"""The generated part of nano's data: stories, questions, sums, small talk, and conversations made of them, without end.

    python nano/grammar.py OUT --seed 0 --scale 1.0

writes OUT/<kind>.jsonl.gz and, what corpus.is_held_out keeps aside, OUT/held-out/<kind>.jsonl.gz. Equal seeds give
equal bytes, another seed gives fresh text; scale multiplies the counts. One question has one answer in all kinds.

The texts stand in plots.txt (told by stories.py), answers.txt, words.txt, countries.tsv and unknown.txt (read by
tables.py); asking.py, arithmetic.py, knowledge.py and reading.py make questions of them; here they become conversations
and records. RECORDS lists the kinds.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stories
from arithmetic import arithmetic, easy_sum
from asking import AGAIN, Turn, story_turn, told, turn, vary
from corpus import is_held_out, prompts, write
from knowledge import country, small, unknown, words
from reading import copying, reading, remembered
from stories import ANIMALS, NAMES
from tables import countries, groups

__all__ = ["ANIMALS", "NAMES", "RECORDS", "generate"]

Record = dict[str, Any]


def _group(first: str, chosen: random.Random) -> Turn:
    group = next(group for group in groups() if group.prompts[0] == first)
    return turn(vary(chosen.choice(group.prompts), chosen), group.answer)


def conversation(chosen: random.Random) -> list[Turn]:
    """Two to ten turns of all kinds: a greeting first, thanks and goodbye last, and something remembered in between."""
    number = chosen.choice([2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10])
    turns: list[Turn] = []
    if chosen.random() < 0.5:
        turns.append(
            _group(
                chosen.choice(
                    [
                        "Hello",
                        "Hi",
                        "Hey",
                        "Good morning",
                        "Good evening",
                        "Good afternoon",
                        "How are you",
                        "Hello",
                        "Hi",
                    ]
                ),
                chosen,
            )
        )
    later: Turn | None = None
    story: stories.Story | None = None
    while len(turns) < number:
        draw = chosen.random()
        if later is not None and (draw < 0.25 or len(turns) == number - 1):
            turns.append(later)
            later = None
        elif story is not None and draw < 0.35:
            question = chosen.choice(stories.questions(story, chosen))
            turns.append(turn(vary(question[0], chosen, typos=False), question[1]))
            if chosen.random() < 0.5:
                story = None
        elif later is None and draw < 0.45 and number > 2:
            kept, later = remembered(chosen)
            turns.append(kept)
        elif draw < 0.56 and number < 9:
            telling, story = told(chosen)
            if turns and len(turns[-1].answer) > 250 and chosen.random() < 0.6:
                story = stories.tell({}, chosen)
                telling = turn(vary(chosen.choice(AGAIN), chosen, typos=False), story.text)
            turns.append(telling)
            if chosen.random() < 0.3:
                turns.append(_group(chosen.choice(["That was nice", "Thank you"]), chosen))
        elif draw < 0.7:
            turns.append(_sums(turns, chosen))
        else:
            kinds = {small: 12, words: 6, country: 5, arithmetic: 3, unknown: 2}
            turns.append(chosen.choices(list(kinds), list(kinds.values()))[0](chosen))
    if later is not None:
        turns.append(later)
    if chosen.random() < 0.35:
        turns.append(_group("Thank you", chosen))
    if chosen.random() < 0.3:
        turns.append(
            _group(chosen.choice(["Goodbye", "Goodbye", "See you later", "Good night", "I have to go"]), chosen)
        )
    return turns


def long_conversation(chosen: random.Random) -> list[Turn]:
    """Conversations behind each other until they fill most of the context of 2,048 tokens: the rare late positions."""
    wanted_characters = chosen.randrange(3600, 6800)
    turns: list[Turn] = []
    while sum(len(one.asked) + len(one.answer) for one in turns) < wanted_characters:
        turns += conversation(chosen)
    return turns


def _sums(turns: list[Turn], chosen: random.Random) -> Turn:
    """A sum; after another sum, in the way people go on."""
    if turns and "is_sum_to_20" in turns[-1].facts and chosen.random() < 0.6:
        a, b, c, name, _ = easy_sum(20, chosen)
        sign = {"plus": "+", "minus": "-"}[name]
        form = chosen.choice(
            [
                "And {a} {s} {b}?",
                "And what is {a} {s} {b}?",
                "And {a} {n} {b}?",
                "What about {a} {n} {b}?",
                "Okay, and {a} {s} {b}?",
                "Now {a} {s} {b}.",
            ]
        )
        return turn(form.format(a=a, b=b, s=sign, n=name), f"{a} {name} {b} is {c}.", is_sum_to_20=True)
    if turns and "country" in turns[-1].facts and chosen.random() < 0.6:
        name, capital, *_ = chosen.choice(countries())
        form = chosen.choice(
            ["And what is the capital of {}?", "And of {}?", "And the capital of {}?", "What about {}?", "And {}?"]
        )
        return turn(form.format(name), f"The capital of {name} is {capital}.", country=name)
    return chosen.choice([arithmetic, country])(chosen)


def _one(make: Callable[[random.Random], Turn]) -> Callable[[random.Random], Record]:
    """Conversations of one turn, with what the turn is measured by."""

    def record(chosen: random.Random) -> Record:
        made = make(chosen)
        return {**_messages([made]), **made.facts}

    return record


def _several(make: Callable[[random.Random], list[Turn]]) -> Callable[[random.Random], Record]:
    return lambda chosen: _messages(make(chosen))


def _messages(turns: list[Turn]) -> Record:
    messages = []
    for one in turns:
        messages += [{"role": "user", "content": one.asked}, {"role": "assistant", "content": one.answer}]
    return {"messages": messages}


def _plain(chosen: random.Random) -> Record:
    return {"text": stories.tell({}, chosen).text}


RECORDS: dict[str, tuple[int, Callable[[random.Random], Record]]] = {  # kind -> (how many at scale 1, what makes one)
    "stories": (20_000, _plain),
    "chat_stories": (25_000, _one(story_turn)),
    "chat_story_questions": (8_000, _several(reading)),
    "chat_copy": (8_000, _several(copying)),
    "chat_arithmetic": (14_000, _one(arithmetic)),
    "chat_countries": (8_000, _one(country)),
    "chat_words": (8_000, _one(words)),
    "chat_small": (8_000, _one(small)),
    "chat_unknown": (2_500, _one(unknown)),
    "chat_turns": (10_000, _several(conversation)),
    "chat_long": (1_200, _several(long_conversation)),
}


def generate(kind: str, seed: int, number: int) -> list[Record]:
    """So many records of one kind; the same for the same seed."""
    chosen = random.Random(f"{seed}/{kind}")
    make = RECORDS[kind][1]
    return [{"source": "grammar", "kind": kind, **make(chosen)} for _ in range(number)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    for kind, (number, _) in RECORDS.items():
        kept: dict[bool, list[Record]] = {False: [], True: []}
        for record in generate(kind, options.seed, round(number * options.scale)):
            kept[any(is_held_out(prompt) for prompt in prompts(record))].append(record)
        for aside, records in kept.items():
            path = (options.out / "held-out" if aside else options.out) / f"{kind}.jsonl.gz"
            print(f"{path}: {write(path, records):,} records", flush=True)


if __name__ == "__main__":
    main()
