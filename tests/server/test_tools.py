"""Function calls: what the model is told, and how its answer is read while it is written."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm.server.chat import conversation
from minicpm.server.requests import ChatRequest, Function
from minicpm.server.tools import CallReader, with_functions

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(st.text(), VALUES, max_size=3)), min_size=1, max_size=4)


def call(name: str, arguments: object) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}</tool_call>'


@given(CALLS, st.lists(st.integers(0, 200)))
def test_calls_are_read_the_same_however_they_are_cut(calls: list[tuple[str, dict]], cuts: list[int]):
    text = "".join(call(name, arguments) for name, arguments in calls)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    reader = CallReader()
    said = [part for a, b in pairwise(places) for part in reader.push(text[a:b])]
    assert [(c.name, json.loads(c.arguments)) for c in reader.calls] == calls
    for number, one in enumerate(reader.calls):
        assert "".join(part.text for part in said if part.call is one) == one.arguments
        assert one.number == number
    assert all(part.call is not None for part in said)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_every_call_begins_with_a_part_that_has_its_name_alone(size: int):
    text = call("get_weather", {"city": "Tokyo"}) + call("now", {})
    reader = CallReader()
    said = [part for at in range(0, len(text), size) for part in reader.push(text[at : at + size])]
    assert [(part.call.name, part.text) for part in said if part.begins] == [("get_weather", ""), ("now", "")]
    assert "".join(part.text for part in said) == '{"city": "Tokyo"}{}'


@given(st.text(), st.characters(exclude_characters="< "))
def test_words_are_given_out_as_they_are(text: str, first: str):
    reader = CallReader()
    words = f" {first}{text}"
    assert "".join(part.text for character in words for part in reader.push(character)) == words[1:]
    assert not reader.calls


def test_a_call_cut_in_its_arguments_gives_what_there_is():
    reader = CallReader()
    reader.push(call("get_weather", {"city": "Tokyo"})[:60])
    assert reader.calls[0].name == "get_weather"
    assert '{"city": "Tok'.startswith(reader.calls[0].arguments[:10]) and reader.calls[0].arguments


def test_functions_stand_at_the_end_of_the_system_text():
    function = Function(**WEATHER)
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "Weather?"}
    (first, second) = with_functions([system, user], [function])
    assert first["content"].startswith("Be brief.\n\n") and json.dumps(WEATHER) in first["content"]
    assert second == user
    assert with_functions([user], [function])[0]["role"] == "system"
    assert with_functions([user], []) == [user]


def test_results_go_back_as_one_turn_after_the_calls_that_asked():
    asked = ChatRequest(
        messages=[
            {"role": "user", "content": "Weather in Tokyo and Paris?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Tokyo"}'},
                    },
                    {
                        "id": "2",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                    },
                ],
            },
            {"role": "tool", "tool_call_id": "Tokyo", "content": "sun"},
            {"role": "tool", "tool_call_id": "Paris", "content": "rain"},
        ]
    )
    turns = conversation(asked.messages)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == call("get_weather", {"city": "Tokyo"}) + call("get_weather", {"city": "Paris"})
    assert turns[2]["content"].index("sun") < turns[2]["content"].index("rain")
