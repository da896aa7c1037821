"""Ollama's routes: what its official client and curl send, and what they get back."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from minicpm.server.model import ServedModel
from minicpm.server.ollama.requests import OllamaChatRequest, OllamaEmbedRequest, OllamaGenerateRequest, Options
from minicpm.server.settings import Settings
from server.conftest import Direct
from server.running import CHAT, Running, logged_line, running
from server.stub import StubEngine

QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
TOKYO = "The capital of Japan is Tokyo."
GREEDY = {"temperature": 0}
ONCE = {"num_predict": -1}  # the scripted engine then says its words once
ASK = {"model": "nano", "messages": QUESTION, "options": {"num_predict": 3}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def official(nano: Running) -> Any:
    return pytest.importorskip("ollama").Client(host=nano.url)


@pytest.fixture(scope="module")
def stub(model: ServedModel) -> Iterator[Running]:
    """A server over a scripted engine, for the tests that only look at what that is asked."""
    with running(StubEngine(["one"]), model, Settings(grace_s=1)) as server:
        yield server


@pytest.fixture
def scripted(start: Callable[..., Running]) -> Callable[..., httpx.Client]:
    """`scripted(words)`: a client of a server whose answers are these words."""

    def begin(*words: str, engine: StubEngine | None = None, **settings: object) -> httpx.Client:
        return start(engine or StubEngine(words), **settings).client()

    return begin


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.iter_lines()]


def error_of(response: httpx.Response) -> str:
    """The message, after checking that the body is Ollama's and says nothing of the inside."""
    body = response.json()
    assert set(body) == {"error"} and isinstance(body["error"], str) and body["error"], response.text
    assert int(response.headers["content-length"]) == len(response.content)
    assert "Traceback" not in response.text and "/src/" not in response.text
    return body["error"]


# --- The official client -------------------------------------------------------------------------------------


def test_the_official_client_chats(official: Any):
    answer = official.chat("nano", messages=QUESTION, options=GREEDY)
    assert (answer.message.role, answer.message.content) == ("assistant", TOKYO)
    assert (answer.model, answer.done, answer.done_reason) == ("nano", True, "stop")
    assert answer.eval_count == 9 and answer.prompt_eval_count > 0
    assert answer.total_duration > answer.load_duration > 0 and answer.eval_duration > 0
    parts = list(official.chat("nano", messages=QUESTION, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == TOKYO
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    turns = [*QUESTION, answer.message, {"role": "user", "content": "What is 7 plus 5?"}]
    assert official.chat("nano", messages=turns, options=GREEDY).message.content


def test_the_official_client_generates_and_goes_on_with_the_context(official: Any, direct: Direct):
    first = official.generate("nano", QUESTION[0]["content"], options=GREEDY)
    assert first.response == TOKYO
    second = official.generate("nano", "What is 7 plus 5?", context=first.context, options=GREEDY)
    alone = official.generate("nano", "What is 7 plus 5?", options=GREEDY)
    assert second.context[: len(first.context)] == first.context
    # <s> stands once, at the beginning.
    assert second.prompt_eval_count == len(first.context) + alone.prompt_eval_count - 1
    raw = official.generate("nano", "Once upon a time", raw=True, options={**GREEDY, "num_predict": 8})
    assert raw.response == direct.generate("Once upon a time", temperature=0, max_tokens=8).text
    assert (raw.context, raw.done_reason, raw.eval_count) == (None, "length", 8)


def test_the_official_async_client_streams(nano: Running):
    library = pytest.importorskip("ollama")

    async def told() -> str:
        async with library.AsyncClient(host=nano.url) as client:
            parts = await client.chat("nano", messages=QUESTION, options=GREEDY, stream=True)
            return "".join([part.message.content async for part in parts])

    assert asyncio.run(told()) == TOKYO


def test_the_official_client_calls_functions(start: Callable[..., Running]):
    library = pytest.importorskip("ollama")
    words = ['<tool_call>{"name": "get_weather", "argu', 'ments": {"city": "To', 'kyo"}}</tool_call>']
    client = library.Client(host=start(StubEngine(words)).url)

    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return f"sunny in {city}"

    turns: list[Any] = [*QUESTION]
    answer = client.chat("nano", messages=turns, tools=[get_weather], options=ONCE)
    (call,) = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Tokyo"})
    parts = client.chat("nano", turns, tools=[WEATHER], stream=True, options=ONCE)
    streamed = [called for part in parts for called in part.message.tool_calls or ()]
    assert [c.function.arguments for c in streamed] == [{"city": "Tokyo"}]
    result = get_weather(**call.function.arguments)
    turns += [answer.message, {"role": "tool", "content": result, "tool_name": call.function.name}]
    assert client.chat("nano", messages=turns, tools=[get_weather], options=ONCE).done


def test_the_official_client_embeds(official: Any, direct: Direct):
    texts = ["A cat sleeps.", "A kitten is asleep."]
    answer = official.embed("nano", texts)
    expected = direct.embed(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(np.array(answer.embeddings), expected, atol=1e-6)
    assert answer.prompt_eval_count > 0
    older = official.embeddings("nano", texts[0])
    assert np.allclose(older.embedding, direct.embed(texts)[0])


def test_the_official_client_lists_and_shows(official: Any, nano: Running):
    assert [model.model for model in official.list().models] == ["minicpm-nano:latest", "nano:latest"]
    (one, other) = official.ps().models
    assert one.digest == other.digest and re.fullmatch("[0-9a-f]{64}", one.digest)
    assert one.context_length == nano.serving.model.context_length
    assert one.expires_at.year > 2100 and one.size > 1_000_000
    shown = official.show("nano")
    assert shown.modelinfo["general.architecture"] == "minicpm"
    assert shown.modelinfo["minicpm.context_length"] == nano.serving.model.context_length
    assert shown.modelinfo["general.parameter_count"] == nano.serving.model.facts.config.num_parameters()
    assert (shown.details.family, shown.details.quantization_level) == ("minicpm", "INT4")
    assert shown.capabilities == ["completion", "tools"] and shown.template == nano.serving.model.template.text
    assert re.search(r"^temperature +0\.3$", shown.parameters, re.MULTILINE)


def test_the_official_client_raises_its_own_errors(official: Any):
    library = pytest.importorskip("ollama")
    for act, status in (
        (lambda: official.chat("other", messages=QUESTION), 404),
        (lambda: official.show("other"), 404),
        (lambda: official.generate("nano", "x", options={"temperature": -1}), 400),
        (lambda: list(official.chat("nano", messages=QUESTION, options={"top_p": 2}, stream=True)), 400),
        (lambda: official.pull("other"), 501),
        (lambda: official.copy("nano", "other"), 501),
        (lambda: official.delete("nano"), 501),
        (lambda: official.create("other", from_="nano"), 501),
        (lambda: official.push("nano"), 501),
    ):
        with pytest.raises(library.ResponseError) as caught:
            act()
        assert caught.value.status_code == status and caught.value.error


# --- Shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_an_answer_is_streamed_unless_it_is_not_wanted_so(client: httpx.Client, path: str):
    asked = {**ASK, "prompt": "What is the capital of Japan?", "options": GREEDY, "logprobs": True, "top_logprobs": 2}
    lines = lines_of(client.post(path, json=asked))
    response = client.post(path, json={**asked, "stream": False})
    whole = response.json()
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    for line in (*lines, whole):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["created_at"])
        assert datetime.fromisoformat(line["created_at"]).tzinfo is not None
        assert line["model"] == "nano"

    def text(line: dict[str, Any]) -> str:
        return line["message"]["content"] if path == "/api/chat" else line["response"]

    assert "".join(map(text, lines)) == text(whole) == TOKYO
    assert text(lines[-1]) == "" and set(lines[-1]) | {"logprobs"} == set(whole)
    assert [token for line in lines for token in line.get("logprobs", ())] == whole["logprobs"]
    assert len(whole["logprobs"]) == whole["eval_count"] and len(whole["logprobs"][0]["top_logprobs"]) == 2
    counts = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_duration")
    assert all(type(whole[name]) is int and whole[name] >= 0 for name in counts)
    assert whole["total_duration"] >= whole["eval_duration"] > 0


def test_a_null_is_as_good_as_nothing(stub: Running):
    fields = dict.fromkeys((*OllamaChatRequest.model_fields, *OllamaGenerateRequest.model_fields))
    options = dict.fromkeys(Options.model_fields)
    asked = {**fields, "model": "nano", "messages": QUESTION, "prompt": "Hello!", "options": options}
    client = stub.client()
    for path in ("/api/chat", "/api/generate"):
        assert lines_of(client.post(path, json=asked))[-1]["done"]


def test_characters_that_some_take_for_line_ends_stay_inside_a_line(scripted: Callable[..., httpx.Client]):
    words = ["a\u2028b", "c\x85d\u2029", "\x0b\x0c\x1c\r\n", "好"]
    lines = lines_of(
        scripted(*words).post("/api/generate", json={"model": "nano", "prompt": "Hello!", "options": ONCE})
    )
    assert [line["response"] for line in lines] == [*words, ""]


def test_a_silent_stream_is_kept_open_by_lines_without_text(scripted: Callable[..., httpx.Client]):
    client = scripted(engine=StubEngine(["slow"], delay_s=0.3), ping_s=0.05)
    lines = lines_of(client.post("/api/chat", json=ASK | {"options": {"num_predict": 1}}))
    texts = [line["message"]["content"] for line in lines]
    assert texts[0] == "" and "".join(texts) == "slow" and len(lines) > 3
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_a_client_that_leaves_ends_its_answer(start: Callable[..., Running]):
    engine = StubEngine(delay_s=0.05)
    with start(engine).client() as client:
        with client.stream("POST", "/api/chat", json=ASK | {"options": {"num_predict": 10_000}}) as response:
            next(response.iter_lines())
        until = time.monotonic() + 10
        while engine.alive and time.monotonic() < until:
            time.sleep(0.02)
    assert engine.alive == 0


def test_no_prompt_loads_and_no_time_unloads(client: httpx.Client):
    for path, body in (
        ("/api/chat", {"model": "nano"}),
        ("/api/chat", {"model": "nano", "messages": []}),
        ("/api/generate", {"model": "nano"}),
        ("/api/generate", {"model": "nano", "prompt": ""}),
    ):
        for keep_alive, reason in ((None, "load"), ("5m", "load"), (-1, "load"), (0, "unload"), ("0s", "unload")):
            response = client.post(path, json={**body, "keep_alive": keep_alive})
            assert response.headers["content-type"].startswith("application/json")
            answer = response.json()
            assert (answer["done"], answer["done_reason"]) == (True, reason)
            assert answer.get("response", "") == "" and answer.get("message", {"content": ""})["content"] == ""
    # It is there all the same.
    assert client.get("/api/ps").json()["models"]


@pytest.mark.parametrize(
    "name", ["nano", "nano:latest", "NANO:Latest", "library/nano", "registry.ollama.ai/library/nano"]
)
def test_a_name_is_known_in_every_form(client: httpx.Client, name: str):
    answer = client.post("/api/show", json={"model": name})
    assert answer.status_code == 200
    assert client.post("/api/show", json={"name": name}).json() == answer.json()
    assert client.post("/api/chat", json={"model": name}).json()["model"] == name


def test_openais_routes_know_the_tag_too(client: httpx.Client):
    asked = {"messages": QUESTION, "max_tokens": 1}
    assert client.post(CHAT, json={**asked, "model": "nano:latest"}).json()["model"] == "nano"
    assert client.get("/v1/models/nano:latest").json()["id"] == "nano"
    assert client.get("/v1/models/nano:1b").status_code == 404


@pytest.mark.parametrize("name", ["", "other", "nano:1b", "library/other", "x" * 10_000, "a\nb"])
def test_a_name_that_is_not_served_is_not_found(client: httpx.Client, name: str):
    for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"):
        response = client.post(path, json={"model": name, "messages": QUESTION, "prompt": "x", "input": "x"})
        assert response.status_code == (404 if name else 400)
        message = error_of(response)
        assert "nano:latest" in message and "\n" not in message and len(message) < 300


# --- Options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, field, value",
    [
        ({"num_predict": 5}, "max_tokens", 5),
        ({"num_predict": 5.0}, "max_tokens", 5),
        ({"num_predict": -1}, "max_tokens", None),
        ({"num_predict": -2}, "max_tokens", None),
        ({"num_predict": 0}, "max_tokens", None),
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"temperature": 1}, "temperature", 1.0),
        ({"top_k": 7}, "top_k", 7),
        ({"top_k": -1}, "top_k", 0),
        ({"top_p": 0.25}, "top_p", 0.25),
        ({"min_p": 0.25}, "min_p", 0.25),
        ({"repeat_penalty": 1.25}, "repetition_penalty", 1.25),
        ({"repeat_penalty": 1.25, "repeat_last_n": 0}, "repetition_penalty", 1.0),
        ({"presence_penalty": 1, "repeat_last_n": 0}, "presence_penalty", 0.0),
        ({"presence_penalty": 1}, "presence_penalty", 1.0),
        ({"frequency_penalty": 1}, "frequency_penalty", 1.0),
        ({"seed": 42}, "seed", 42),
        ({"seed": 0}, "seed", 0),
        ({"stop": ["a", "b"]}, "stop", ("a", "b")),
        ({"stop": "a"}, "stop", ("a",)),
        ({"stop": []}, "stop", ()),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "raw"])
def test_an_option_is_the_engines(stub: Running, path: str, options: dict[str, Any], field: str, value: object):
    asked = {"model": "nano", "messages": QUESTION, "prompt": "Hello!", "options": options, "stream": False}
    if path == "raw":
        path, asked["raw"] = "/api/generate", True
    with stub.client() as client:
        assert client.post(path, json=asked).status_code == 200
    assert getattr(stub.serving.engine.tickets[-1].params, field) == value


def test_a_seed_of_minus_one_is_a_random_one(stub: Running):
    with stub.client() as client:
        for _ in range(2):
            client.post("/api/chat", json=ASK | {"options": {"seed": -1}})
    assert len({ticket.params.seed for ticket in stub.serving.engine.tickets[-2:]}) == 2


@pytest.mark.parametrize(
    "change, ignored",
    [
        ({"options": {"num_gpu": 1, "use_mmap": True}}, "options.num_gpu,options.use_mmap"),
        ({"options": {"num_ctx": 8192}}, "options.num_ctx"),
        ({"options": {"num_ctx": 2048}}, None),
        ({"options": {"mirostat": 2, "typical_p": 0.5}}, "options.mirostat,options.typical_p"),
        ({"options": {"mirostat": 0, "typical_p": 1.0, "tfs_z": 1, "penalize_newline": False}}, None),
        ({"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"options": {"repeat_last_n": -1}}, None),
        ({"keep_alive": "5m"}, "keep_alive"),
        ({"keep_alive": -1}, None),
        ({"think": False}, None),
        ({"shift": True}, "shift"),
        ({"shift": False}, None),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"surprise": 1, "options": {"tempratur": 1}}, "surprise,options.tempratur"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann", "thinking": "secret", "images": []}]},
         "messages.name,messages.thinking"),
        ({"my secret question": 1, "ok": 2}, "ok,1_more"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
def test_what_has_no_effect_is_named_in_the_log(
    stub: Running, caplog: pytest.LogCaptureFixture, change: dict[str, Any], ignored: str | None
):
    with caplog.at_level(logging.INFO, logger="minicpm.server"), stub.client() as client:
        answer = client.post("/api/chat", json={**ASK, **change})
        assert answer.status_code == 200
        line = logged_line(caplog, answer.headers["x-request-id"])
    assert re.findall(r" ignored=(\S+)", line) == ([ignored] if ignored else [])
    assert "secret" not in line


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_its_format(client: httpx.Client, stream: bool):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    asked = {"model": "nano", "messages": QUESTION, "prompt": "Tokyo?", "options": {**GREEDY, "num_predict": 40}}
    for path in ("/api/chat", "/api/generate"):
        lines = [
            json.loads(line)
            for line in client.post(path, json={**asked, "format": schema, "stream": stream}).iter_lines()
        ]
        text = "".join(line["message"]["content"] if path == "/api/chat" else line["response"] for line in lines)
        jsonschema.validate(json.loads(text), schema)
    options = {**GREEDY, "num_predict": 2}
    raw = {**asked, "raw": True, "format": "json", "stream": False, "options": options}
    assert client.post("/api/generate", json=raw).json()["response"].lstrip().startswith("{")


# --- Functions and conversations -----------------------------------------------------------------------------


def test_a_conversation_with_functions_is_the_prompt_that_openais_route_makes(start: Callable[..., Running]):
    arguments = {"city": "東京", "days": [1, 2]}
    call = {"name": "get_weather", "arguments": arguments}
    ours = [
        {"role": "System", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "tool_calls": [{"function": call}]},
        {"role": "tool", "content": "sun", "tool_name": "get_weather"},
    ]
    text = json.dumps(arguments, ensure_ascii=False)
    theirs = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": text}}]},
        {"role": "tool", "content": "sun", "tool_call_id": "1"},
    ]  # fmt: skip
    with start(StubEngine()).client() as client:
        mine = client.post(
            "/api/chat", json={"model": "nano", "messages": ours, "tools": [WEATHER], "stream": False}
        ).json()
        openais = client.post(CHAT, json={"messages": theirs, "tools": [WEATHER]}).json()
    assert mine["prompt_eval_count"] == openais["usage"]["prompt_tokens"]


CALLS = (
    '<tool_call>{"name": "get_weather", "arguments": {"city": "To}kyo"}}</tool_call>'
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa\\"ris"}}</tool_call>'
)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_each_call_is_one_line_with_an_object_of_arguments(scripted: Callable[..., httpx.Client], cut: int):
    client = scripted(*[CALLS[at : at + cut] for at in range(0, len(CALLS), cut)])
    asked = {"model": "nano", "messages": QUESTION, "tools": [WEATHER], "options": ONCE}
    lines = lines_of(client.post("/api/chat", json=asked))
    with_calls = [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]]
    assert [len(calls) for calls in with_calls] == [1, 1]
    functions = [calls[0]["function"] for calls in with_calls]
    assert [function["arguments"] for function in functions] == [{"city": "To}kyo"}, {"city": 'Pa"ris'}]
    assert [function["index"] for function in functions] == [0, 1]
    assert all(line["message"]["content"] == "" for line in lines)
    whole = client.post("/api/chat", json={**asked, "stream": False}).json()
    assert [call["function"] for call in whole["message"]["tool_calls"]] == functions
    assert len({call["id"] for call in whole["message"]["tool_calls"]}) == 2


def test_a_call_that_is_cut_off_is_no_call(scripted: Callable[..., httpx.Client]):
    answer = scripted(CALLS[:100]).post(
        "/api/chat", json={"model": "nano", "messages": QUESTION, "tools": [WEATHER], "stream": False, "options": ONCE}
    )
    message = answer.json()["message"]
    assert len(message["tool_calls"]) == 1 and message["content"] == ""
    assert answer.json()["done_reason"] == "length"


def test_words_with_functions_offered_are_words(scripted: Callable[..., httpx.Client]):
    asked = {"model": "nano", "messages": QUESTION, "tools": [WEATHER], "stream": False, "options": ONCE}
    message = scripted("It", " is", " sunny.").post("/api/chat", json=asked).json()["message"]
    assert message == {"role": "assistant", "content": "It is sunny."}


def test_nulls_of_a_schema_are_left_out(stub: Running):
    parameters = {"type": "object", "properties": {"city": {"type": "string", "enum": None, "items": None}}}
    tool = {
        "type": "function",
        "function": {"name": "f", "description": None, "parameters": {**parameters, "$defs": None}},
    }
    with stub.client() as client:
        answer = client.post("/api/chat", json={"model": "nano", "messages": QUESTION, "tools": [tool]})
    assert answer.status_code == 200


def test_the_oldest_messages_are_left_out_where_a_conversation_is_too_long(start: Callable[..., Running]):
    engine = StubEngine()
    server = start(engine)
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": role, "content": f"{n} " + "a b c " * 20} for n in range(40) for role in ("user", "assistant")]
    asked = {"model": "nano", "messages": [system, *turns, *QUESTION], "options": {"num_predict": 4}, "stream": False}
    context = server.serving.model.context_length
    with server.client() as client:
        answer = client.post("/api/chat", json=asked).json()
        assert answer["done"] and context - 4 - 100 < answer["prompt_eval_count"] <= context - 4
        # Without a limit, a quarter of the context is left to the answer.
        answer = client.post("/api/chat", json={**asked, "options": {}}).json()
        assert context * 3 // 4 - 100 < answer["prompt_eval_count"] <= context * 3 // 4
        refused = client.post("/api/chat", json={**asked, "truncate": False})
        assert refused.status_code == 400 and f"{context:,}" in error_of(refused)
        # Where the last message alone is too long, nothing helps.
        long = [system, {"role": "user", "content": "a b c " * 2000}]
        refused = client.post("/api/chat", json={**asked, "messages": long})
        assert refused.status_code == 400 and f"{context:,}" in error_of(refused)
        refused = client.post("/api/generate", json={"model": "nano", "prompt": "a b c " * 2000})
        assert refused.status_code == 400 and error_of(refused).startswith("prompt has")


def test_system_messages_and_the_last_one_are_never_left_out(nano: Running):
    model = nano.serving.model
    system, last = {"role": "system", "content": "S"}, {"role": "user", "content": "L " * 700}
    filler = [{"role": "user", "content": "a b c " * 100} for _ in range(8)]
    only = model.chat_ids([system, last])
    with nano.client() as client:
        asked = {"model": "nano", "messages": [system, *filler, last], "options": {"num_predict": 1}, "stream": False}
        answer = client.post("/api/chat", json=asked).json()
    one = len(model.chat_ids([system, filler[0], last])) - len(only)
    left = answer["prompt_eval_count"] - len(only)
    assert left >= 0 and left % one == 0


# --- Embeddings ----------------------------------------------------------------------------------------------


def test_vectors_have_length_one_and_as_many_numbers_as_wanted(client: httpx.Client):
    asked = {"model": "nano", "input": ["A cat sleeps.", "x"]}
    whole = np.array(client.post("/api/embed", json=asked).json()["embeddings"])
    part = np.array(client.post("/api/embed", json={**asked, "dimensions": 8}).json()["embeddings"])
    assert np.allclose(np.linalg.norm(whole, axis=1), 1) and np.allclose(np.linalg.norm(part, axis=1), 1)
    assert part.shape == (2, 8) and np.allclose(part, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1)[:, None])
    for dimensions in (0, 10_000, None):
        same = client.post("/api/embed", json={**asked, "dimensions": dimensions}).json()["embeddings"]
        assert np.allclose(same, whole)


def test_nothing_to_embed_gives_nothing(client: httpx.Client):
    for nothing in ("", [], None):
        answer = client.post("/api/embed", json={"model": "nano", "input": nothing}).json()
        assert answer["embeddings"] == [] and answer["prompt_eval_count"] == 0
    assert client.post("/api/embeddings", json={"model": "nano", "prompt": ""}).json() == {"embedding": []}
    assert client.post("/api/embeddings", json={"model": "nano"}).json() == {"embedding": []}


def test_a_text_that_is_too_long_is_cut_unless_that_is_not_wanted(client: httpx.Client, nano: Running):
    asked = {"model": "nano", "input": "a b c " * 2000}
    answer = client.post("/api/embed", json=asked).json()
    assert answer["prompt_eval_count"] == nano.serving.model.context_length - 1
    refused = client.post("/api/embed", json={**asked, "truncate": False})
    assert refused.status_code == 400 and "input has" in error_of(refused)


# --- Errors and access ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, change, words",
    [
        ("chat", {"model": None}, "model is required"),
        ("chat", {"messages": [{"role": "user", "images": ["AAAA"]}]}, r"messages\[0\].images .*text only"),
        ("generate", {"images": ["AAAA"]}, "images .*text only"),
        ("chat", {"think": True}, "does not support thinking"),
        ("generate", {"think": "high"}, "does not support thinking"),
        ("chat", {"think": "deeply"}, "think"),
        ("chat", {"format": "xml"}, "format"),
        ("chat", {"format": {"type": "nonsense"}}, "schema"),
        ("chat", {"format": "json", "tools": [WEATHER]}, "both tools and format"),
        ("chat", {"keep_alive": "soon"}, "keep_alive"),
        ("chat", {"keep_alive": [1]}, "keep_alive"),
        ("chat", {"stream": "yes"}, "stream"),
        ("chat", {"messages": "Hello!"}, "messages"),
        ("chat", {"messages": [{"content": "x"}]}, r"messages\[0\].role"),
        ("chat", {"messages": [{"role": "nobody", "content": "x"}]}, r"messages\[0\].role"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
         "arguments"),
        ("chat", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\].function.name"),
        ("chat", {"tools": [WEATHER, WEATHER]}, "two tools have the name get_weather"),
        ("chat", {"tools": [WEATHER] * 200}, "tools"),
        ("chat", {"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("chat", {"options": {"temperature": -1}}, "temperature"),
        ("chat", {"options": {"temperature": "hot"}}, "options.temperature"),
        ("chat", {"options": {"top_k": 1.5}}, "options.top_k"),
        ("chat", {"options": {"repeat_penalty": 0}}, "repeat_penalty"),
        ("chat", {"options": {"num_predict": 1 << 40}}, "num_predict"),
        ("chat", {"options": {"stop": ["x"] * 100}}, "stop"),
        ("chat", {"options": {"stop": [1]}}, "stop"),
        ("chat", {"options": {"seed": 1 << 70}}, "seed"),
        ("chat", {"options": [1]}, "options"),
        ("generate", {"suffix": "x"}, "does not support insert"),
        ("generate", {"template": "{{ .Prompt }}"}, "template"),
        ("generate", {"raw": True, "system": "x"}, "raw mode"),
        ("generate", {"raw": True, "context": [1]}, "raw mode"),
        ("generate", {"context": [1 << 40]}, "token"),
        ("generate", {"context": [5] * 3000}, "prompt with its context has 3,0"),
        ("generate", {"context": ["a"]}, "context"),
        ("generate", {"prompt": ["a"]}, "prompt"),
        ("embed", {"input": [[1, 2]]}, "input"),
        ("embed", {"input": 5}, "input"),
        ("embed", {"input": ["a"] * 3000}, "3,000 texts"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(client: httpx.Client, path: str, change: dict[str, Any], words: str):
    response = client.post(f"/api/{path}", json={**ASK, "prompt": "x", "input": "x", **change})
    assert response.status_code == 400
    assert re.search(words, error_of(response))


def test_the_models_own_template_is_no_other_one(stub: Running):
    asked = {"model": "nano", "prompt": "x", "template": stub.serving.model.template.text}
    with stub.client() as client:
        assert client.post("/api/generate", json=asked).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "nano", "prompt": "\\ud800"}'])
def test_what_is_no_json_is_refused(client: httpx.Client, body: bytes):
    response = client.post("/api/generate", content=body)
    assert response.status_code == 400
    error_of(response)


def test_a_body_of_curl_need_not_be_declared_as_json(stub: Running):
    client = stub.client()
    body = json.dumps(ASK)
    for kind in ("application/x-www-form-urlencoded", "text/plain", None):
        headers = {} if kind is None else {"content-type": kind}
        assert client.post("/api/chat", content=body, headers=headers).status_code == 200
    # A page's form could be sent so.
    own = str(client.base_url).rstrip("/")
    for headers in ({"origin": own}, {"sec-fetch-site": "cross-site"}):
        undeclared = {**headers, "content-type": "text/plain"}
        refused = client.post("/api/chat", content=body, headers=undeclared)
        assert refused.status_code == 400 and "application/json" in error_of(refused)
        assert client.post("/api/chat", json=ASK, headers=headers).status_code == 200
    refused = client.post("/api/chat", json=ASK, headers={"origin": "https://evil.example"})
    assert refused.status_code == 403 and "--cors-origin" in error_of(refused)


def test_errors_of_every_layer_have_ollamas_shape(start: Callable[..., Running]):
    engine = StubEngine(delay_s=60, limit=1)
    with start(engine, api_keys=("k",), max_body_bytes=1000).client() as client:
        refused = client.post("/api/chat", json=ASK)
        assert refused.status_code == 401 and "Bearer" in error_of(refused)
        assert refused.headers["www-authenticate"] == "Bearer" and refused.headers["x-request-id"]
        client.headers["authorization"] = "Bearer k"
        large = client.post("/api/chat", content=b"x" * 2000)
        assert large.status_code == 413 and "1,000" in error_of(large)
        assert client.get("/api/nothing").status_code == 404
        error_of(client.get("/api/nothing"))
        wrong = client.get("/api/chat")
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        error_of(wrong)
        with client.stream("POST", "/api/chat", json=ASK) as first:
            assert first.status_code == 200
            full = client.post("/api/chat", json=ASK)
            assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
            error_of(full)
        assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_an_answer_that_is_no_json_is_left_as_it_is(start: Callable[..., Running]):
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    with start(cors_origins=("https://chat.example",)).client() as client:
        for path in ("/api/chat", CHAT):
            response = client.options(path, headers=asked)
            assert response.status_code in (400, 403) and response.text
        allowed = client.options("/api/chat", headers={**asked, "origin": "https://chat.example"})
        assert allowed.status_code == 200


@pytest.mark.parametrize("after", [0, 2])
def test_a_failure_of_the_engine_is_an_error_without_its_words(start: Callable[..., Running], after: int):
    engine = StubEngine()
    engine.fail_after = after
    with start(engine).client() as client:
        whole = client.post("/api/chat", json={**ASK, "stream": False})
        assert whole.status_code == 500 and "secret" not in error_of(whole)
        lines = lines_of(client.post("/api/chat", json=ASK))
        assert set(lines[-1]) == {"error"} and "secret" not in lines[-1]["error"] and len(lines) == after + 1


def test_heads_are_answered_without_a_body(client: httpx.Client):
    for path in ("/", "/api/version", "/api/tags", "/api/ps"):
        response = client.head(path)
        assert response.status_code == 200 and response.content == b""
    version = client.get("/api/version").json()["version"]
    assert [part.isdigit() for part in version.split(".")] == [True] * 3
    # Codex refuses servers without /v1/responses, and Ollama has /v1/messages since 0.14.0, which this one has not.
    assert (0, 13, 4) <= tuple(map(int, version.split("."))) < (0, 14, 0)
    assert client.head("/api/chat").status_code == 405


def test_what_changes_models_is_refused_with_what_to_do(client: httpx.Client):
    for method, path in (
        ("POST", "pull"), ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete"),
        ("POST", "blobs/sha256:0"),
    ):  # fmt: skip
        response = client.request(method, f"/api/{path}", json={"model": "nano"})
        assert response.status_code == 501 and "minicpm pull" in error_of(response)


def test_requests_are_counted_by_their_path(stub: Running):
    client = stub.client()
    client.post("/api/chat", json=ASK)
    client.get("/api/invented")
    text = client.get("/metrics").text
    assert 'path="/api/chat",status="200"' in text and "invented" not in text


def test_the_document_names_every_field_and_option():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    section = text[text.index("## Ollama") :]
    section = section[: section.index("\n## ", 1)]
    kinds = (OllamaChatRequest, OllamaGenerateRequest, OllamaEmbedRequest, Options)
    fields = {name for kind in kinds for name in kind.model_fields}
    assert not {field for field in fields if not re.search(rf"`{field}`", section)}
