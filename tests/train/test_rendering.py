"""Spans: what is learned of a conversation, and that a trained prompt is the served one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from minicpm.chat import CHATML_TEMPLATE, CURRENT_TEMPLATE, FEBRUARY_2024_TEMPLATE, Message
from minicpm.tokenizer import Tokenizer
from minicpm.train.records import Conversation, Text
from minicpm.train.rendering import Document, Renderer

TURNS: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": " Yes?"},
    {"role": "user", "content": "再见"},
    {"role": "assistant", "content": "\nBye 🙂 <AI>"},
)


def spans(document: Document, tokenizer: Tokenizer) -> list[tuple[bool, str]]:
    """(is trained, text) of each run of tokens."""
    found: list[tuple[bool, list[int]]] = []
    for token_id, is_trained in zip(document.ids, document.is_trained):
        if not found or found[-1][0] != is_trained:
            found.append((is_trained, []))
        found[-1][1].append(token_id)
    return [(trained, tokenizer.decode(ids, skip_special_tokens=False, continues=True)) for trained, ids in found]


def test_every_answer_is_trained_with_its_end_and_nothing_else(renderer: Renderer):
    document = Renderer(renderer.tokenizer, CURRENT_TEMPLATE, 1000).render(Conversation(TURNS))
    assert spans(document, renderer.tokenizer) == [
        (False, "<s> Be brief.<用户>Hi there<AI>"),
        (True, " Yes?</s>"),
        (False, "<用户>再见<AI>"),
        (True, "\nBye 🙂 <AI></s>"),
    ]


@pytest.mark.parametrize("turns", [2, 5])
def test_a_trained_prompt_has_the_ids_of_a_served_one(turns: int, renderer: Renderer):
    asked = TURNS[1:turns] if turns == 2 else TURNS[:2]
    served = renderer.tokenizer.encode(renderer.template.render(asked))
    answered: Message = {"role": "assistant", "content": "Yes?"}
    trained = renderer.render(Conversation((*asked, answered)))
    assert list(trained.ids[: len(served)]) == served
    assert not any(trained.is_trained[: len(served)])


def test_without_its_ends_a_conversation_has_the_ids_of_its_rendering(renderer: Renderer):
    turns: tuple[Message, ...] = (
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "The answer is 7."},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
    )
    document = renderer.render(Conversation(turns))
    without_ends = [i for i in document.ids if i != renderer.eos_token_id]
    assert without_ends == renderer.tokenizer.encode(renderer.template.render(turns))


def test_a_text_is_trained_whole_with_its_end(renderer: Renderer):
    document = renderer.render(Text("Once upon a time."))
    assert document.is_trained == (False, *[True] * (len(document.ids) - 1))
    assert document.ids[-1] == renderer.eos_token_id and document.is_text


def test_training_on_all_learns_the_questions_too(renderer: Renderer):
    everything = Renderer(renderer.tokenizer, renderer.template, 1000, "all")
    document = everything.render(Conversation(TURNS))
    assert document.ids == renderer.render(Conversation(TURNS)).ids
    assert all(document.is_trained[1:]) and not document.is_trained[0]


def test_chatml_answers_end_with_the_template_s_own_marker(renderer: Renderer):
    chatml = Renderer(renderer.tokenizer, CHATML_TEMPLATE, 1000)
    turns: tuple[Message, ...] = (*TURNS[3:4], {"role": "assistant", "content": "Bye"}, *TURNS[3:5])
    found = spans(chatml.render(Conversation(turns)), renderer.tokenizer)
    assert found[1] == (True, "Bye<|im_end|>")
    assert found[2] == (False, "\n<|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n")


def test_the_template_of_february_strips_what_it_writes(renderer: Renderer):
    stripping = Renderer(renderer.tokenizer, FEBRUARY_2024_TEMPLATE, 1000)
    assert (True, "Yes?</s>") in spans(stripping.render(Conversation(TURNS)), renderer.tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused(renderer: Renderer):
    template = dataclasses.replace(
        renderer.template, _render=lambda messages, prompt: f"{len(messages)} {messages[-1]['content']}"
    )
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        Renderer(renderer.tokenizer, template, 1000).render(Conversation(TURNS))


def test_the_release_s_preprocessing_is_where_the_spec_says_it_is_wrong(golden: Path, renderer: Renderer):
    """The faults of the fine-tuning script of 2024-02-07, beside what we do with the same data."""
    items = json.loads((golden / "chat" / "sft_preprocess_2024-02-07.json").read_text(encoding="utf-8"))["items"]
    data = json.loads((golden / "chat" / "sft_data.json").read_text(encoding="utf-8"))
    released, ours = items[0], renderer.render(Conversation(tuple(data[0]["messages"])))
    length = sum(released["attention_mask"])
    assert renderer.eos_token_id not in released["input_ids"][:length]  # the answer's end is never seen ...
    assert ours.ids[-1] == renderer.eos_token_id and ours.is_trained[-1]
    first = next(i for i, label in enumerate(released["label_ids"]) if label != -100)
    # ... and labels stand one early: after the model's own shift, each position predicts the token after the next.
    assert released["label_ids"][first] == released["input_ids"][first + 1]
    system = items[2]
    assert data[2]["messages"][0]["role"] == "system"
    assert system["input_ids"][1:4] != [328, 319, 796]  # the system text gets the assistant's marker
    assert system["label_ids"][3] != -100 or system["label_ids"][4] != -100  # and is learned
    ours = renderer.render(Conversation(tuple(data[2]["messages"])))
    assert spans(ours, renderer.tokenizer)[-1] == (True, "Yes?</s>")
    # One thing is kept: the answer itself is trained, all of its text.
    answer = renderer.tokenizer.decode([label for label in released["label_ids"] if label != -100])
    assert answer.strip() == data[0]["messages"][1]["content"]
