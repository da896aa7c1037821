"""The generated data of nano: what is asked for occurs, what is said is right, and nothing held out is trained on."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import grammar
import pytest
import stories
from corpus import is_held_out, prompts, read
from reading import reading, remembered
from tables import countries, groups

NUMBER = 150
SINGLE = ["chat_arithmetic", "chat_countries", "chat_words", "chat_small", "chat_unknown"]


@pytest.fixture(scope="module")
def records() -> dict[str, list[grammar.Record]]:
    return {kind: grammar.generate(kind, 5, NUMBER) for kind in grammar.RECORDS}


@pytest.fixture(scope="module")
def told() -> list[stories.Story]:
    chosen = random.Random(11)
    return [stories.tell({}, chosen) for _ in range(1000)]


def bare(text: str) -> str:
    return re.sub(r"[^a-z0-9+*/=-]+", " ", text.lower()).strip()


def test_the_same_seed_gives_the_same_records_and_another_seed_others(records):
    for kind, made in records.items():
        assert grammar.generate(kind, 5, NUMBER) == made, kind
        assert grammar.generate(kind, 6, NUMBER) != made, kind


def test_nothing_held_out_is_written_for_training(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["grammar.py", str(tmp_path), "--seed", "3", "--scale", "0.01"])
    grammar.main()
    for kind in grammar.RECORDS:
        training = list(read(tmp_path / f"{kind}.jsonl.gz"))
        aside = list(read(tmp_path / "held-out" / f"{kind}.jsonl.gz"))
        assert training
        assert len(training) + len(aside) == round(grammar.RECORDS[kind][0] * 0.01)
        assert not any(is_held_out(prompt) for record in training for prompt in prompts(record))
        assert all(any(is_held_out(prompt) for prompt in prompts(record)) for record in aside)


def test_conversations_alternate_and_no_turn_is_empty_or_unfilled(records):
    for made in records.values():
        for record in made:
            turns = record.get("messages", [{"role": "text", "content": record.get("text")}])
            assert "text" in record or [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
            for turn in turns:
                assert turn["content"].strip() == turn["content"] != ""
                assert not re.search(r"[{}\[\]<>~|]", turn["content"]), turn["content"]
                assert ".." not in turn["content"] or turn["role"] == "user"


def test_there_are_many_plots_and_stories_do_not_repeat(told):
    assert len(stories.plots()) >= 25
    assert len({story.text for story in told}) > 0.99 * len(told)
    assert {story.plot.name for story in told} == {plot.name for plot in stories.plots()}


def test_stories_have_60_to_150_words_and_end_with_a_sentence(told):
    for story in told:
        assert 60 <= len(story.text.split()) <= 150
        assert story.text[-1] in '.!?"'


def test_articles_fit_the_next_word(told):
    for story in told:
        assert not re.search(r"\b[Aa] [aeio]\w|\b[Aa]n [^aeiouh]|\b[Aa] honest", story.text), story.text


def test_a_story_has_at_most_three_names_and_all_of_them_are_listed(told):
    for story in told:
        found = set(grammar.NAMES) & set(re.findall(r"\w+", story.text))
        assert story.cast.hero in found
        assert found <= {story.cast.hero, story.cast.friend}


def test_pronouns_fit_the_names(told):
    forms = {"he": r"\b(he|him|his|himself)\b", "she": r"\b(she|her|herself)\b"}
    for story in told:
        people = [name for name in (story.cast.hero, story.cast.friend) if re.search(rf"\b{name}\b", story.text)]
        allowed = {stories.pronoun_of(name) for name in people}
        for pronoun, form in forms.items():
            assert pronoun in allowed or not re.search(form, story.text, re.IGNORECASE), story.text


def test_what_is_asked_for_occurs_in_the_story(records):
    for record in records["chat_stories"]:
        prompt, story = (turn["content"] for turn in record["messages"])
        for part, value in record["asked"].items():
            if part != "theme":
                assert value in story, (prompt, story)
                assert value.lower() in prompt.lower()


def test_every_animal_person_thing_place_and_theme_can_be_asked_for():
    chosen = random.Random(0)
    asked = [{"animal": animal} for animal in stories.ANIMALS] + [{"hero": person} for person in stories.PEOPLE]
    asked += [{"thing": thing, "colour": "red"} for thing in stories.TOYS] + [
        {"place": place} for place in stories.PLACES
    ]
    asked += [{"theme": theme} for plot in stories.plots() for theme in plot.themes]
    for one in asked:
        story = stories.tell(one, chosen)
        assert "theme" not in one or one["theme"] in story.plot.themes


def test_asking_for_what_no_plot_has_is_an_error():
    with pytest.raises(ValueError, match="no plot can hold"):
        stories.tell({"thing": "submarine"}, random.Random(0))


def test_answers_about_a_story_stand_in_the_story(told):
    chosen = random.Random(2)
    asked = 0
    for story in told[:300]:
        for _, answer, evidence in stories.questions(story, chosen):
            asked += 1
            assert evidence.lower() in story.text.lower()
            assert answer[0].isupper()
            assert answer[-1] == "."
    assert asked > 900


def test_answers_about_a_short_passage_use_its_words():
    chosen = random.Random(4)
    for _ in range(300):
        first, *_ = reading(chosen)
        if "passage" in first.facts and len(first.facts["passage"]) < 200:
            for word in re.findall(r"\w{4,}", first.answer):
                assert word.lower() in (first.asked + " colors older younger").lower(), (first.asked, first.answer)


def test_every_sum_is_right():
    symbols = {"plus": "+", "minus": "-", "x": "*", "times": "*", "and": "+", "take away": "-"}
    checked = 0
    for record in grammar.generate("chat_arithmetic", 1, 3000):
        prompt, answer = (turn["content"] for turn in record["messages"])
        numbers = [int(number) for number in re.findall(r"\d+", answer.split(".")[0])]
        match = re.search(r"(\d+) ?(\+|-|\*|plus|minus|times|x|and|take away) ?(\d+)", prompt)
        if match and " is " in answer and "bigger" not in answer:
            a, sign, b = int(match[1]), symbols.get(match[2], match[2]), int(match[3])
            value = {"+": a + b, "-": a - b, "*": a * b}[sign]
            assert record["answer"] == numbers[-1] == value, (prompt, answer)
            assert numbers[:2] == [a, b]
            checked += 1
        if record["is_sum_to_20"]:
            assert max(numbers) <= 20
    assert checked > 1500


def test_more_than_half_of_the_arithmetic_is_sums_to_20_and_covers_all_pairs():
    made = grammar.generate("chat_arithmetic", 2, grammar.RECORDS["chat_arithmetic"][0])
    easy = [record for record in made if record["is_sum_to_20"]]
    assert 0.58 < len(easy) / len(made) < 0.7
    pairs = {tuple(re.findall(r"\d+|plus|minus", record["messages"][1]["content"])[:3]) for record in easy}
    assert len(pairs) > 450  # of 231 sums and 231 differences


def test_one_question_has_one_answer_in_all_kinds():
    answers: dict[str, set[str]] = defaultdict(set)
    for kind in SINGLE:
        for record in grammar.generate(kind, 8, 1500):
            answers[bare(record["messages"][0]["content"])].add(record["messages"][1]["content"])
    assert {prompt: found for prompt, found in answers.items() if len(found) > 1} == {}


def test_a_prompt_belongs_to_one_group_only():
    listed = [bare(prompt) for group in groups() for prompt in group.prompts]
    assert len(listed) == len(set(listed))
    assert len(groups()) >= 350
    assert len({group.name for group in groups()}) == len(groups())
    assert all(len(group.prompts) >= 2 for group in groups())


def test_every_country_has_its_capital_and_all_of_them_are_asked_for():
    official = [row[0] for row in countries() if not row[3]]
    assert len(official) >= 193
    made = grammar.generate("chat_countries", 0, 4000)
    assert {record["country"] for record in made} >= set(official)
    for record in made:
        answer = record["messages"][1]["content"].lower()
        assert record["country"].lower() in answer
        assert record["answer"].lower() in answer


def test_what_was_told_is_remembered():
    chosen = random.Random(9)
    for _ in range(300):
        told, later = remembered(chosen)
        kept = later.answer.rstrip(".").split()[-1]
        assert kept.lower() in told.asked.lower()


def test_long_conversations_occur(records):
    lengths = [len(record["messages"]) // 2 for record in records["chat_turns"]]
    assert min(lengths) >= 2
    assert max(lengths) >= 8


def test_the_sample_in_the_repository_is_held_out_and_free():
    sample = Path(grammar.__file__).with_name("held-out.jsonl")
    records = [json.loads(line) for line in sample.read_text(encoding="utf-8").splitlines()]
    generated = [record for record in records if record["source"] == "grammar"]
    assert all(any(is_held_out(prompt) for prompt in prompts(record)) for record in generated)
    books = [record for record in records if record not in generated]
    assert {record["source"] for record in books} <= {"standard_ebooks", "gutenberg_children", "fairytaleqa_story"}
    assert not {record["kind"] for record in records} & {"chat_countries", "chat_turns"}  # facts under ODbL
    assert len(books) >= 5
    assert len(generated) >= 40
