"""Tokens that only added_tokens.json names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from minicpm.errors import FormatError
from minicpm.formats.gguf_tokenizer import TOKENS, tokenizer_fields
from minicpm.tokenizer import Tokenizer


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """The toy tokenizer, of 1000 pieces, which knows no ChatML markers."""
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(golden / "minicpm2b_tied" / name, tmp_path)
    return tmp_path


def listed(folder: Path, tokens: object) -> Tokenizer:
    (folder / "added_tokens.json").write_text(json.dumps(tokens))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
def test_a_listed_token_is_one_token(folder: Path, kind: str):
    (folder / ({"tokenizer.json", "tokenizer.model"} - {kind}).pop()).unlink()
    tokenizer = listed(folder, {"<|im_end|>": 1001, "<|im_start|>": 1000})
    ids = tokenizer.encode("<|im_start|>Hi<|im_end|>", add_bos=False)
    assert (ids[0], ids[-1], tokenizer.vocab_size) == (1000, 1001, 1002)
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "<|im_start|>Hi<|im_end|>"


def test_a_token_is_special_if_another_file_says_so(folder: Path):
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": [{"content": "<|im_end|>"}]}')
    tokenizer = listed(folder, {"<|im_end|>": 1000, "<|x|>": 1001})
    assert 1000 in tokenizer.special_token_ids and 1001 not in tokenizer.special_token_ids
    assert tokenizer.decode([1000, 1001]) == "<|x|>"


def test_tokens_that_are_known_already_change_nothing(folder: Path):
    before = Tokenizer.from_folder(folder)
    after = listed(folder, {"<s>": 1, "</s>": 2, "<unk>": 7})
    assert after.vocab_size == before.vocab_size
    assert after.encode("<s>Hi</s>") == before.encode("<s>Hi</s>")


def test_the_configuration_wins(folder: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"1000": {"content": "<|im_end|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert listed(folder, {"<|im_end|>": 1005}).token_to_id("<|im_end|>") == 1000


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"<|x|>": 1007}, "the id 1007, but the vocabulary gives it 1000"),
        ({"<|x|>": "1000"}, "expected tokens with their ids"),
        ({"": 1000}, "expected tokens with their ids"),
        (["<|x|>"], "expected an object"),
    ],
)
def test_a_list_that_cannot_be_followed_is_named(folder: Path, tokens: object, words: str):
    with pytest.raises(FormatError, match=words) as caught:
        listed(folder, tokens)
    assert caught.value.path.name == "added_tokens.json"


def test_a_gguf_file_gets_them(folder: Path):
    listed(folder, {"<|im_end|>": 1000})
    (tokens,) = (field for field in tokenizer_fields(folder, 1001, (2,)) if field.key == TOKENS)
    assert tokens.value[1000] == "<|im_end|>"
