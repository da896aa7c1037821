"""Constrained answers over HTTP: JSON, regular expressions, grammars, choices, function calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from server.running import ASK, CHAT, Running, error_of
from server.stub import StubEngine

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "now", "description": "The time."}}
QUESTION = [{"role": "user", "content": "What is the weather in Tokyo?"}]


@pytest.fixture(scope="module")
def official(nano: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("seed", range(3))
def test_json_follows_its_schema(official: openai.OpenAI, seed: int):
    answer = official.chat.completions.create(
        model="nano",
        messages=QUESTION,
        seed=seed,
        temperature=1.5,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)
    assert answer.choices[0].finish_reason == "stop"


def test_a_pydantic_class_is_parsed_by_the_official_client(official: openai.OpenAI):
    from typing import Literal

    from pydantic import BaseModel

    class City(BaseModel):
        size: Literal["small", "large"]
        is_capital: bool

    answer = official.chat.completions.parse(model="nano", messages=QUESTION, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)


@pytest.mark.parametrize(
    "wanted, pattern",
    [
        ({"regex": "[0-9]{3}-[0-9]{2}"}, r"[0-9]{3}-[0-9]{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "(" /[a-c]{1,4}/ ")"'}, r"\([a-c]{1,4}\)"),
        ({"json": {"type": "boolean"}}, "true|false"),
    ],
    ids=["regex", "choice", "grammar", "json"],
)
@pytest.mark.parametrize("route", ["chat", "completion"])
def test_structured_outputs_have_their_form(client: httpx.Client, wanted: dict[str, Any], pattern: str, route: str):
    body = {"structured_outputs": wanted, "temperature": 1.0, "seed": 5, "max_tokens": 50}
    if route == "chat":
        text = client.post(CHAT, json={"messages": QUESTION, **body}).json()["choices"][0]["message"]["content"]
    else:
        text = client.post("/v1/completions", json={"prompt": "So", **body}).json()["choices"][0]["text"]
    assert re.fullmatch(pattern, text)


def test_streamed_json_joins_to_the_whole(official: openai.OpenAI):
    asked = {"model": "nano", "messages": QUESTION, "seed": 1, "response_format": {"type": "json_object"}}
    whole = official.chat.completions.create(**asked, max_tokens=40).choices[0].message.content
    chunks = official.chat.completions.create(**asked, max_tokens=40, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert whole.startswith("{")


# --- Functions -----------------------------------------------------------------------------------------------


def test_a_required_call_names_a_function_and_fits_its_schema(official: openai.OpenAI):
    answer = official.chat.completions.create(
        model="nano", messages=QUESTION, tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=300, seed=2
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    for call in choice.message.tool_calls:
        schema = {"get_weather": WEATHER["function"]["parameters"], "now": {"type": "object", "maxProperties": 0}}
        jsonschema.validate(json.loads(call.function.arguments), schema[call.function.name])
        assert call.type == "function" and call.id


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_named_call_is_of_that_function_alone(official: openai.OpenAI, stream: bool):
    asked = {
        "model": "nano", "messages": QUESTION, "tools": [CLOCK, WEATHER], "parallel_tool_calls": False, "seed": 1,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }  # fmt: skip
    if stream:
        name, arguments, reasons, ids = "", "", [], []
        for chunk in official.chat.completions.create(**asked, stream=True):
            choice = chunk.choices[0]
            for call in choice.delta.tool_calls or ():
                name += call.function.name or ""
                arguments += call.function.arguments or ""
                ids += [call.id] if call.id else []
                assert call.index == 0
            assert not choice.delta.content
            reasons.append(choice.finish_reason)
        assert reasons[-1] == "tool_calls" and len(ids) == 1
    else:
        (call,) = official.chat.completions.create(**asked).choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert name == "get_weather"
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])


def test_streamed_calls_are_those_of_the_whole(official: openai.OpenAI):
    asked = {"model": "nano", "messages": QUESTION, "tools": [WEATHER, CLOCK], "tool_choice": "required", "seed": 4,
             "temperature": 1.5, "max_tokens": 200}  # fmt: skip
    calls = official.chat.completions.create(**asked).choices[0].message.tool_calls
    streamed: dict[int, list[str]] = {}
    for chunk in official.chat.completions.create(**asked, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            entry = streamed.setdefault(call.index, ["", ""])
            entry[0] += call.function.name or ""
            entry[1] += call.function.arguments or ""
    assert list(streamed.values()) == [[call.function.name, call.function.arguments] for call in calls]


def test_with_tools_a_model_may_answer_in_words(official: openai.OpenAI):
    answer = official.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "Hello!"}], tools=[WEATHER], temperature=0, max_tokens=20
    )
    message = answer.choices[0].message
    assert message.content and not message.content.startswith(" ")
    assert message.tool_calls is None


def test_no_choice_of_tools_leaves_them_out_of_the_prompt(official: openai.OpenAI):
    plain = official.chat.completions.create(model="nano", messages=QUESTION, temperature=0)
    none = official.chat.completions.create(
        model="nano", messages=QUESTION, temperature=0, tools=[WEATHER], tool_choice="none"
    )
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


def test_results_of_a_call_can_be_sent_back(official: openai.OpenAI):
    asked = {"model": "nano", "tools": [WEATHER], "max_tokens": 30}
    message = official.chat.completions.create(
        messages=QUESTION, tool_choice="required", parallel_tool_calls=False, **asked
    ).choices[0].message  # fmt: skip
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"sky": "sunny"}'}
    assert official.chat.completions.create(messages=[*QUESTION, message, result], tool_choice="none", **asked)


MARKED = "a<用户>b<AI>}\n"
MARKER = {
    "type": "function",
    "function": {
        "name": "say",
        "parameters": {
            "type": "object",
            "properties": {"text": {"const": MARKED}},
            "required": ["text"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("stop", [None, ["b", "}", '"'], ["<tool_call>"]], ids=str)
def test_no_stop_string_cuts_a_call(official: openai.OpenAI, stream: bool, stop: list[str] | None):
    asked = {"model": "nano", "messages": QUESTION, "tools": [MARKER], "tool_choice": "required", "stop": stop,
             "parallel_tool_calls": False, "seed": 1}  # fmt: skip
    if stream:
        choices = [chunk.choices[0] for chunk in official.chat.completions.create(**asked, stream=True)]
        arguments = "".join(
            call.function.arguments or "" for choice in choices for call in choice.delta.tool_calls or ()
        )
        reason = choices[-1].finish_reason
    else:
        choice = official.chat.completions.create(**asked).choices[0]
        arguments, reason = choice.message.tool_calls[0].function.arguments, choice.finish_reason
    assert (json.loads(arguments), reason) == ({"text": MARKED}, "tool_calls")


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_that_ends_has_arguments_that_are_json(official: openai.OpenAI, seed: int):
    """A property that may be anything lets the model write what it likes, markers too."""
    free = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"m": {}}}}}
    choice = official.chat.completions.create(
        model="nano",
        messages=QUESTION,
        tools=[free],
        tool_choice="required",
        temperature=1.2,
        max_tokens=120,
        seed=seed,
    ).choices[0]
    calls = choice.message.tool_calls or []
    for call in calls if choice.finish_reason == "tool_calls" else calls[:-1]:
        assert isinstance(json.loads(call.function.arguments), dict)


def test_json_with_a_stop_string_in_it_is_whole(official: openai.OpenAI):
    schema = {"type": "object", "properties": {"text": {"const": MARKED}}, "required": ["text"],
              "additionalProperties": False}  # fmt: skip
    for form in ({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
                 {"type": "json_object", "schema": schema}):  # fmt: skip
        answer = official.chat.completions.create(
            model="nano", messages=QUESTION, response_format=form, stop=["b", "}"]
        )
        assert json.loads(answer.choices[0].message.content) == {"text": MARKED}
        assert answer.choices[0].finish_reason == "stop"


def test_the_allowed_tools_alone_are_called(official: openai.OpenAI):
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice = official.chat.completions.create(
        model="nano", messages=QUESTION, tools=[WEATHER, CLOCK], parallel_tool_calls=False, max_tokens=60,
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    ).choices[0]  # fmt: skip
    assert [call.function.name for call in choice.message.tool_calls] == ["now"]


ODD: list[dict[str, Any]] = [
    {"not": {}},
    {"not": {"type": "string"}},
    {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
    {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"type": "string", "format": "decimal"},
    {"type": "string", "pattern": "^(?!x)a+$"},
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}, {"properties": {"x": {"$ref": "#"}}}]},
    {"$ref": "https://example.com/other.json"},
    {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
]


def odd_one(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"m": schema}, "additionalProperties": False}
    return {"type": "function", "function": {"name": "odd_one", "parameters": parameters, **more}}


@pytest.mark.parametrize("schema", ODD, ids=lambda schema: json.dumps(schema)[:50])
def test_an_odd_keyword_of_one_tool_ends_no_conversation(client: httpx.Client, schema: dict[str, Any]):
    asked = {"messages": QUESTION, "tools": [WEATHER, odd_one(schema)], "max_tokens": 4}
    named = {"type": "function", "function": {"name": "odd_one"}}
    for choice in ("auto", "required", "none", named):
        response = client.post(CHAT, json={**asked, "tool_choice": choice})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (odd_one({"type": "array", "uniqueItems": True}, strict=True), "'uniqueItems' at properties.m"),
        (odd_one({"not": {"type": "null"}}, strict=True), "'not' at properties.m"),
        (odd_one({"type": "nothing"}), "Invalid type: nothing, at properties.m"),
        (odd_one({"$ref": "#/nowhere"}), "$ref leads nowhere"),
        ({"type": "function", "function": {"name": "odd_one", "parameters": {"type": "array"}}}, "'object'"),
        ({"type": "function", "function": {"name": "odd_one", "parameters": {"not": {}}}}, "nothing is valid by it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tool_that_cannot_be_followed_is_named_with_the_keyword(client: httpx.Client, function: dict, said: str):
    response = client.post(CHAT, json={**ASK, "tools": [WEATHER, function]})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == "tools[1].function.parameters"
    assert "odd_one: " in error["message"] and said in error["message"]
    assert "call_" not in error["message"] and "%json" not in error["message"]
    other = {"type": "function", "function": {"name": "get_weather"}}
    response = client.post(CHAT, json={**ASK, "tools": [WEATHER, function], "tool_choice": other})
    assert response.status_code == 200


def test_a_schema_of_an_answer_is_refused_with_the_keyword_and_the_field(client: httpx.Client):
    schema = {"type": "object", "properties": {"m": {"type": "array", "uniqueItems": True}}}
    for field, body in (
        ("response_format.json_schema.schema",
         {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
        ("response_format.schema", {"response_format": {"type": "json_object", "schema": schema}}),
        ("structured_outputs.json", {"structured_outputs": {"json": schema}}),
    ):  # fmt: skip
        error = error_of(client.post(CHAT, json={**ASK, **body}))
        assert error["param"] == field and "'uniqueItems' at properties.m" in error["message"]


# --- What cannot be ------------------------------------------------------------------------------------------

DEEP: dict[str, Any] = {}
for _ in range(300):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    "change",
    [
        {"structured_outputs": {"regex": "(["}},
        {"structured_outputs": {"regex": ""}},
        {"structured_outputs": {"grammar": "start: nothing"}},
        {"structured_outputs": {"grammar": "}{"}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"choice": [""]}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"structured_outputs": {"json": {"type": "no such type"}}},
        {"structured_outputs": {"json": {"$ref": "#/nowhere"}}},
        {"structured_outputs": {"json": DEEP}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {"tools": []},
        {"tools": [WEATHER, WEATHER]},
        {"tools": [WEATHER], "response_format": {"type": "json_object"}},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": 5}}}]},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_a_form_that_cannot_be_followed_is_refused(client: httpx.Client, change: dict[str, Any]):
    response = client.post(CHAT, json={**ASK, **change})
    assert response.status_code == 400, response.text
    assert error_of(response)["type"] == "invalid_request_error"


def test_a_form_that_need_not_end_ends_at_the_limit(client: httpx.Client):
    endless = {"structured_outputs": {"regex": "a+"}, "ignore_eos": True, "messages": QUESTION}
    response = client.post(CHAT, json={**endless, "max_tokens": 25, "temperature": 0})
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "length" and set(choice["message"]["content"]) == {"a"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_grammar_that_can_never_end_is_an_error(client: httpx.Client, stream: bool):
    endless = {"structured_outputs": {"grammar": 'start: "a" start'}, "messages": QUESTION, "stream": stream}
    response = client.post(CHAT, json=endless)
    assert "cannot be brought into its form" in response.text
    assert response.status_code == (200 if stream else 400)
    assert client.post(CHAT, json=ASK).status_code == 200


# --- Answers that are cut ------------------------------------------------------------------------------------

CALL_WORDS = ['<tool_call>{"name": "get_weather", "arguments": ', '{"city": ', '"Tokyo"}', "}</tool_call>"]


@pytest.mark.parametrize("words", [1, 2, 3, 4])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_that_the_limit_cuts_ends_by_length(start: Callable[..., Running], stream: bool, words: int):
    server = start(StubEngine(CALL_WORDS))
    asked = {"model": "nano", "messages": QUESTION, "tools": [WEATHER], "max_tokens": words}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        if stream:
            chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
            calls = [call for choice in chunks for call in choice.delta.tool_calls or ()]
            reason = chunks[-1].finish_reason
        else:
            choice = client.chat.completions.create(**asked).choices[0]
            calls, reason = choice.message.tool_calls or [], choice.finish_reason
    assert calls and "".join(call.function.arguments for call in calls) == "".join(CALL_WORDS[1 : min(words, 3)])
    assert reason == "length"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_words_beside_offered_functions_end_as_words_do(official: openai.OpenAI, stream: bool):
    asked = {"model": "nano", "messages": [{"role": "user", "content": "Hello!"}], "tools": [WEATHER],
             "temperature": 0, "max_tokens": 60}  # fmt: skip
    if stream:
        reason = [chunk.choices[0].finish_reason for chunk in official.chat.completions.create(**asked, stream=True)][
            -1
        ]
    else:
        reason = official.chat.completions.create(**asked).choices[0].finish_reason
    assert reason == "stop"
