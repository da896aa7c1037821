"""What measure.py counts, and that the card tells all of it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from card import GAP, GOALS, SOURCES, Run, card, lineage, percent, shipped, shown
from corpus import CONVERSATIONS, TEXTS
from measure import (
    Answer,
    HeldOut,
    Loss,
    Record,
    Scored,
    Sizes,
    answers_of,
    bits_per_byte,
    describe_model,
    describe_stories,
    difference,
    held_out,
    is_exact,
    is_number_right,
    last_number,
    loss_of,
    measure,
    measure_answers,
    names_in,
    repeated_4_grams,
    says,
    united_nations,
    wilson,
)

from minicpm import LLM
from minicpm.engine.backend import Row
from minicpm.models import load_model
from minicpm.train.records import parse_record
from minicpm.train.rendering import Renderer

torch.set_num_threads(1)


def asked(question: str, reply: str, /, **fields: Any) -> Record:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"source": "gen_test", "messages": messages, **fields}


KINDS: HeldOut = {
    "corpus/stories": [
        {"text": "One day, the old cat saw a dog."},
        {"text": "Zoë ran home to tell me, and the cat too."},
    ],
    "corpus/chat_small": [asked("Hello!", "Of the old corpus, with other answers.")],
    "grammar/chat_small": [
        asked("Hello!", "Hi there.", kind="chat_small"),
        asked("Who are you?", "I am nano.", kind="chat_small"),
    ],
    "grammar/chat_unknown": [
        asked("What is gold?", "I do not know.", kind="chat_unknown"),
        asked("What time is it?", "I have no clock.", kind="chat_unknown"),
    ],
    "grammar/chat_arithmetic": [
        asked("What is 2 + 3?", "2 + 3 = 5.", kind="chat_arithmetic", answer=5, is_sum_to_20=True),
        asked("What is 30 + 3?", "30 + 3 = 33.", kind="chat_arithmetic", answer=33, is_sum_to_20=False),
    ],
    "grammar/chat_stories": [
        asked(
            "Tell me a story about a rabbit named Max.",
            "Max ran home. " * 10,
            kind="chat_stories",
            asked={"animal": "rabbit", "name": "Max"},
        )
    ],
}


@pytest.fixture(scope="module")
def toy(golden: Path) -> LLM:
    return LLM(golden / "minicpm2b_tied", backend="torch", dtype="float32", device="cpu", max_batch=8)


@pytest.fixture(scope="module")
def renderer(toy: LLM) -> Renderer:
    return Renderer(toy.tokenizer, toy.template, toy.backend.vocab_size)


# --- words -------------------------------------------------------------------------------------------------------


def test_the_interval_of_wilson_agrees_with_published_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_4_gram_counts_as_repeated_each_time_it_occurs_again() -> None:
    assert repeated_4_grams("a b c d e f") == (0, 3)
    assert repeated_4_grams("a b c d a b c d a b c d") == (5, 9)
    assert repeated_4_grams('"The cat sat down," he said. The cat SAT down!') == (1, 7)
    assert repeated_4_grams("too short") == (0, 0)


def test_names_are_known_ones_and_any_capitalised_word_inside_a_sentence() -> None:
    assert names_in("Max met Belkk. Then Max said, Salki is here. The end.") == {"Max", "Belkk", "Salki"}
    assert names_in("The dog ran. He was glad.") == set()


def test_answers_agree_apart_from_case_accents_and_punctuation_only() -> None:
    record = asked("Who made you?", "I was made here.")
    assert is_exact(record, "i was made here!")
    assert not is_exact(record, "I was made there.")
    assert says("The capital is Brasilia.", "Brasília")
    assert says("It is Nuku'alofa.", "Nuku'alofa")
    assert not says("Romeo lives there.", "Rome")


def test_the_result_of_a_sum_is_the_last_number_of_the_answer() -> None:
    record = asked("What is 9 - 4?", "9 - 4 = 5.", answer="5")
    assert is_number_right(record, "The answer is 5.")
    assert not is_number_right(record, "5 - 4 = 1.")
    assert not is_number_right(record, "I like numbers.")
    assert last_number("1,234 apples") == 1234


def test_an_answer_that_the_data_put_before_other_numbers_must_agree_as_a_whole() -> None:
    record = asked("What comes after 7?", "8 comes after 7.", answer="8")
    assert is_number_right(record, "8 comes after 7.")
    assert not is_number_right(record, "7 comes after 8.")


def test_stories_are_described_by_what_was_asked_for() -> None:
    records = [asked("?", "!", asked={"animal": "rabbit", "name": "Max"}), asked("?", "!", asked={"animal": "fox"})]
    stories = [Answer("A rabbit named Max met Tom, Ben, Pip and Zoe.", True), Answer("The bear ran.", False)]
    described = describe_stories(records, stories)
    assert described["ended_before_256_tokens"]["share"] == 0.5
    assert described["at_most_three_names"]["share"] == 0.5
    assert (described["has_asked_animal"]["share"], described["has_asked_animal"]["n"]) == (0.5, 2)
    assert (described["has_asked_name"]["share"], described["has_asked_name"]["n"]) == (1.0, 1)
    assert described["mean_words"] == 6.5


# --- loss --------------------------------------------------------------------------------------------------------


def test_bits_per_byte_equal_a_direct_computation_with_torch(toy: LLM, renderer: Renderer, golden: Path) -> None:
    records = KINDS["corpus/stories"]
    model = load_model(golden / "minicpm2b_tied", dtype="float32").eval()
    nats = 0.0
    for record in records:
        ids = torch.tensor([toy.tokenizer.encode(record["text"])])  # with BOS, without EOS
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        nats += torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
    utf8_bytes = sum(len(record["text"].encode()) for record in records)
    measured = bits_per_byte(loss_of(toy, None, records, renderer, 10_000))
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / utf8_bytes, rel=1e-5)
    assert measured["bytes"] == utf8_bytes == len(records[0]["text"]) + len(records[1]["text"]) + 1


def test_the_loss_of_answers_counts_the_tokens_that_training_learns(toy: LLM, renderer: Renderer) -> None:
    records = KINDS["grammar/chat_small"]
    learned = sum(sum(renderer.render(parse_record(record)).is_trained) for record in records)
    assert loss_of(toy, None, records, renderer, 10_000).tokens == learned


def test_a_text_longer_than_the_context_counts_each_token_once(golden: Path, renderer: Renderer) -> None:
    short = LLM(golden / "minicpm2b_tied", backend="torch", dtype="float32", device="cpu", context=8)
    records = KINDS["corpus/stories"]
    tokens = sum(len(short.tokenizer.encode(record["text"], add_bos=False)) for record in records)
    assert loss_of(short, None, records, renderer, 10_000).tokens == tokens > 8


def test_no_more_records_are_read_than_the_tokens_asked_for(toy: LLM, renderer: Renderer) -> None:
    loss = loss_of(toy, None, KINDS["corpus/stories"] * 50, renderer, 30)
    assert 30 <= loss.tokens < 60


class FixedBackend:
    """Foresees the same at every place."""

    def __init__(self, probabilities: Sequence[float]):
        self._logits = np.log(np.array(probabilities, np.float32))

    def new_sequence(self, rope_length: int) -> None:
        return None

    def forward(self, rows: Sequence[Row]) -> list[np.ndarray]:
        return [np.tile(self._logits + 3, (len(row.token_ids), 1)) for row in rows]


def test_the_difference_of_two_models_is_kl_gap_and_agreement(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = SimpleNamespace(backend=FixedBackend([0.5, 0.25, 0.25]))
    other = SimpleNamespace(backend=FixedBackend([0.25, 0.5, 0.25]), context_length=8)
    monkeypatch.setattr("measure.documents", lambda *_: [({}, [Scored((0, 0, 1, 2), (False, True, False, True))])])
    measured = difference(loss_of(other, dense, [], renderer, 1))  # type: ignore[arg-type]
    assert measured["kl_nats_per_token"] == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert measured["loss_gap_nats_per_token"] == pytest.approx(math.log(2) / 2)  # of the tokens 0 and 2
    assert (measured["same_first_choice"]["share"], measured["same_first_choice"]["n"]) == (0.0, 2)


# --- answers and the whole ---------------------------------------------------------------------------------------


def test_answers_in_a_batch_are_those_of_a_chat(toy: LLM) -> None:
    questions = ["the cat", "a dog and the old house", "me"]
    alone = [toy.chat(question, temperature=0, repetition_penalty=1.0, max_tokens=6).text for question in questions]
    assert [answer.text for answer in answers_of(toy, questions, 6)] == alone


def test_answers_are_counted_by_kind_and_easy_sums_apart(toy: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "What is 2 + 3?": "It is 5",
        "What is 30 + 3?": "5",
        "Hello!": "Hi there",
        "Who are you?": "Who?",
        "What is gold?": "I have no clock.",  # honest, though to another question
        "What time is it?": "It is 5.",
    }
    monkeypatch.setattr(
        "measure.answers_of", lambda llm, asked, n: [Answer(said[turns[-1]["content"]], True) for turns in asked]
    )
    assert {name: row["share"] for name, row in measure_answers(toy, KINDS, 10).items()} == {
        "grammar/chat_small": 0.5,
        "grammar/chat_unknown": 0.5,
        "grammar/chat_arithmetic, sums and differences to 20": 1.0,
        "grammar/chat_arithmetic, all other": 0.0,
    }


def test_the_united_nations_have_193_members() -> None:
    capitals = dict(united_nations())
    assert (len(capitals), capitals["France"], capitals["the Bahamas"]) == (193, "Paris", "Nassau")


def test_a_folder_without_held_out_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.jsonl\.gz file"):
        held_out([tmp_path])


# --- the card ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(toy: LLM) -> Record:
    """A real report of a model that knows nothing, measured against itself."""
    limits = pytest.MonkeyPatch()
    limits.setattr("measure.STORY_TOKENS", 8)
    limits.setattr("measure.ANSWER_TOKENS", 4)
    measured = {"model": describe_model(toy.folder, toy), **measure(toy, KINDS, Sizes(40, 2, 2), toy)}
    limits.undo()
    measured["samples"] = [{"prompt": "Hello | you", "answer": "One line.\nAnother."}]
    return {**measured, "reference": copy.deepcopy(measured)}


def leaves(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Every number of a report, as the container, the key and the number."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, int | float) and not isinstance(item, bool):
            yield value, key, item
        yield from leaves(item)


def with_distinct_numbers(report: Record) -> Record:
    """The report with a number in each place that occurs nowhere else."""
    report = copy.deepcopy(report)
    for i, (container, key, value) in enumerate(list(leaves(report))):
        container[key] = 12_345 + 7 * i if isinstance(value, int) else round(0.123 + i * 0.0011, 4)
    return report


def untold(part: Any, text: str) -> list[str]:
    """Keys of a report's numbers that a card does not tell."""
    return [key for _, key, number in leaves(part) if shown(number) not in text and percent(number) not in text]


def test_the_card_holds_every_number_that_was_measured(report: Record) -> None:
    measured = with_distinct_numbers({key: report[key] for key in report if key not in ("reference", "difference")})
    text = card(measured)
    del measured["model"]["folder_bytes"]  # that of the quantized folder counts, which ships
    for row in measured["stories_of_the_data"].values():
        if isinstance(row, dict):
            del row["low"], row["high"], row["n"]  # those of the data are no sample of a model
    assert untold(measured, text) == []


def test_the_card_holds_every_difference_of_a_quantized_file(report: Record) -> None:
    quantized = with_distinct_numbers(report)
    text = card(report, [quantized])
    for part in quantized["difference"].values():
        del part["same_first_choice"]["low"], part["same_first_choice"]["high"]
    sizes = {key: quantized["model"][key] for key in ("weight_bytes", "folder_bytes")}
    assert untold([quantized["difference"], sizes], text) == []


def test_a_sample_stays_one_row_of_its_table(report: Record) -> None:
    assert "| Hello \\| you | One line.<br>Another. |" in card(report)


def reached(report: Record) -> tuple[Record, Record]:
    """A report that reaches all goals, and one of a quantized file."""
    good = copy.deepcopy(report)
    good["answer_loss"]["all"]["nats_per_token"] = 0.9
    good["answers"]["grammar/chat_small"]["share"] = 0.95
    good["answers"]["grammar/chat_arithmetic, sums and differences to 20"]["share"] = 0.85
    good["capitals"]["right"]["share"] = 0.7
    good["stories"]["ended_before_256_tokens"]["share"] = 0.99
    good["stories"]["repeated_4_gram_rate"] = 0.01
    quantized = copy.deepcopy(good)
    quantized["difference"]["answers"]["loss_gap_nats_per_token"] = 0.02
    return good, quantized


MISSES = [
    ("answer_loss", "all", "nats_per_token", 1.01),
    ("answers", "grammar/chat_small", "share", 0.89),
    ("answers", "grammar/chat_arithmetic, sums and differences to 20", "share", 0.79),
    ("capitals", "right", "share", 0.59),
    ("stories", "ended_before_256_tokens", "share", 0.94),
    ("stories", None, "repeated_4_gram_rate", 0.031),
]


def test_a_model_that_reaches_its_goals_is_not_called_a_toy(report: Record) -> None:
    good, quantized = reached(report)
    text = card(good, [quantized])
    assert "toy" not in text.lower()
    assert text.count("| pass |") == len(GOALS) + 1
    assert "| miss |" not in text


@pytest.mark.parametrize(("section", "row", "key", "value"), MISSES)
def test_a_model_that_misses_one_goal_is_called_a_toy(
    report: Record, section: str, row: str | None, key: str, value: float
) -> None:
    good, quantized = reached(report)
    (good[section] if row is None else good[section][row])[key] = value
    text = card(good, [quantized])
    assert "It is a toy" in text
    assert text.count("| miss |") == 1


def test_a_goal_that_was_not_measured_is_missed(report: Record) -> None:
    good, quantized = reached(report)
    assert "It is a toy" in card(good, [])
    good["stories"] = {}
    assert "It is a toy" in card(good, [quantized])


def test_the_smallest_file_whose_loss_gap_is_small_ships(report: Record) -> None:
    def file(name: str, weight_bytes: int, gap: float) -> Record:
        quantized = reached(report)[1]
        quantized["model"] |= {"weights": name, "weight_bytes": weight_bytes}
        quantized["difference"]["answers"]["loss_gap_nats_per_token"] = gap
        return quantized

    small, middle, large = file("int4-small", 4, 0.08), file("int4", 5, 0.02), file("int8", 9, 0.001)
    assert shipped([large, small, middle]) is middle
    assert shipped([small]) is small
    assert not GAP.is_reached(small)
    assert shipped([]) is None


def write_run(folder: Path, start: str, source: Path, steps: range, **options: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps(
            {
                "start": start, "from": str(source),
                "data": ["runs/nano/corpus/books.jsonl.gz:30%", "x/chat_stories.jsonl:2"],
                "evaluation": [], "train_on": "all", "length": 256, "rows": 16, "steps": 20_000, "epochs": 1.0,
                "schedule": "wsd", "warmup_steps": 150, "decay_steps": 0, "clip_norm": 1.0, "precision": "auto",
                "dtype": "auto", "seed": 0, "optimizer": {"name": "muon", "lr": 0.01, "weight_decay": 0.1}, **options,
            }
        )
    )  # fmt: skip
    lines = [{"step": i, "loss": 5.0 - i / 10, "tokens": 4000 * i, "tokens_per_s": 1000.0} for i in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_counts_up_to_where_the_next_branched_off_it(tmp_path: Path) -> None:
    stable = write_run(tmp_path / "stable", "scratch", tmp_path / "config.json", range(1, 31))
    branch = write_run(tmp_path / "decay", "branch", stable / "checkpoints" / "step-20", range(21, 26), decay_steps=5)
    first, second = lineage([stable, branch])
    assert (len(first.steps), sum(first.step_tokens), first.hours) == (20, 80_000, pytest.approx(80 / 3600))
    assert (len(second.steps), sum(second.step_tokens)) == (5, 20_000)


def test_the_card_tells_of_runs_without_the_paths_of_a_machine(tmp_path: Path, report: Record) -> None:
    run = Run.read(write_run(tmp_path / "stable", "scratch", tmp_path / "config.json", range(1, 3)))
    text = card(report, [], [run])
    assert "corpus/books 30 %, x/chat_stories x 2" in text
    assert "random weights" in text
    assert str(tmp_path) not in text
    assert "Standard Ebooks" in text
    assert "Taskmaster" not in text  # of no kind that the run learned from


def test_every_source_of_the_corpus_has_its_licence_told() -> None:
    listed = {tag for entry in json.loads(SOURCES.read_text(encoding="utf-8")) for tag in entry["tags"]}
    assert {tag for kinds in (TEXTS, CONVERSATIONS) for tags in kinds.values() for tag in tags} <= listed


def test_sums_of_losses_add_up() -> None:
    total = Loss()
    total.add(Loss(nats=1.5, tokens=2, records=1, utf8_bytes=7))
    total.add(Loss(nats=0.5, tokens=1, records=1, utf8_bytes=3))
    assert (total.nats, total.tokens, total.records, total.utf8_bytes) == (2.0, 3, 2, 10)
