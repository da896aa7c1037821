"""Bad data are found, each by its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from minicpm.errors import DataError
from minicpm.train.records import Conversation, Problem, Text, TokenIds, parse_record, read_records
from minicpm.train.rendering import Renderer
from minicpm.train.store import token_store

GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}'
BAD_LINES = {
    '{"messages": [': "not valid JSON",
    "[1, 2]": "JSON list",
    '{"id": 3}': "expected one of messages",
    '{"messages": []}': "messages is empty",
    '{"messages": "Hi"}': "must be a list of turns",
    '{"messages": [{"content": "Hi"}]}': "messages[0] has no role",
    '{"messages": [{"role": "user"}]}': "messages[0] has no content",
    '{"messages": [{"role": "robot", "content": "Hi"}]}': "messages[0].role must be one of",
    '{"messages": [{"role": "user", "content": "Hi"}]}': "no assistant turn",
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}': "empty assistant turn",
    '{"messages": [{"role": "assistant", "content": "Hi"}]}': "before any user turn",
    '{"text": ""}': "text is empty",
    '{"text": 5}': "text must be a string",
    '{"input_ids": [1, 5, 1000]}': "input_ids[2] is 1000, out of range 0 to 999",
    '{"input_ids": [1, -5]}': "input_ids[1] is -5, out of range",
    '{"input_ids": [1, 5.5]}': "whole numbers",
    '{"input_ids": [1, 5], "labels": [-100, 6]}': "labels are not shifted",
    '{"input_ids": [1, 5], "labels": [-100, -100]}': "no label is trained",
    '{"text": "half a pair \\ud800"}': "surrogate",
    '{"messages": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b", "weight": 0.5}]}': "expected 0 or 1",
    '{"messages": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b", "weight": 0}]}': "the weight 0",
    '{"messages": [{"role": "user", "content": "Hi", "name": "Bo"}]}': "the field 'name'",
    '{"messages": [{"role": "system", "content": "A"}], "system": "B"}': "system differs",
    '{"text": "Once.", "tools": [{"name": "add"}]}': "has the field tools",
    '{"instruction": "a", "output": "b", "images": ["a.png"]}': "has the field images",
    '{"instruction": "a", "output": "b", "weight": 0.5}': "records have no weights",
    '{"instruction": "a", "output": "b", "system": 3}': "system must be a string",
    '{"instruction": "a", "output": "b", "history": "c"}': "history must be a list",
    '{"instruction": "a", "output": "b", "history": [["c"]]}': "history[0] must be [question, answer]",
    '{"instruction": "a", "output": "b", "history": [["c", ""]]}': "history[0][1] is empty",
    '{"input_ids": [1, 5, 0], "attention_mask": [1, 1, 0]}': "attention_mask hides",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: BAD_LINES[line][:30])
def test_a_bad_line_is_named_and_nothing_is_kept(line: str, tmp_path: Path, renderer: Renderer):
    path = tmp_path / "data.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        token_store(path, tmp_path / "stores", renderer)
    assert "line 3: " in str(caught.value) and BAD_LINES[line] in str(caught.value)
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "stores").iterdir())


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"text": "\xff"}\n')
    assert [str(found) for _, found in read_records(path) if isinstance(found, Problem)] == [
        "line 2: not UTF-8 text (byte 10 is 0xff)"
    ]


def test_the_release_s_json_list_is_read_and_its_items_are_numbered(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text(
        json.dumps([json.loads(GOOD), {"content": "类型#裤", "summary": "好看的裤子"}, {}]), encoding="utf-8"
    )
    places, found = zip(*read_records(path))
    assert places == ("item 1", "item 2", "item 3")
    assert isinstance(found[1], Conversation) and found[1].messages[1]["content"] == "好看的裤子"
    assert isinstance(found[2], Problem)


@pytest.mark.parametrize(
    "raw, kind",
    [
        ({"text": "Once."}, Text),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, Conversation),
        ({"prompt": "a", "completion": "b"}, Conversation),
        ({"instruction": "a", "input": "", "output": "b"}, Conversation),
        ({"input_ids": [1, 2, 3]}, TokenIds),
    ],
)
def test_common_forms_are_recognised_in_compressed_lines(raw: object, kind: type, tmp_path: Path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(raw).encode()))
    assert [type(record) for _, record in read_records(path)] == [kind]


def test_a_torn_gzip_file_is_an_error_of_one_sentence(tmp_path: Path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode() * 50)[:-9])
    with pytest.raises(DataError, match="not a whole gzip file"):
        list(read_records(path))


# --- fields beside the turns -------------------------------------------------------------------------------------

SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"instruction": "Hi", "output": "Yes?", "system": "Be brief."}, [SYSTEM, *SAID]),
        ({"instruction": "Hi", "output": "Yes?", "history": [["a", "b"]]}, [*HISTORY, *SAID]),
        (
            {"instruction": "Hi", "output": "Yes?", "system": "Be brief.", "history": [["a", "b"]]},
            [SYSTEM, *HISTORY, *SAID],
        ),
        ({"prompt": "Hi", "completion": "Yes?", "system": "Be brief.", "history": []}, [SYSTEM, *SAID]),
        ({"content": "Hi", "summary": "Yes?", "system": "", "history": None}, SAID),
        ({"conversations": SHAREGPT, "system": "Be brief."}, [SYSTEM, *SAID]),
        ({"messages": SAID, "system": "Be brief.", "tools": "[]"}, [SYSTEM, *SAID]),
        ({"messages": [SYSTEM, *SAID], "system": "Be brief."}, [SYSTEM, *SAID]),
        ({"messages": [{**turn, "name": None} for turn in SAID], "tools": []}, SAID),
    ],
)
def test_system_text_and_history_are_turns(raw: object, expected: object):
    record = parse_record(raw)
    assert isinstance(record, Conversation)
    assert (list(record.messages), record.ignored) == (expected, ())


@pytest.mark.parametrize(
    ("raw", "ignored"),
    [
        ({"messages": SAID, "id": 3, "source": "x"}, ("id", "source")),
        ({"text": "Once.", "system": "Be brief."}, ("system",)),
        ({"instruction": "a", "output": "b", "rejected": "c"}, ("rejected",)),
        ({"conversations": [{**turn, "markdown": True} for turn in SHAREGPT]}, ("conversations[].markdown",)),
        ({"input_ids": [1, 2], "attention_mask": [1, 1], "token_type_ids": [0, 0]}, ("token_type_ids",)),
        ({"messages": SAID, "id": None, "weight": 1}, ()),
    ],
)
def test_fields_that_are_not_used_are_named(raw: object, ignored: tuple[str, ...]):
    assert parse_record(raw).ignored == ignored


def test_an_answer_of_weight_0_is_read_but_not_learned(renderer: Renderer):
    raw = [*SHAREGPT, {"from": "human", "value": "More"}, {"from": "gpt", "value": "No."}]
    raw[1] = {**raw[1], "weight": 0}
    record, plain = parse_record({"conversations": raw}), parse_record({"conversations": [*SHAREGPT, *raw[2:]]})
    found, all_learned = renderer.render(record), renderer.render(plain)
    assert found.ids == all_learned.ids
    learned = renderer.tokenizer.decode([i for i, trained in zip(found.ids, found.is_trained) if trained])
    assert "No." in learned and "Yes?" not in learned
    assert sum(found.is_trained) < sum(all_learned.is_trained)


def test_a_store_names_the_fields_that_are_not_used(tmp_path: Path, renderer: Renderer):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{GOOD}\n{{"text": "a b c", "id": 1}}\n{{"text": "d e f", "id": 2}}\n')
    told: list[str] = []
    token_store(path, tmp_path / "stores", renderer, told.append)
    assert f"{path}: 2 records have the field id, which is not used" in told


# --- what a file holds, whatever its name --------------------------------------------------------------------------

ONE, TWO = json.dumps(json.loads(GOOD)), '{"text": "Once."}'


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.json.gz", "data.jsonl.gz"])
@pytest.mark.parametrize(
    ("text", "places"),
    [
        (f"{ONE}\n{TWO}\n", ["line 1", "line 2"]),
        (ONE, ["line 1"]),
        (f"\ufeff\n{ONE}\n\n{TWO}", ["line 2", "line 4"]),
        (f"[{ONE}, {TWO}]", ["item 1", "item 2"]),
        (f"[\n  {ONE},\n  {TWO}\n]\n", ["item 1", "item 2"]),
        (f"\ufeff[{ONE}]", ["item 1"]),
        (json.dumps(json.loads(ONE), indent=2), ["item 1"]),
    ],
    ids=["lines", "one line", "blank lines", "list", "list over lines", "BOM", "one record over lines"],
)
def test_lines_and_lists_are_told_apart_by_content(tmp_path: Path, name: str, text: str, places: list[str]):
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = list(read_records(tmp_path / name))
    assert [place for place, _ in found] == places
    assert not any(isinstance(record, Problem) for _, record in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n "data": [\n{"text": "a"}\n]}', "in its field 'data'"),
        ("[1, 2", "not valid JSON"),
        ("[]\n", None),
        ("3\n", "line 1: holds a JSON int"),
        ('{"text": "a"\n{"text": "b"}\n', "line 1: not valid JSON"),
    ],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_what_is_neither_is_named(tmp_path: Path, name: str, text: str, words: str | None):
    (tmp_path / name).write_text(text)
    try:
        problems = [str(record) for _, record in read_records(tmp_path / name) if isinstance(record, Problem)]
    except DataError as error:
        problems = [str(error)]
    assert (words is None and not problems) or (words is not None and words in problems[0])
