"""What goes wrong is said in OpenAI's shape, with the field at fault, and nothing of the inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from minicpm.server.model import ServedModel
from server.running import ASK, CHAT, Running, error_of
from server.stub import StubEngine

JSON = {"content-type": "application/json"}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


@pytest.mark.parametrize(
    "change, param",
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 7}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"seed": 1 << 70}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 1000}, "stop_token_ids"),
        ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": None, "max_completion_tokens": -5}, "max_completion_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello!"}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant"}]}, "messages[0]"),
        ({"surprise": 1}, "surprise"),
        ({"functions": []}, "functions"),
        ({"modalities": ["audio"]}, "modalities[0]"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_value_out_of_range_is_named(client: httpx.Client, change: dict[str, Any], param: str | None):
    response = client.post(CHAT, json={**ASK, **change})
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "Hello!"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "Hello!"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "Hello!"}], "n": ' + b"9" * 5000 + b"}",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_no_request_is_refused(client: httpx.Client, body: bytes):
    response = client.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    error_of(response)


TOOL = {"type": "function", "function": {"name": "f"}}
JSON_FORM = {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("path", "body", "param", "named"),
    [
        (CHAT, {"stream_options": {}}, "stream_options", ["stream_options", '"stream": true']),
        (CHAT, {"stream_options": {}, "stream": None}, "stream_options", ["stream_options"]),
        (CHAT, {"top_logprobs": 0}, "top_logprobs", ["top_logprobs", "logprobs"]),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", ["max_tokens is 3", "is 4"]),
        (CHAT, {"tool_choice": "auto"}, "tool_choice", ["tool_choice", "tools"]),
        (CHAT, {**JSON_FORM, "structured_outputs": {"regex": "a"}}, "structured_outputs", ["response_format"]),
        (CHAT, {**JSON_FORM, "tools": [TOOL]}, "response_format", ["response_format", "tools", "tool_choice"]),
        (CHAT, {"structured_outputs": {"regex": "a"}, "tools": [TOOL]}, "structured_outputs", ["tools"]),
        (CHAT, {"structured_outputs": {}}, "structured_outputs", ["json, json_object, regex, choice, grammar", "none"]),
        (CHAT, {"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", ["json and regex"]),
        (CHAT, {"tools": [TOOL, TOOL]}, "tools", ["name f"]),
        (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", ["g"]),
        ("/v1/completions", {"best_of": 2}, "best_of", ["best_of is 2", "n is 1"]),
        ("/v1/completions", {"max_tokens": 0}, "max_tokens", ["max_tokens", "echo"]),
        ("/v1/completions", {"stream_options": {}}, "stream_options", ["stream"]),
        ("/tokenize", {"messages": ASK["messages"]}, "prompt", ["prompt and messages"]),
        ("/tokenize", {"prompt": None}, "prompt", ["prompt or messages is missing"]),
        ("/tokenize", {"continue_final_message": True}, "continue_final_message", ["messages"]),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_fields_that_contradict_each_other_are_all_named(
    client: httpx.Client, path: str, body: dict[str, Any], param: str, named: list[str]
):
    needed = {"messages": ASK["messages"]} if path == CHAT else {"prompt": "a"}
    response = client.post(path, json={**needed, **body})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert all(words in error["message"] for words in named), error["message"]
    assert "must be a JSON object" not in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "advice"),
    [(CHAT, "functions", "tools"), (CHAT, "audio", "text only"), (CHAT, "guided_json", "structured_outputs"),
     (CHAT, "max_new_tokens", "max_tokens"), (CHAT, "prompt", "/v1/completions"), (CHAT, "moderation", "judges"),
     ("/v1/completions", "suffix", "prompt"), ("/v1/completions", "messages", "/v1/chat/completions")],
)  # fmt: skip
def test_what_is_refused_is_said_with_what_to_do_instead(client: httpx.Client, path: str, field: str, advice: str):
    needed = {"messages": ASK["messages"]} if path == CHAT else {"prompt": "a"}
    error = error_of(client.post(path, json={**needed, field: ["x"]}))
    assert (error["param"], error["code"]) == (field, "unknown_parameter")
    assert field in error["message"] and advice in error["message"]


@pytest.mark.parametrize("body, said", [(b"[]", "a list"), (b'"a"', "a text"), (b"null", "empty"), (b"", "empty")])
def test_a_body_that_is_no_object_is_said_to_be_none(client: httpx.Client, body: bytes, said: str):
    message = error_of(client.post(CHAT, content=body, headers=JSON))["message"]
    assert "must be a JSON object" in message and said in message


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_an_encoded_body_is_refused_by_its_header(client: httpx.Client, encoding: str):
    response = client.post(CHAT, content=b"\x1f\x8b", headers={**JSON, "content-encoding": encoding})
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "identity"
    assert client.post(CHAT, json=ASK, headers={"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "hint"),
    [("/v1", "base URL"), ("/v1/", "base URL"), ("/chat/completions", "/v1/chat/completions"),
     ("/v1/v1/models", "ends with /v1 already"), ("/models", "must end with /v1"),
     ("/v1/tokenize", "it is at /tokenize"), ("/what", "/openapi.json")],
)  # fmt: skip
def test_a_path_that_is_not_there_comes_with_a_hint(client: httpx.Client, path: str, hint: str):
    response = client.post(path, json=ASK) if path.endswith("completions") else client.get(path)
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert hint in error_of(response)["message"]


def test_a_wrong_method_is_said_with_the_right_one(client: httpx.Client):
    assert "takes POST" in error_of(client.get(CHAT))["message"]


@pytest.mark.parametrize("path", ["/health", "/", "/v1/models", "/metrics"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str):
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert client.head(CHAT).status_code == 405


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_form_could_send_is_no_request(client: httpx.Client, kind: str):
    response = client.post(CHAT, content=json.dumps(ASK), headers={"content-type": kind})
    assert response.status_code == 400
    assert "Content-Type" in error_of(response)["message"]


def test_an_unknown_model_path_or_method_is_said(client: httpx.Client):
    unknown = client.post(CHAT, json={**ASK, "model": "gpt-4"})
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    assert client.get("/v1/models/gpt-4").status_code == 404
    missing = client.get("/v1/nothing")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = client.get(CHAT)
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_computed(client: httpx.Client, nano: Running):
    long = client.post(CHAT, json={"messages": [{"role": "user", "content": "a b c " * 3000}]})
    assert (long.status_code, error_of(long)["code"]) == (400, "context_length_exceeded")
    ids = client.post("/v1/completions", json={"prompt": [5] * nano.serving.model.context_length})
    assert error_of(ids)["code"] == "context_length_exceeded"
    text = client.post("/v1/embeddings", json={"input": "a b c " * 3000})
    assert error_of(text)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [{"prompt": ""}, {"prompt": []}, {"prompt": [[]]}, {"prompt": [-1]}, {"prompt": [1 << 40]}, {"prompt": ["a"] * 129},
     {"prompt": "a", "suffix": "b"}, {"prompt": "a", "best_of": 3}, {"prompt": "a", "max_tokens": 0}, {}],
    ids=lambda body: json.dumps(body)[:40],
)  # fmt: skip
def test_completions_that_cannot_be_are_refused(client: httpx.Client, body: dict[str, Any]):
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    error_of(response)


def test_the_official_client_raises_its_own_errors(nano: Running):
    official = openai.OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        official.chat.completions.create(model="gpt-4", messages=ASK["messages"])
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        official.chat.completions.create(model="nano", messages=ASK["messages"], temperature=-1)
    assert caught.value.param == "temperature"


def test_a_full_queue_says_when_to_come_back(start: Callable[..., Running]):
    engine = StubEngine(delay_s=60, limit=1)
    with start(engine).client() as client, client.stream("POST", CHAT, json={**ASK, "stream": True}) as first:
        assert first.status_code == 200
        refused = client.post(CHAT, json=ASK)
        assert (refused.status_code, error_of(refused)["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.post(CHAT, json={**ASK, "stream": True}).status_code == 429


def test_of_several_choices_none_runs_when_not_all_fit(start: Callable[..., Running]):
    engine = StubEngine(delay_s=60, limit=2)
    with start(engine).client() as client:
        assert client.post(CHAT, json={**ASK, "n": 3}).status_code == 429
        assert engine.alive == 0


@pytest.mark.parametrize("after", [0, 2])
def test_a_failure_of_the_engine_is_a_500_without_its_words(start: Callable[..., Running], after: int):
    engine = StubEngine()
    engine.fail_after = after
    with start(engine).client() as client:
        response = client.post(CHAT, json=ASK)
        assert response.status_code == 500
        assert error_of(response)["type"] == "server_error"
        assert "secret" not in response.text
        streamed = client.post(CHAT, json={**ASK, "stream": True}).text
        last = json.loads(streamed.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["type"] == "server_error" and "secret" not in streamed
        engine.fail_after = None
        assert client.post(CHAT, json=ASK).status_code == 200


@pytest.mark.parametrize("where", ["in a thread", "in the engine"])
def test_the_log_says_more_of_a_500_under_the_answers_number(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
):
    def broken(*arguments: object) -> None:
        raise ArithmeticError("secret words of the inside")

    engine = StubEngine()
    if where == "in a thread":
        monkeypatch.setattr(ServedModel, "chat_ids", broken)
    else:
        engine.fail_after, engine.failure = 1, ArithmeticError("secret words of the inside")
    with start(engine).client() as client:
        answer = client.post(CHAT, json=ASK)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert f"request {answer.headers['x-request-id']} failed" in caplog.text and "ArithmeticError" in caplog.text


def test_an_answer_that_takes_too_long_is_ended(start: Callable[..., Running]):
    engine = StubEngine(delay_s=0.05)
    with start(engine, total_timeout_s=0.3).client() as client:
        response = client.post(CHAT, json={**ASK, "max_tokens": 1000})
        assert (response.status_code, error_of(response)["code"]) == (504, "answer_timeout")
        assert engine.alive == 0


def test_waiting_too_long_for_a_token_is_ended(start: Callable[..., Running]):
    engine = StubEngine(delay_s=60)
    with start(engine, first_token_timeout_s=0.1).client() as client:
        response = client.post(CHAT, json=ASK)
        assert (response.status_code, error_of(response)["code"]) == (503, "first_token_timeout")
        assert engine.alive == 0


def test_every_response_has_a_number_and_a_given_one_is_kept(client: httpx.Client):
    assert client.get("/health").headers["x-request-id"].startswith("req-")
    assert client.get("/nothing", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/health", headers={"x-request-id": "bad one"}).headers["x-request-id"].startswith("req-")
