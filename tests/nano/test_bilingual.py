"""The generator of nano v2: equal plans in both languages, right answers, variety, and nothing held out."""

from __future__ import annotations

import gzip
import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import generate
import pytest
from bilingual import records, stories
from bilingual.dialogues import conversation
from bilingual.facts import fact
from bilingual.held_out import Prompts, asked, frozen_prompts, is_aside
from bilingual.language import mended, number_en, number_zh
from bilingual.numbers import arithmetic, comparison, counting, spelling, word_problem
from bilingual.records import KINDS, Counts, planned
from bilingual.talk import groups
from bilingual.words import animals, colours, countries, person, things

SEED, NUMBER = 7, 60


@pytest.fixture(scope="module")
def made() -> dict[str, list[dict[str, Any]]]:
    """Some plans of every kind, in both languages."""
    return {kind: [planned(kind, SEED, i) for i in range(NUMBER if kind != "long" else 3)] for kind in KINDS}


def turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    contents = [turn["content"] for turn in record["messages"]]
    return list(zip(contents[::2], contents[1::2], strict=True))


def everything(made: dict[str, list[dict[str, Any]]], language: str) -> list[str]:
    texts = []
    for plans in made.values():
        for plan in plans:
            record = plan[language]
            texts += [record["text"]] if "text" in record else [turn["content"] for turn in record["messages"]]
    return texts


def test_a_plan_depends_on_seed_kind_and_number_alone(made):
    for kind, plans in made.items():
        assert planned(kind, SEED, 2) == plans[2]
        assert planned(kind, SEED + 1, 2) != plans[2]


def test_both_languages_of_a_plan_have_the_same_turns(made):
    for kind, plans in made.items():
        for plan in plans:
            english, chinese = plan["en"], plan["zh"]
            assert english["plan"] == chinese["plan"]
            if "text" not in english:
                roles = [turn["role"] for turn in english["messages"]]
                assert (
                    roles == [turn["role"] for turn in chinese["messages"]] == ["user", "assistant"] * (len(roles) // 2)
                )
                assert kind == "talk" or (turns(english) and turns(chinese))


def test_no_text_is_empty_or_unfilled(made):
    for language in ("en", "zh"):
        for text in everything(made, language):
            assert text.strip() == text != ""
            assert not re.search(r"[{}\[\]\0]|\.\.|。。|，，|  ", text), text
            assert "的的" not in text and " / " not in text.replace(
                " / ", "", 1 if re.search(r"\d / \d", text) else 0
            ), text


def test_english_articles_fit_and_sentences_begin_with_a_capital(made):
    for plans in (made["texts"], made["stories"]):
        for plan in plans:
            text = plan["en"].get("text") or plan["en"]["messages"][1]["content"]
            if "一" in text or "。" in text:
                continue  # parallel sentences
            assert not re.search(r"\b[Aa] [aeio]\w|\b[Aa]n [bcdfgjklmnpqrstvwxyz]", text), text
            assert not re.search(r"(?:^|[.!?] )[a-z]", text), text


def test_the_small_rules_of_english():
    assert mended("a apple is red. it is a orange. a unicorn, a one-way street") == (
        "An apple is red. It is an orange. A unicorn, a one-way street"
    )
    assert mended('"who is it?" asked a owl.') == '"Who is it?" asked an owl.'


def test_numbers_in_words():
    assert [number_en(n) for n in (0, 13, 20, 45, 100, 101, 345)] == [
        "zero", "thirteen", "twenty", "forty-five", "one hundred", "one hundred and one", "three hundred and forty-five"
    ]  # fmt: skip
    assert [number_zh(n) for n in (0, 10, 13, 20, 45, 100, 101, 110, 115, 345)] == [
        "零", "十", "十三", "二十", "四十五", "一百", "一百零一", "一百一十", "一百一十五", "三百四十五"
    ]  # fmt: skip


def test_sums_are_right_in_both_languages():
    draw = random.Random(1)
    for _ in range(300):
        [exchange] = arithmetic(draw)
        a, word, b, result = re.fullmatch(
            r"(\d+) (plus|minus|times|divided by) (\d+) is (\d+)\.", exchange.answer.en
        ).groups()
        sign = {"plus": "+", "minus": "-", "times": "*", "divided by": "//"}[word]
        assert eval(f"{a} {sign} {b}") == int(result)
        assert re.findall(r"\d+", exchange.answer.zh) == [a, b, result]
        assert re.findall(r"\d+", exchange.asked.en)[:2] == re.findall(r"\d+", exchange.asked.zh)[:2] == [a, b]


def test_word_problems_and_comparisons_are_right():
    draw = random.Random(2)
    for _ in range(200):
        [exchange] = word_problem(draw)
        a, b = (int(n) for n in re.findall(r"\d+", exchange.asked.en)[:2])
        assert exchange.short.en == str(a + b if " more." in exchange.asked.en else a - b) == exchange.short.zh
        assert exchange.short.en in exchange.answer.en and exchange.short.zh in exchange.answer.zh
        [exchange] = comparison(draw)
        found = re.fullmatch(r"(?:(Yes|No), )?(\d+) is (larger|smaller) than (\d+)\.", exchange.answer.en)
        if found:
            assert (int(found[2]) > int(found[4])) == (found[3] == "larger")
            if found[1]:
                assert (found[1] == "Yes") == (found[3] == "larger") == exchange.answer.zh.startswith("是的")


def test_counting_has_no_gap_and_ends_where_it_should():
    draw = random.Random(3)
    for _ in range(300):
        [exchange] = counting(draw)
        for answer, asked_text in ((exchange.answer.en, exchange.asked.en), (exchange.answer.zh, exchange.asked.zh)):
            numbers = [int(n) for n in re.findall(r"\d+", answer)]
            if len(numbers) > 3 and "=" not in answer:
                steps = {b - a for a, b in pairwise(numbers)}
                assert len(steps) == 1 and numbers[-1] in [int(n) for n in re.findall(r"\d+", asked_text)], asked_text
        assert sorted(re.findall(r"\d+", exchange.answer.en)) == sorted(re.findall(r"\d+", exchange.answer.zh))


def test_spelled_words_have_their_letters():
    draw = random.Random(4)
    for _ in range(300):
        [exchange] = spelling(draw)
        spelled = re.search(r"\b((?:[A-Za-zü]-)+[A-Za-zü])\b", exchange.answer.en)
        if spelled and "ackwards" not in exchange.asked.en:
            assert spelled[1].replace("-", "").lower() in exchange.asked.en.lower()


def test_yes_and_no_agree_with_the_table():
    draw = random.Random(5)
    flies = {str(animal.noun.en): animal.flies for animal in animals()}
    capitals = {country.name.en: country.capital.en for country in countries()}
    seen = 0
    for _ in range(2500):
        for exchange in fact(draw):
            answer = exchange.answer.en
            if answer[:4] not in ("Yes,", "No, "):
                continue
            yes = answer.startswith("Yes")
            assert yes == (not exchange.answer.zh.startswith(("不", "没"))), exchange
            found = re.fullmatch(r"(?:Can|Is) an? (.*?) (?:able to )?fly\?", exchange.asked.en)
            if found:
                assert yes == flies[found[1]] == ("cannot" not in answer)
            found = re.fullmatch(r"Is (.*) the capital of (.*)\?", exchange.asked.en)
            if found:
                seen += 1
                assert yes == (capitals[found[2]] == found[1]) and capitals[found[2]] in answer
            if not yes:  # what is denied is not said
                said = re.sub(r"[^a-z ]", "", answer[4:].lower())
                assert re.sub(r"[^a-z ]", "", exchange.asked.en.lower().removeprefix("is ")) != said
    assert seen > 10


def test_every_alternative_of_every_plot_can_be_told_in_both_languages():
    draw = random.Random(6)
    for plot in stories.plots():
        slots = stories._slots(stories.Cast.drawn(draw), plot, draw)
        for step in plot.steps:
            for language, alternatives in (("en", step.en), ("zh", step.zh)):
                for alternative in alternatives:
                    told = stories._told(alternative, language, slots[language], draw, True)
                    assert not re.search(r"[{}]", told)
                    assert bool(re.search(r"[\u4e00-\u9fff]", told)) == (language == "zh")
    assert len(stories.plots()) >= 25


def test_stories_differ_and_what_is_asked_for_occurs():
    draw = random.Random(8)
    told = []
    for _ in range(300):
        request, story = stories.asked_for(draw)
        told.append(story.text.en)
        named = re.search(r"named ([A-Z][\w ]*?)[.?!]?$", request.en)
        if named:
            assert named[1] in story.text.en
        assert story.hero.name.zh in story.text.zh and story.hero.name.en in story.text.en
    assert len(set(told)) == 300


def test_a_story_answers_its_questions():
    draw = random.Random(9)
    for _ in range(100):
        story = stories.tell(draw)
        for exchange in story.questions:
            short = exchange.short
            if short and short.en[:1].isupper():  # a name
                assert short.en.removesuffix("'s") in story.text.en and short.zh.removesuffix("的") in story.text.zh
            assert not re.search(
                r"[{}]", exchange.asked.en + exchange.asked.zh + exchange.answer.en + exchange.answer.zh
            )


def test_there_are_thousands_of_names_each_in_both_scripts():
    draw = random.Random(10)
    people = [person(draw).name for _ in range(6000)]
    assert len({name.en for name in people}) > 3000 and len({name.zh for name in people}) > 3000
    for name in people:
        assert re.fullmatch(r"[A-Za-zü ]+", name.en) and re.fullmatch(r"[\u4e00-\u9fff]+", name.zh)


def test_tables_name_nothing_twice_and_both_languages_have_everything():
    nouns = [animal.noun for animal in animals()] + [thing.noun for thing in things()]
    for found in (
        [str(noun.en) for noun in nouns],
        [country.name.en for country in countries()],
        [c.en for c in colours()],
    ):
        assert len(found) == len(set(found))
    for noun in nouns:
        assert re.fullmatch(r"[\u4e00-\u9fff]+", noun.zh) and re.fullmatch(r"[a-z -]+", noun.en)
    found, weights = groups()
    assert len(found) == len(weights) > 90
    prompts = [prompt for group in found for prompt in group.prompts.en.split(" / ")]
    assert len(prompts) == len(set(prompts))


def test_what_was_said_is_remembered():
    draw = random.Random(11)
    remembered = 0
    for _ in range(400):
        talk = conversation(draw)
        for i, exchange in enumerate(talk):
            if exchange.asked.en.startswith("What is my name"):
                said = [turn.asked for turn in talk[:i]]
                name = exchange.short
                if name:
                    remembered += 1
                    assert any(name.en in text.en for text in said) and any(name.zh in text.zh for text in said)
    assert remembered > 10


def test_a_plan_with_a_frozen_prompt_is_refused_in_both_languages(monkeypatch: pytest.MonkeyPatch):
    prompts = [asked(planned("facts", SEED, i)["zh" if i % 2 else "en"])[0] for i in range(4)]
    monkeypatch.setattr(records, "frozen_prompts", lambda: Prompts(prompts))
    counts = Counts()
    kept = [record["plan"] for _, _, record in records.generate("facts", SEED, 8, counts)]
    assert counts.refused >= 4 and counts.refused + counts.training + counts.aside == 8
    assert not {f"{SEED}/facts/{i}" for i in range(4)}.intersection(kept)
    assert all(kept.count(plan) == 2 for plan in kept)


def test_files_are_equal_for_equal_seeds_and_hold_nothing_held_out(tmp_path: Path):
    report = generate.write(tmp_path / "a", 5, 250)
    generate.write(tmp_path / "b", 5, 250)
    for path in sorted((tmp_path / "a").rglob("*.gz")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            prompts = asked(json.loads(line))
            assert not any(prompt in frozen_prompts() for prompt in prompts)
            assert "held-out" in path.parts or not is_aside(prompts)
    facts = report["kinds"]["facts"]
    assert facts["training"] + facts["held_out"] + facts["refused"] == facts["plans"]
    assert facts["en"]["different_records"] > 0.8 and report["kinds"]["stories"]["zh"]["different_records"] > 0.99
