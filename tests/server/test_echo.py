"""/v1/completions with `echo` and `logprobs`: what the model thinks of the prompt itself, as evaluations ask for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from minicpm.engine.service import Service
from server.running import Running, error_of
from server.stub import StubEngine

TEXTS = ["Once upon a time, there was a mouse.", "1, 2, 3, 山"]
ECHO = {"echo": True, "logprobs": 2, "temperature": 0, "repetition_penalty": 1, "ignore_eos": True}


def asked(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/completions", json={**ECHO, **body})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_a_prompts_log_probabilities_are_those_of_its_logits(client, service: Service, max_tokens):
    llm = service.llm
    for choice, text in zip(asked(client, prompt=TEXTS, max_tokens=max_tokens), TEXTS):
        ids = llm.tokenizer.encode(text)
        found, expected = choice["logprobs"], log_softmax(service.call(lambda ids=ids: llm.logits(ids)))
        count = len(ids) + max_tokens
        assert [len(found[name]) for name in found] == [count] * 4
        assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
        for place in range(1, len(ids)):
            row = expected[place - 1]
            # exp in single precision where the oracle's is in double
            assert found["token_logprobs"][place] == pytest.approx(row[ids[place]], abs=1e-5)
            top = found["top_logprobs"][place]
            assert list(top.values())[-2:] == pytest.approx(np.sort(row)[-2:], abs=1e-5)
            assert found["tokens"][place] in top and len(top) <= 3
        assert choice["text"].startswith(text)
        assert choice["finish_reason"] == "length"


def test_their_sum_is_the_loglikelihood_of_a_continuation(client, service: Service):
    llm = service.llm
    before, after = llm.tokenizer.encode("Once upon a time"), llm.tokenizer.encode(" there was", add_bos=False)
    (choice,) = asked(client, prompt=[*before, *after], max_tokens=0)
    ((expected,),) = service.call(lambda: llm.loglikelihood([(before, [after])]))
    assert sum(choice["logprobs"]["token_logprobs"][len(before) :]) == pytest.approx(expected.logprob, abs=1e-5)


def test_an_answer_behind_an_echo_is_the_answer_without(client):
    without = client.post("/v1/completions", json={**ECHO, "echo": False, "prompt": TEXTS, "max_tokens": 5}).json()
    for text, one, other in zip(TEXTS, asked(client, prompt=TEXTS, max_tokens=5), without["choices"]):
        assert one["text"] == text + other["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            assert one["logprobs"][name][-5:] == other["logprobs"][name]
        assert one["logprobs"]["text_offset"][-5:] == [len(text) + at for at in other["logprobs"]["text_offset"]]


def test_the_token_that_ends_an_answer_is_listed_as_evaluations_expect(client, service: Service):
    llm, options = service.llm, {"max_tokens": 9, "ignore_eos": False}
    (choice,) = asked(client, prompt=TEXTS[1], **options)
    (bare,) = asked(client, prompt=TEXTS[1], echo=False, **options)
    assert (choice["finish_reason"], choice["text"]) == ("stop", TEXTS[1] + bare["text"])
    (answer,) = service.call(lambda: llm.generate(TEXTS[1], temperature=0, repetition_penalty=1, max_tokens=9))
    assert len(bare["logprobs"]["tokens"]) == len(answer.ids)
    row = log_softmax(service.call(lambda: llm.logits([*llm.tokenizer.encode(TEXTS[1]), *answer.ids])))[-1]
    assert choice["logprobs"]["tokens"][-1] == "</s>"
    assert choice["logprobs"]["token_logprobs"][-1] == pytest.approx(row.max(), abs=1e-5)


def test_offsets_are_where_tokens_stand_in_the_text(client, service: Service):
    # 山 is three byte tokens in nano's vocabulary: all three stand where it does.
    (choice,) = asked(client, prompt=TEXTS[1], max_tokens=0)
    lists, text = choice["logprobs"], choice["text"]
    assert text == TEXTS[1]
    assert lists["text_offset"][-3:] == [len(text) - 1] * 3
    for token, start, end in zip(lists["tokens"][1:-3], lists["text_offset"][1:], lists["text_offset"][2:]):
        assert text[start:end] == (token if start else token.removeprefix(" "))


def test_streams_and_several_choices_say_the_same(client):
    body = {**ECHO, "prompt": TEXTS, "n": 2, "max_tokens": 3, "seed": 1, "ignore_eos": False}
    whole = client.post("/v1/completions", json=body).json()["choices"]
    streamed: dict[int, dict[str, Any]] = {}
    for line in client.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                heard = streamed.setdefault(choice["index"], {"text": ""})
                heard["text"] += choice["text"]
                for name, values in (choice["logprobs"] or {}).items():
                    heard.setdefault(name, []).extend(values)
    assert [{"text": choice["text"], **choice["logprobs"]} for choice in whole] == [streamed[i] for i in range(4)]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_of_no_tokens_is_finished_and_counted(client, is_streamed):
    options = {"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {}
    body = {"prompt": [5, 6, 7], "echo": True, "max_tokens": 0, **options}
    response = client.post("/v1/completions", json=body)
    if is_streamed:
        events = [json.loads(e.removeprefix("data: ")) for e in response.text.split("\n\n") if e.startswith("data: {")]
        (choice,), used = events[0]["choices"], events[-1]["usage"]
    else:
        (choice,), used = response.json()["choices"], response.json()["usage"]
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert (used["prompt_tokens"], used["completion_tokens"]) == (3, 0)


def test_a_prompt_may_fill_the_context_where_nothing_is_added(client, nano: Running):
    ids = [5] * nano.serving.model.context_length
    (choice,) = asked(client, prompt=ids, max_tokens=0)
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    refused = client.post("/v1/completions", json={**ECHO, "prompt": ids, "max_tokens": 1})
    assert error_of(refused)["code"] == "context_length_exceeded"
    assert error_of(client.post("/v1/completions", json={**ECHO, "prompt": [*ids, 5], "max_tokens": 0}))


def test_no_answer_is_written_where_none_is_asked_for(start: Callable[..., Running]):
    engine = StubEngine()
    with start(engine).client() as client:
        (choice,) = asked(client, prompt=[5, 6], max_tokens=0)
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0]
    assert engine.tickets == []
