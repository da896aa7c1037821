"""Byte-level tokenizers: ids of a real one, every way to split from GGUF and tokenizer.json, streams, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import byte_level
from minicpm.chat import template_for
from minicpm.errors import FormatError
from minicpm.formats.gguf_tokenizer import read_eos_token_ids, read_tokenizer, tokenizer_fields, tokenizer_texts
from minicpm.tokenizer import PRE_TOKENIZERS, Detokenizer, Tokenizer

FILE = Path("model.gguf")
GOLDEN = json.loads((byte_level.CUT / "ids.json").read_text(encoding="utf-8"))
TEXTS = (
    *(row["text"] for row in GOLDEN),
    "THEY'LL 'Re x's''s 's\n's",
    "1 12 123 1234 12345678 ٣٤٥٦ ½⅓ ⅯⅭⅯ x1y22z333",
    "\r\n\r\n \r\n\t\t x\n\n\n   \n y \u2028 z\u0085w",
    '$$$+++<=>^^~~||| a-b_c "quoted" «ok» …—',
    "<think>\nhm</think>\n\n<s></s><|im_start|><|im_end|><|im_sta",
    "e\u0301 a\u030a \u1100\u1161\u11a8 \u200d \ufeff \U0001f1e8\U0001f1f3",
)
# Of an s in any case, a long one is one to the library and none to llama.cpp.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u017f\ufb05\ufb06"), max_size=40)


def from_gguf(values: dict[str, Any]) -> Tokenizer:
    return read_tokenizer(FILE, byte_level.metadata(values))


@pytest.fixture(scope="module")
def cut() -> Tokenizer:
    return from_gguf(byte_level.cut_values())


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes tokenizer.json, changed, and tokenizer_config.json."""

    def write(pre: str, change: Callable[[dict[str, Any]], object] = lambda raw: None, **config: Any) -> Path:
        raw = json.loads(byte_level.published(pre).to_str())
        change(raw)
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**tokens, **config}))
        return tmp_path

    return write


# --- Ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: repr(row["text"]))
def test_ids_are_those_of_the_real_tokenizer(cut: Tokenizer, row: dict[str, Any]):
    assert cut.encode(row["text"]) == row["ids"]


@pytest.mark.parametrize("pre", byte_level.PUBLISHED)
def test_a_gguf_file_splits_as_the_familys_own_file(pre: str, folder: Callable[..., Path]):
    library = byte_level.published(pre)
    ours, own = from_gguf(byte_level.gguf_values(library, pre)), Tokenizer.from_folder(folder(pre))
    for text in TEXTS:
        expected = library.encode(text, add_special_tokens=False).ids
        assert (ours.encode(text), own.encode(text)) == (expected, expected), text
    assert ours.special_token_ids == own.special_token_ids
    assert ours.vocab_size == own.vocab_size == library.get_vocab_size()


@pytest.mark.parametrize("pre", byte_level.PUBLISHED)
@settings(max_examples=40, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_has_the_ids_of_the_library_and_comes_back(pre: str, text: str):
    library = _library(pre)
    tokenizer = _tokenizer(pre)
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_name_of_a_way_to_split_is_tested_and_aliases_are_equal():
    aliases = {"llama3", "llama-v3"}
    assert PRE_TOKENIZERS.keys() == byte_level.PUBLISHED.keys() | aliases
    assert all(PRE_TOKENIZERS[name] == PRE_TOKENIZERS["llama-bpe"] for name in aliases)


def test_without_a_name_the_default_is_meant():
    values = byte_level.gguf_values(byte_level.published("default"), "default")
    values.pop("tokenizer.ggml.pre")
    assert from_gguf(values).encode("a-b 12345") == _library("default").encode("a-b 12345").ids


def test_a_byte_without_a_piece_is_dropped_and_keeps_its_neighbours_apart(cut: Tokenizer):
    assert cut.byte_token_id(0x04) is None
    letters = [cut.encode(letter)[0] for letter in "he"]
    assert cut.encode("h\x04e") == letters != cut.encode("he")


def test_of_two_equal_merges_the_first_has_the_rank():
    values = byte_level.gguf_values(byte_level.published("gpt-2"), "gpt-2")
    expected = from_gguf(values).encode(TEXTS[0])
    values["tokenizer.ggml.merges"] = [*values["tokenizer.ggml.merges"], *values["tokenizer.ggml.merges"][:20]]
    assert from_gguf(values).encode(TEXTS[0]) == expected


# --- Text --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 900), max_size=40), skips=st.booleans())
def test_a_stream_joins_to_the_whole_whatever_the_tokens(ids: list[int], skips: bool):
    tokenizer = _tokenizer("gpt-2")
    stream = Detokenizer(tokenizer, skip_special_tokens=skips)
    pieces = [*(stream.push(token_id) for token_id in ids), stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skips)


def test_no_half_character_is_ever_streamed(cut: Tokenizer):
    for row in GOLDEN:
        stream = Detokenizer(cut, skip_special_tokens=False)
        pieces = [stream.push(token_id) for token_id in row["ids"]]
        assert "\ufffd" not in "".join(pieces) and stream.flush() == ""
    assert max(len(cut.encode(character)) for character in "🙂한﷽") > 1


def test_malformed_bytes_decode_as_in_the_library():
    library, tokenizer = _library("gpt-2"), _tokenizer("gpt-2")
    for data in (b"\xf0\x9f\x99", b"\xe4\xbd\xe4", b"\xff\xfea", b"\xc3(", b"\xf0\x9f\x99\x82\x82"):
        ids = [tokenizer.byte_token_id(byte) for byte in data]
        assert tokenizer.decode(ids) == library.decode(ids)


def test_an_added_token_stands_for_itself(folder: Callable[..., Path]):
    name = "<é ü>"
    token = {"content": name, "special": False, "normalized": False}
    new_id = byte_level.published("gpt-2").get_vocab_size()
    tokenizer = Tokenizer.from_folder(folder("gpt-2", added_tokens_decoder={str(new_id): token}))
    ids = tokenizer.encode(f"a{name}b")
    assert new_id in ids and tokenizer.decode(ids) == f"a{name}b"


# --- Configuration -----------------------------------------------------------------------------------------------


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def begins(token: str) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    ids = {token: {"id": token, "ids": [0], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": ids}


@pytest.mark.parametrize(
    ("processor", "config", "adds"),
    [
        (None, {}, False),
        (begins("<s>"), {}, True),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, begins("<s>")]}, {}, True),
        (begins("<s>"), {"add_bos_token": False}, False),
        (None, {"add_bos_token": True}, True),
        (begins("<s>"), {"bos_token": None}, False),
    ],
)
def test_bos_comes_from_the_configuration_or_else_from_the_post_processor(
    folder: Callable[..., Path], processor: object, config: dict[str, Any], adds: bool
):
    path = folder("llama-bpe", lambda raw: raw.update(post_processor=processor), **config)
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.adds_bos is adds
    assert tokenizer.encode("x") == ([tokenizer.bos_token_id] if adds else []) + tokenizer.encode("x", add_bos=False)


def test_a_template_that_begins_with_bos_keeps_it_where_the_tokenizer_adds_none(folder: Callable[..., Path]):
    template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n---\n' }}{% endfor %}"
    path = folder("smollm", bos_token="<|im_start|>", chat_template=template)
    assert template_for(path).render([{"role": "user", "content": "Hi"}]) == "<|im_start|>user\nHi\n---\n"


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("minicpm5", False), ("qwen2", False)])
def test_a_gguf_file_without_the_key_adds_bos_where_the_family_does(pre: str, adds: bool):
    values = byte_level.gguf_values(byte_level.published(pre), pre)
    values.pop("tokenizer.ggml.add_bos_token")
    assert from_gguf(values).adds_bos is adds


def test_every_token_that_ends_a_text_is_found():
    values = byte_level.gguf_values(byte_level.published("minicpm5"), "minicpm5")
    ids = {token: values["tokenizer.ggml.tokens"].index(token) for token in byte_level.SPECIAL}
    count = len(values["tokenizer.ggml.tokens"])
    found = read_eos_token_ids(FILE, byte_level.metadata(values), count)
    assert found == (ids["</s>"], ids["<|im_end|>"])
    values.update({"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6})
    assert read_eos_token_ids(FILE, byte_level.metadata(values), count) == (ids["</s>"], 5, 6, ids["<|im_end|>"])
    # As in llama.cpp it is a control token whatever the file calls it.
    values["tokenizer.ggml.token_type"][ids["<|im_end|>"]] = byte_level.NORMAL
    assert read_eos_token_ids(FILE, byte_level.metadata(values), count) == (ids["</s>"], 5, 6, ids["<|im_end|>"])
    assert ids["<|im_end|>"] in from_gguf(values).special_token_ids


@pytest.mark.parametrize("pre", byte_level.PUBLISHED)
def test_what_gguf_stores_of_a_folder_reads_back_as_the_same_tokenizer(pre: str, folder: Callable[..., Path]):
    path = folder(pre)
    own = Tokenizer.from_folder(path)
    eos = tuple(token_id for token in ("</s>", "<|im_end|>") if (token_id := own.token_to_id(token)) is not None)
    written = {field.key: field.value for field in tokenizer_fields(path, own.vocab_size + 6, eos)}
    assert written["tokenizer.ggml.pre"] == pre
    read = from_gguf({key: list(value) if isinstance(value, tuple) else value for key, value in written.items()})
    assert [read.encode(text) for text in TEXTS] == [own.encode(text) for text in TEXTS]
    assert (read.vocab_size, read.special_token_ids) == (own.vocab_size, own.special_token_ids)


@pytest.mark.parametrize("pre", [*byte_level.PUBLISHED, "SmolLM2"])
def test_a_folder_made_of_a_gguf_file_has_its_ids(pre: str, tmp_path: Path):
    values = byte_level.cut_values() if pre == "SmolLM2" else byte_level.gguf_values(byte_level.published(pre), pre)
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    metadata = {**byte_level.metadata(values), "tokenizer.chat_template": template}
    for name, text in tokenizer_texts(FILE, metadata).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    of_file, of_folder = read_tokenizer(FILE, metadata), Tokenizer.from_folder(tmp_path)
    for text in (*TEXTS, "h\x04e\x13l\x04lo"):
        assert of_folder.encode(text) == of_file.encode(text), text
    assert of_folder.adds_bos is of_file.adds_bos
    assert of_folder.special_token_ids == of_file.special_token_ids
    assert template_for(tmp_path).text == template


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pre": "gpt-4o"}, "tokenizer.ggml.pre is 'gpt-4o', .* known are minicpm5, llama-bpe"),
        ({"pre": 7}, "tokenizer.ggml.pre is 7"),
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert', expected 'llama' .* or 'gpt2'"),
        ({"merges": None}, "tokenizer.ggml.merges must be an array"),
        ({"merges": ["th"]}, "merges holds 'th', expected two pieces"),
        ({"merges": ["t h e"]}, "merges holds 't h e'"),
        ({"merges": ["t qqq"]}, "the merge 't qqq' has a piece that its vocabulary lacks"),
        ({"token_type": [1]}, "token_type must be [0-9]+ whole numbers"),
    ],
)
def test_metadata_that_cannot_be_meant_are_refused_by_name(change: dict[str, Any], words: str):
    values = byte_level.gguf_values(byte_level.published("gpt-2"), "gpt-2")
    values.update({f"tokenizer.ggml.{key}": value for key, value in change.items()})
    with pytest.raises(FormatError, match=words):
        from_gguf(values)


def steps(raw: dict[str, Any]) -> list[dict[str, Any]]:
    return raw["pre_tokenizer"]["pretokenizers"]


def with_step(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: steps(raw)[0].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_step(pattern={"Regex": "(a+)+$"}), r"splits by '\(a\+\)\+\$', which is no expression of a known family"),
        (with_step(pattern={"Regex": "[" + "\\\\" * 40 + "x"}), "no expression of a known family"),
        (with_step(pattern={"String": "x"}), "no expression of a known family"),
        (with_step(behavior="MergedWithNext"), "behavior 'MergedWithNext', expected 'Isolated'"),
        (with_step(behavior="Removed"), "removes what"),
        (lambda raw: steps(raw)[-1].update(add_prefix_space=True), "blank in front of every text"),
        (lambda raw: steps(raw).append({"type": "Whitespace"}), "has the step 'Whitespace'"),
        (lambda raw: raw.update(normalizer={"type": "Lowercase"}), "has the step 'Lowercase'"),
    ],
)
def test_a_tokenizer_json_that_costs_or_changes_more_is_refused(
    folder: Callable[..., Path], change: Callable[[dict[str, Any]], None], words: str
):
    with pytest.raises(FormatError, match=words):
        Tokenizer.from_folder(folder("llama-bpe", change))


def test_a_way_to_split_without_a_name_is_not_written_to_gguf(folder: Callable[..., Path]):
    with pytest.raises(FormatError, match="for which GGUF has no name"):
        path = folder("llama-bpe", lambda raw: raw["pre_tokenizer"].update(pretokenizers=steps(raw)[1:]))
        tokenizer_fields(path, 10_000, ())


_CACHE: dict[tuple[str, str], Any] = {}


def _library(pre: str) -> Any:
    return _CACHE.setdefault(("library", pre), byte_level.published(pre))


def _tokenizer(pre: str) -> Tokenizer:
    if ("ours", pre) not in _CACHE:
        _CACHE["ours", pre] = from_gguf(byte_level.gguf_values(_library(pre), pre))
    return _CACHE["ours", pre]
