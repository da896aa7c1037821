"""/v1/responses, asked by OpenAI's own client, over an engine that says what the test wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")
from pydantic import BaseModel  # noqa: E402

from minicpm.engine.constraint import Constraint  # noqa: E402
from server.running import Running, error_of  # noqa: E402
from server.stub import ScriptedEngine, StubEngine  # noqa: E402

Start = Callable[..., Running]
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
ARGUMENTS = '{"city": "Par{is"}'


def call_of(arguments: str = ARGUMENTS) -> str:
    return f'<tool_call>{{"name": "get_weather", "arguments": {arguments}}}</tool_call>'


class Script(ScriptedEngine):
    """Says the same text every time; `prompts` are what it was asked."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.prompts: list[list[int]] = []

    def answer(self, prompt: Sequence[int], constraint: Constraint | None) -> str:
        self.prompts.append(list(prompt))
        return self.text


def client_of(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_text_is_one_message(start: Start):
    client = client_of(start(Script("Hello there.")))
    response = client.responses.create(
        model="nano", input="Hi", instructions="Be kind.", metadata={"a": "b"}, temperature=0.5
    )
    assert response.output_text == "Hello there."
    assert (response.status, response.object, response.model) == ("completed", "response", "nano")
    assert response.id.startswith("resp_")
    assert (response.instructions, response.metadata, response.temperature) == ("Be kind.", {"a": "b"}, 0.5)
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert response.usage.input_tokens > 0
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_an_answer_that_is_cut_is_incomplete(start: Start):
    client = client_of(start(Script("Hello there.")))
    response = client.responses.create(model="nano", input="Hi", max_output_tokens=2)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text == "Hello "
    assert response.output[0].status == "incomplete"
    *_, last = client.responses.create(model="nano", input="Hi", max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Hello there.", {}),
        ("", {}),
        ("早上好！", {}),
        ("Words.", {"tools": [TOOL]}),
        (call_of(), {"tools": [TOOL]}),
        (call_of() + call_of("{}"), {"tools": [TOOL]}),
    ],
    ids=str,
)
def test_the_events_of_a_stream_join_to_the_answer_without_one(start: Start, text: str, options: dict[str, Any]):
    client = client_of(start(Script(text)))
    whole = client.responses.create(model="nano", input="Hi", **options)
    events = list(client.responses.create(model="nano", input="Hi", stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == len(whole.output)
    streamed = events[-1].response
    varying = {"id", "call_id", "created_at", "seed"}
    for one, other in zip(whole.output, streamed.output, strict=True):
        assert one.model_dump(exclude=varying) == other.model_dump(exclude=varying)
    joined: dict[int, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            joined[event.output_index] = joined.get(event.output_index, "") + event.delta
            assert event.item_id == streamed.output[event.output_index].id
    for index, item in enumerate(streamed.output):
        said = item.arguments if item.type == "function_call" else item.content[0].text
        assert joined.get(index, "") == said


def test_the_clients_own_stream_gives_the_final_response(start: Start):
    client = client_of(start(Script(call_of())))
    with client.responses.stream(model="nano", input="Hi", tools=[TOOL]) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == ARGUMENTS
    assert final.output[0].name == "get_weather"


class Point(BaseModel):
    x: int
    y: int


def test_an_answer_of_a_form_is_parsed_by_the_client(start: Start):
    client = client_of(start(Script('{"x": 1, "y": 2}')))
    response = client.responses.parse(model="nano", input="Hi", text_format=Point)
    assert response.output_parsed == Point(x=1, y=2)
    again = client.responses.create(model="nano", input=[*response.output, {"role": "user", "content": "More"}])
    assert again.status == "completed"


def test_a_conversation_of_items_is_the_prompt_of_the_same_messages(start: Start):
    engine = Script(call_of())
    server = start(engine)
    client = client_of(server)
    first = client.responses.create(model="nano", instructions="Be kind.", input="Weather?", tools=[TOOL])
    (call,) = first.output
    assert json.loads(call.arguments) == {"city": "Par{is"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        *[item.model_dump() for item in first.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    client.responses.create(model="nano", instructions="Be kind.", input=items, tools=[TOOL])
    function = {key: TOOL[key] for key in ("name", "description", "parameters")}
    client.chat.completions.create(
        model="nano",
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": call.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
        ],
        tools=[{"type": "function", "function": function}],
    )
    assert engine.prompts[1] == engine.prompts[2]


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "input", "input"),
    ({"input": []}, "input", "input"),
    ({"input": [{"role": "system", "content": "x"}]}, "no message to answer", "input"),
    ({"input": "x", "previous_response_id": "resp_1"}, "keeps nothing", "previous_response_id"),
    ({"input": "x", "conversation": "conv_1"}, "keeps nothing", "conversation"),
    ({"input": "x", "prompt": {"id": "p"}}, "keeps nothing", "prompt"),
    ({"input": "x", "background": True}, "background", "background"),
    ({"input": "x", "truncation": "auto"}, "truncation", "truncation"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "max_output_tokens"),
    ({"input": "x", "temperature": -1}, "temperature", "temperature"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "tools", None),
    ({"input": "x", "tool_choice": "required"}, "tool_choice needs tools", None),
    ({"input": "x", "tools": [TOOL], "tool_choice": {"type": "function", "name": "b"}}, "not in tools", "tool_choice"),
    ({"input": "x", "tools": [TOOL], "text": {"format": {"type": "json_object"}}}, "text.format", None),
    ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0]", None),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
        "input_image",
        "input[0].content",
    ),
    ({"input": "x", "max_tokens": 3}, "unknown argument max_tokens", "max_tokens"),
]


@pytest.mark.parametrize(("body", "said", "param"), WRONG, ids=str)
def test_what_cannot_be_done_is_said_in_one_sentence(start: Start, body: dict[str, Any], said: str, param: str | None):
    with start().client() as client:
        answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 400
    error = error_of(answer)
    assert said in error["message"]
    if param is not None:
        assert error["param"] == param


def test_nothing_is_kept(start: Start):
    server = start(Script("Hello."))
    client = client_of(server)
    response = client.responses.create(model="nano", input="Hi", store=True)
    assert response.store is False
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        client.responses.retrieve(response.id)


def test_a_failure_within_a_stream_is_an_event(start: Start):
    engine = StubEngine()
    engine.fail_after = 2
    with start(engine).client() as client:
        text = client.post("/v1/responses", json={"input": "Hi", "stream": True}).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == events[-2]["code"] == "internal_error"
    assert "secret" not in text
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_a_client_that_leaves_ends_its_answer(start: Start):
    engine = StubEngine(delay_s=0.05)
    with start(engine).client() as client:
        body = {"input": "Hi", "stream": True, "max_output_tokens": 1000}
        with client.stream("POST", "/v1/responses", json=body) as stream:
            next(stream.iter_lines())
        for _ in range(100):
            if not engine.alive:
                break
            httpx.get(f"{client.base_url}/health")
    assert engine.alive == 0


def test_nano_answers_as_in_a_chat_and_gives_log_probabilities(nano: Running):
    client = client_of(nano)
    question = "What is the capital of Japan?"
    messages = [{"role": "user", "content": question}]
    chat = client.chat.completions.create(model="nano", messages=messages, temperature=0, logprobs=True, top_logprobs=2)
    response = client.responses.create(
        model="nano", input=question, temperature=0, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    assert response.output_text == chat.choices[0].message.content
    found = response.output[0].content[0].logprobs
    assert [token.token for token in found] == [token.token for token in chat.choices[0].logprobs.content]
    assert len(found[0].top_logprobs) == 2
