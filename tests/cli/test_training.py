"""pretrain, finetune and data check as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Outcome
from train.conftest import SHAPE, question, story, write_lines

Command = Callable[..., Outcome]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "questions.jsonl", [question(i, 1 + i % 3) for i in range(30)])


def test_pretrain_then_finetune_then_chat(minicpm: Command, toy: Path, questions: Path, tmp_path: Path):
    pytest.importorskip("torch")
    stories = write_lines(tmp_path / "stories.jsonl", [{"text": story(i)} for i in range(40)])
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    small = ["--length", "32", "--rows", "4", "--steps", "3", "--warmup-steps", "1", "--precision", "fp32"]
    run = tmp_path / "run"
    done = minicpm(
        "pretrain", "--shape", tmp_path / "shape.json", "--tokenizer", toy, "--data", stories, f"{questions}:2",
        "--eval", questions, "--out", run, *small,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "training from step 0 to 3" in done.err and "step 3/3  loss" in done.err and "left" in done.err
    assert (run / "metrics.jsonl").is_file() and (run / "loss.svg").is_file()
    again = minicpm("finetune", "-m", run / "final", "--data", questions, "--out", tmp_path / "tuned", *small, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["steps"] == 3
    assert minicpm("chat", "-m", tmp_path / "tuned/final", "--max-tokens", "3", "Hi").code == 0
    refused = minicpm("finetune", "-m", run / "final", "--data", questions, "--out", tmp_path / "tuned", *small)
    assert refused.code == 1 and "pass --resume" in refused.err


def test_data_check_counts_and_shows_what_is_learned(minicpm: Command, toy: Path, questions: Path):
    done = minicpm("data", "check", questions, "-m", toy)
    assert done.code == 0
    assert done.out.startswith("[<s> <用户>What is 0 + 0?<AI>]It is 0.")
    assert done.out.rstrip().endswith("</s>")
    assert "30 conversations;" in done.err and "of them trained" in done.err


def test_data_check_lists_bad_records_by_line(minicpm: Command, questions: Path):
    questions.write_text(questions.read_text() + '{"messages": []}\n{"oops"\n', encoding="utf-8")
    done = minicpm("data", "check", questions)
    assert done.code == 1
    assert done.out.splitlines() == [
        f"{questions}: line 31: messages is empty; give at least one with the role 'user'",
        f"{questions}: line 32: not valid JSON (Expecting ':' delimiter at character 8)",
    ]
    assert "2 bad records; training refuses" in done.err


def test_data_check_notes_what_is_seldom_meant(minicpm: Command, toy: Path, questions: Path):
    more = [{"text": "One </s> two"}, {"messages": [*question(1)["messages"], {"role": "user", "content": "<AI>?"}]}]
    write_lines(questions, [question(1, 3), *more])
    done = minicpm("data", "check", questions, "-m", toy, "--length", "40")
    assert done.code == 0
    assert "1 record with the end token in its text" in done.err and "1 record with a turn marker" in done.err
    assert "1 conversation that ends with a question" in done.err and "1 conversation longer than 40" in done.err


def test_data_check_speaks_json(minicpm: Command, toy: Path, questions: Path):
    found = json.loads(minicpm("data", "check", questions, "-m", toy, "--json").out)
    assert found["records"] == 30 and found["problems"] == [] and found["trained_tokens"] < found["tokens"]


def test_values_out_of_range_are_refused_in_a_sentence(minicpm: Command, toy: Path, questions: Path, tmp_path: Path):
    done = minicpm("finetune", "-m", toy, "--data", questions, "--out", tmp_path / "run", "--length", "4096")
    assert done.code == 1 and "longer than the model's context of 2048" in done.err
    done = minicpm("pretrain", "--data", questions, "--out", tmp_path / "other")
    assert done.code == 2 and "give the model's shape and a tokenizer, or a run to branch from" in done.err


def test_data_check_has_the_verdict_of_training(minicpm: Command, toy: Path, questions: Path, tmp_path: Path):
    """What training refuses is refused, in a word of the same meaning; FILE:N is the file."""
    run = ("finetune", "-m", toy, "--data", questions, "--out", tmp_path / "run", "--steps", "1", "--rows", "1")
    for length, words in (("4096", "longer than the model's context of 2048"), ("5", "trained token among")):
        checked, trained = (
            minicpm("data", "check", questions, "-m", toy, "--length", length),
            minicpm(*run, "--length", length),
        )
        assert (checked.code, trained.code) == (1, 1)
        assert words in checked.out + checked.err and words in trained.err
    assert minicpm("data", "check", f"{questions}:15", "-m", toy).code == 0


def test_data_check_names_fields_that_are_not_used(minicpm: Command, toy: Path, questions: Path):
    write_lines(questions, [{**question(1), "id": 7}, {**question(2), "id": 8, "system": "Be brief."}])
    done = minicpm("data", "check", questions, "-m", toy, "--show", "2")
    assert done.code == 0
    assert "2 records with the field id, which is not used" in done.err
    assert "Be brief." in done.out


def test_data_check_notes_answers_of_weight_0(minicpm: Command, toy: Path, questions: Path):
    turns = question(1, 2)["messages"]
    turns[1]["weight"] = 0
    write_lines(questions, [{"messages": turns}])
    done = minicpm("data", "check", questions, "-m", toy)
    assert (done.code, done.out.count("[")) == (0, 1)
    assert "1 conversation with an answer of weight 0" in done.err


def test_data_check_takes_a_gguf_file(minicpm: Command, toy: Path, questions: Path, tmp_path: Path):
    assert minicpm("convert", toy, tmp_path / "toy.gguf", "--to", "gguf").code == 0
    one = minicpm("data", "check", questions, "-m", tmp_path / "toy.gguf")
    other = minicpm("data", "check", questions, "-m", toy)
    assert (one.code, one.out) == (0, other.out)


def test_data_check_names_a_folder_that_is_no_model(minicpm: Command, questions: Path, tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    done = minicpm("data", "check", questions, "-m", tmp_path / "adapter")
    assert done.code == 1 and "PEFT adapter" in done.err
