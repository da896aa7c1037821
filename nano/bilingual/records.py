"""The kinds of records: semantic plans as conversations and texts, the same plan in both languages."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bilingual.dialogues import conversation, remembered, shortened, typed
from bilingual.facts import choice, fact
from bilingual.held_out import asked, frozen_prompts, is_aside
from bilingual.instructions import sentence, task
from bilingual.language import LANGUAGES, Exchange
from bilingual.numbers import arithmetic, comparison, counting, spelling, sum_in_steps, word_problem
from bilingual.reading import about_a_story, small_world, story_gist
from bilingual.stories import asked_for, tell
from bilingual.talk import talk

Record = dict[str, Any]
Plan = Callable[[random.Random], list[Exchange]]


def _numbers(draw: random.Random) -> list[Exchange]:
    make = draw.choices([arithmetic, word_problem, comparison, sum_in_steps], [55, 22, 18, 5])[0]
    return make(draw)


def _counting(draw: random.Random) -> list[Exchange]:
    return counting(draw) if draw.random() < 0.5 else spelling(draw)


def _story(draw: random.Random) -> list[Exchange]:
    request, story = asked_for(draw)
    return [Exchange(request, story.text)]


def _story_questions(draw: random.Random) -> list[Exchange]:
    return about_a_story(draw) if draw.random() < 0.9 else story_gist(draw)


def _talk(draw: random.Random) -> list[Exchange]:
    return talk(draw)


def _facts(draw: random.Random) -> list[Exchange]:
    exchanges = fact(draw) if draw.random() < 0.88 else choice(draw)
    return [shortened(exchange, draw) if draw.random() < 0.07 else exchange for exchange in exchanges]


def _reading(draw: random.Random) -> list[Exchange]:
    return [shortened(exchange, draw) if draw.random() < 0.1 else exchange for exchange in small_world(draw)]


def _dialogue(draw: random.Random) -> list[Exchange]:
    return remembered(draw) if draw.random() < 0.4 else conversation(draw)


def _long(draw: random.Random) -> list[Exchange]:
    turns: list[Exchange] = []
    while sum(len(turn.asked.en) + len(turn.answer.en) for turn in turns) < 2500:
        turns += conversation(draw, 10)
    return turns


@dataclass(frozen=True)
class Kind:
    """A kind of record: its plan, its share of the records, and of the stable phase's tokens (short rows) in %."""

    plan: Plan | None  # None: a text, a story that nobody asked for, or parallel sentences
    records: int  # of 100,000
    percent: int


KINDS: dict[str, Kind] = {
    "texts": Kind(None, 12_000, 14),
    "stories": Kind(_story, 11_000, 17),
    "story_questions": Kind(_story_questions, 9_000, 16),
    "reading": Kind(_reading, 17_000, 12),
    "facts": Kind(_facts, 15_000, 9),
    "numbers": Kind(_numbers, 12_000, 8),
    "counting": Kind(_counting, 7_000, 5),
    "talk": Kind(_talk, 6_000, 4),
    "tasks": Kind(task, 9_000, 5),
    "dialogues": Kind(_dialogue, 7_000, 10),
    "long": Kind(_long, 700, 0),
}


def _text(draw: random.Random) -> dict[str, str]:
    if draw.random() < 0.9:
        story = tell(draw)
        return {"en": story.text.en, "zh": story.text.zh}
    pairs = [sentence(draw) for _ in range(draw.randint(3, 8))]  # sentences, each with its translation below it
    lines = {"en": [], "zh": []}
    for pair in pairs:
        lines["en"].append(f"{pair.en}\n{pair.zh}")
        lines["zh"].append(f"{pair.zh}\n{pair.en}")
    return {language: "\n".join(made) for language, made in lines.items()}


def planned(kind: str, seed: int, number: int) -> dict[str, Record]:
    """Record `number` of a kind in each language: equal seeds give equal records, in any order."""
    draw = random.Random(f"{seed}/{kind}/{number}")
    plan = KINDS[kind].plan
    name = f"{seed}/{kind}/{number}"
    if plan is None:
        texts = _text(draw)
        return {language: {"plan": name, "text": texts[language]} for language in LANGUAGES}
    exchanges = plan(draw)
    records = {}
    for language in LANGUAGES:
        messages = []
        for exchange in exchanges:
            prompt = exchange.asked[language]
            if "as_is" not in exchange.facts:
                prompt = typed(prompt, language, draw)
            messages.append({"role": "user", "content": prompt})
            messages.append({"role": "assistant", "content": exchange.answer[language]})
        records[language] = {"plan": name, "messages": messages}
    return records


@dataclass
class Counts:
    """What became of the plans: kept for training, aside for measuring, refused as frozen."""

    training: int = 0
    aside: int = 0
    refused: int = 0


def generate(kind: str, seed: int, number: int, counts: Counts | None = None) -> Iterator[tuple[str, bool, Record]]:
    """Records (language, is aside, record) of so many plans.

    A record with a frozen prompt is never made, in neither language of its plan. A plan of which one language holds a
    prompt that is kept aside is aside in both.
    """
    counts = counts or Counts()
    frozen = frozen_prompts()
    for i in range(number):
        records = planned(kind, seed, i)
        prompts = {language: asked(record) for language, record in records.items()}
        if any(prompt in frozen for listed in prompts.values() for prompt in listed):
            counts.refused += 1
            continue
        aside = any(is_aside(listed) for listed in prompts.values())
        counts.aside += aside
        counts.training += not aside
        for language, record in records.items():
            yield language, aside, record


def line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
