"""What clients hold of a conversation comes back in the next turn; what they do not set is null."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types import EmbeddingCreateParams
from openai.types import completion_create_params as older
from openai.types.chat import completion_create_params
from pydantic import BaseModel

from minicpm.server import requests
from minicpm.server.chat import conversation
from minicpm.server.requests import ChatRequest, CompletionRequest, EmbeddingRequest, ignored_fields
from server.running import ASK, CHAT, Running, logged_line
from server.stub import StubEngine

USER = {"role": "user", "content": "Hi"}
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
# The client's parse() takes strict functions only.
TOOL = {"type": "function", "function": {"name": "f", "strict": True, "parameters": PARAMETERS}}
WANTED = {"model": "nano", "messages": [USER], "tools": [TOOL], "tool_choice": "required", "max_tokens": 2}


class Size(BaseModel):
    is_large: bool


def official(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def calling(start: Callable[..., Running]) -> openai.OpenAI:
    """The official client of a server that always answers with one call."""
    return official(start(StubEngine([CALL[:20], CALL[20:]], reason="stop")))


def joined(client: openai.OpenAI) -> list[dict[str, Any]]:
    """The calls of a streamed answer, its deltas put together as the client's manual shows."""
    calls: dict[int, Any] = {}
    for chunk in client.chat.completions.create(**WANTED, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            if delta.index in calls:
                calls[delta.index].function.arguments += delta.function.arguments or ""
            else:
                calls[delta.index] = delta
    return [call.model_dump() for call in calls.values()]


def streamed(client: openai.OpenAI) -> Any:
    with client.chat.completions.stream(**WANTED) as stream:
        return stream.get_final_completion().choices[0].message


HANDED_OUT = {
    "create": lambda client: client.chat.completions.create(**WANTED).choices[0].message,
    "create, dumped": lambda client: client.chat.completions.create(**WANTED).choices[0].message.model_dump(),
    "parse": lambda client: client.chat.completions.parse(**WANTED).choices[0].message,
    "parse, dumped": lambda client: client.chat.completions.parse(**WANTED).choices[0].message.model_dump(),
    "stream": streamed,
    "stream, dumped": lambda client: streamed(client).model_dump(),
    "deltas": lambda client: {"role": "assistant", "content": None, "tool_calls": joined(client)},
}


@pytest.mark.parametrize("how", HANDED_OUT)
def test_a_call_that_the_official_client_hands_out_is_taken_back(calling: openai.OpenAI, how: str):
    message = HANDED_OUT[how](calling)
    result = {"role": "tool", "tool_call_id": "1", "content": "2"}
    assert calling.chat.completions.create(model="nano", messages=[USER, message, result, USER], max_tokens=2)
    taken = ChatRequest.model_validate({"messages": [USER, as_sent(message)]})
    assert conversation(taken.messages)[1] == {"role": "assistant", "content": CALL}


def as_sent(message: Any) -> Any:
    """A message as the client writes it into a request."""
    return json.loads(message.model_dump_json()) if isinstance(message, BaseModel) else message


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client, about its own field
def test_an_answer_that_the_official_client_has_parsed_is_taken_back(start: Callable[..., Running]):
    client = official(start(StubEngine(['{"is_large": true}'], reason="stop")))
    message = (
        client.chat.completions.parse(model="nano", messages=[USER], response_format=Size, max_tokens=1)
        .choices[0]
        .message
    )
    assert message.parsed == Size(is_large=True)
    for back in (message, message.model_dump()):
        assert client.chat.completions.create(model="nano", messages=[USER, back, USER], max_tokens=1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_without_a_word_can_be_sent_back(start: Callable[..., Running], stream: bool):
    asked = {**WANTED, "tool_choice": "auto", "max_tokens": 1, "stream": stream}
    with start(StubEngine([""])).client() as client:
        if not stream:
            message = client.post(CHAT, json=asked).json()["choices"][0]["message"]
            assert message["content"] == "" and message["tool_calls"] is None
            assert client.post(CHAT, json={**ASK, "messages": [USER, message, USER]}).status_code == 200
        else:
            assert '"content":""' in client.post(CHAT, json=asked).text


ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({"content": "x", "reasoning_content": "thought"}, "x"),
    ({"content": "x", "reasoning": None, "reasoning_details": []}, "x"),
    ({"content": "x", "id": 7, "created": 1}, "x"),
    ({"content": "x", "cache_control": {"type": "ephemeral"}}, "x"),
    ({"content": "x", "prefix": True, "provider_specific_fields": {"a": 1}}, "x"),
    ({"content": "x", "refusal": None, "audio": None, "annotations": [], "function_call": None}, "x"),
    ({"content": None, "refusal": "No."}, "No."),
    ({"content": [{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "No."}]}, "x\nNo."),
    ({"content": "", "tool_calls": []}, ""),
    ({"content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}}, CALL),
    ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, CALL),
    (
        {"tool_calls": [{"id": None, "type": None, "index": 0, "function": {"name": "f", "arguments": ""}}]},
        CALL.replace('"a": 1', ""),
    ),
]


@pytest.mark.parametrize(("answer", "text"), ANSWERS, ids=lambda value: json.dumps(value)[:50])
def test_answers_of_other_programs_are_taken(client: httpx.Client, answer: dict[str, Any], text: str):
    messages = [USER, {"role": "assistant", **answer}, USER]
    assert client.post(CHAT, json={**ASK, "messages": messages}).status_code == 200
    assert conversation(ChatRequest(messages=messages).messages)[1]["content"] == text


def test_results_of_both_generations_of_functions_are_read():
    results = [
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "sun"}], "name": "f"},
        {"role": "function", "name": "f", "content": "rain"},
        {"role": "function", "name": "f", "content": None},
    ]
    turns = conversation(ChatRequest(messages=[USER, *results]).messages)
    assert [turn["role"] for turn in turns] == ["user", "user"]
    assert turns[1]["content"].index("sun") < turns[1]["content"].index("rain")


def test_ignored_fields_are_named_once_and_without_their_values():
    body = ChatRequest(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"secret": 1}}], "id": 1},
            {"role": "user", "content": "b", "id": 2, "bad name\n": 3},
        ],
        tools=[{**TOOL, "cache_control": {}}],
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        keep_alive="5m",
        user="somebody",
    )
    assert set(ignored_fields(body)) == {
        "messages.content.cache_control", "messages.id", "?", "tools.cache_control",
        "stream_options.continuous_usage_stats", "keep_alive",
    }  # fmt: skip
    assert ignored_fields(ChatRequest(messages=[USER], user="x", metadata={})) == []
    many = ChatRequest(messages=[{**USER, **{f"x{number}": 1 for number in range(100)}}])
    assert len(ignored_fields(many)) == 9


def test_ignored_fields_are_in_the_requests_one_line_of_the_log(start: Callable[..., Running], caplog):
    caplog.set_level(logging.INFO, "minicpm.server")
    with start().client() as client:
        body = {**ASK, "messages": [{**USER, "id": "swordfish"}], "thinking": {"type": "disabled"}}
        client.post(CHAT, json=body, headers={"x-request-id": "mine-7"})
    line = logged_line(caplog, "mine-7")
    assert "ignored=" in line and "messages.id" in line and "thinking" in line and "swordfish" not in line


# --- Null ----------------------------------------------------------------------------------------------------


def optional_fields(kind: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items() if not field.is_required()]


@pytest.mark.parametrize("name", optional_fields(ChatRequest))
def test_null_is_the_same_as_leaving_a_field_out_of_a_chat(name: str):
    left_out = ChatRequest.model_validate({"messages": [USER]})
    assert ChatRequest.model_validate({"messages": [USER], name: None}) == left_out


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (CHAT, ASK, ChatRequest),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}, CompletionRequest),
        ("/v1/embeddings", {"input": "a"}, EmbeddingRequest),
        ("/tokenize", {"prompt": "a"}, requests.TokenizeRequest),
        (CHAT, {**ASK, "stream": True, "stream_options": {"include_usage": None, "include_obfuscation": None}}, None),
        (CHAT, {**ASK, "tools": [{**TOOL, "function": {"name": "f", "parameters": None, "strict": None}}]}, None),
        (CHAT, {**ASK, "structured_outputs": {"regex": "a", "json": None, "choice": None}}, None),
        (CHAT, {**ASK, "response_format": {"type": "json_object", "schema": None}}, None),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_null_is_accepted_where_a_field_may_be_left_out(start: Callable[..., Running], path, body, kind):
    nulls = dict.fromkeys(optional_fields(kind)) if kind else {}
    with start().client() as client:
        response = client.post(path, json={**nulls, **body})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("field", ["messages", "tokens", "input"])
def test_null_is_refused_where_a_field_is_needed(start: Callable[..., Running], field: str):
    path = {"messages": CHAT, "tokens": "/detokenize", "input": "/v1/embeddings"}[field]
    with start().client() as client:
        assert client.post(path, json={field: None}).status_code == 400


def test_the_description_of_the_api_says_what_may_be_null(start: Callable[..., Running]):
    with start().client() as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for kind, name in (("ChatRequest", "n"), ("ChatRequest", "tools"), ("StreamOptions", "include_usage"),
                       ("EmbeddingRequest", "encoding_format"), ("CompletionRequest", "prompt")):  # fmt: skip
        assert {"type": "null"} in schemas[kind]["properties"][name]["anyOf"], name


# --- The official client as oracle ---------------------------------------------------------------------------

KNOWN = [
    (completion_create_params.CompletionCreateParamsStreaming, ChatRequest),
    (older.CompletionCreateParamsStreaming, CompletionRequest),
    (EmbeddingCreateParams, EmbeddingRequest),
]


@pytest.mark.parametrize(("official_kind", "ours"), KNOWN, ids=lambda kind: kind.__name__)
def test_every_field_of_the_official_client_is_known(official_kind: Any, ours: type[BaseModel]):
    """Accepted, ignored, or refused with what to do instead; never just unknown."""
    names = set(official_kind.__annotations__)
    assert {"model", "user"} <= names
    assert not names - set(ours.model_fields)


@pytest.mark.parametrize("name", ["create", "parse", "stream"])
def test_every_argument_of_the_official_clients_methods_is_known(name: str):
    method = getattr(openai.resources.chat.completions.Completions, name)
    ours = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    assert not set(inspect.signature(method).parameters) - ours - set(ChatRequest.model_fields)
