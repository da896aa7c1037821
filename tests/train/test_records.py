"""Bad data are found, each by its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from minicpm.errors import DataError
from minicpm.train.records import Conversation, Problem, Text, TokenIds, read_records
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
