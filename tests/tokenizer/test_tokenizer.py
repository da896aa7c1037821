"""Ids equal those of 2024; decoding a stream equals decoding the whole; a bad file is one error sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm.errors import FormatError
from minicpm.tokenizer import (
    MAX_TEXT_CHARACTERS,
    Detokenizer,
    Tokenizer,
    bpe_merges,
    read_sentencepiece,
)

CITY = "<用户>Which city is the capital of China?<AI>"
POEM = "<用户>你好<AI> 你好！有什么可以帮你？<用户>写一首诗<AI>"

# spec: reference ids of the official tokenizer.json, as Hugging Face's chat and vLLM fed them to the model in 2024.
REAL_VECTORS = {
    "<用户>你好<AI>": [1, 1786, 4194, 95388, 23523, 95396, 10850, 95388],
    "你好，世界！": [1, 95320, 23523, 65, 2925, 67],
    "  spaced  text\n": [1, 1345, 61009, 1345, 2384, 5],
    CITY: [1, 1786, 4194, 95388, 28780, 4342, 1410, 1358, 8107, 1379, 6213, 74, 95396, 10850, 95388],
    POEM: [
        *(1, 1786, 4194, 95388, 23523, 95396, 10850, 95388, 95320, 23523, 67, 8307, 1802, 27255, 68),
        *(95396, 4194, 95388, 96027, 33289, 96291, 95396, 10850, 95388),
    ],
    "<AI>": [1, 1786, 10850, 95388],
}  # fmt: skip


@pytest.fixture(scope="module")
def real(real_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_folder(real_tokenizer)


@pytest.fixture(scope="module")
def toy_folder(golden: Path) -> Path:
    return golden / "minicpm2b_tied"


@pytest.fixture(scope="module")
def toy(toy_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(toy_folder)


@pytest.fixture
def copy_with(tmp_path: Path, toy_folder: Path) -> Callable[..., Path]:
    """A function that copies the toy tokenizer with changes to tokenizer.json or tokenizer_config.json."""

    def copy(change: Callable[[dict[str, Any]], None] = lambda raw: None, **config: Any) -> Path:
        raw = json.loads((toy_folder / "tokenizer.json").read_text())
        change(raw)
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        settings = json.loads((toy_folder / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
        return tmp_path

    return copy


def vectors(golden: Path, name: str) -> Any:
    return json.loads((golden / "chat" / f"{name}.json").read_text())


# --- Ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", REAL_VECTORS, ids=repr)
def test_ids_are_those_of_2024(real: Tokenizer, text: str):
    assert real.encode(text) == REAL_VECTORS[text]


def test_every_golden_vector_has_its_ids_and_its_text_back(toy: Tokenizer, golden: Path):
    for vector in vectors(golden, "tokenizer_vectors"):
        assert toy.encode(vector["text"]) == vector["ids_fast_with_bos"], vector["text"]
        # The decoded texts were written by the slow flavour, which loses a blank at the start of a text.
        if vector["ids_fast_with_bos"] == vector["ids_with_bos"] and not vector["text"].startswith(" "):
            assert toy.decode(vector["ids_fast_with_bos"]) == vector["decoded_skip_special"]


def test_every_golden_prompt_has_its_ids(toy: Tokenizer, golden: Path):
    cases = vectors(golden, "minicpm2b_chat")["cases"]
    assert [toy.encode(case["prompt"]) for case in cases] == [case["input_ids"] for case in cases]


def test_without_bos_only_the_first_id_is_missing(real: Tokenizer):
    assert real.encode(CITY, add_bos=False) == real.encode(CITY)[1:]


def test_bos_follows_the_configuration(copy_with: Callable[..., Path]):
    tokenizer = Tokenizer.from_folder(copy_with(add_bos_token=False))
    assert tokenizer.encode("hello") == tokenizer.encode("hello", add_bos=False)


def test_a_batch_equals_its_texts_one_by_one(real: Tokenizer):
    texts = [*REAL_VECTORS, "", "\0", "𝔘"]
    assert real.encode_batch(texts) == [real.encode(text) for text in texts]
    assert real.encode_batch([]) == []


def test_facts_of_the_real_vocabulary(real: Tokenizer):
    assert (real.vocab_size, real.bos_token_id, real.eos_token_id, real.eos_token_ids) == (122753, 1, 2, (2,))
    assert real.special_token_ids == {0, 1, 2}
    assert real.id_to_token(1786) == "▁<"
    assert real.token_to_id("▁<") == 1786
    assert real.id_to_token(122753) is None
    assert real.token_to_id("no such piece") is None


def test_truncation_and_padding_in_the_file_are_ignored(copy_with: Callable[..., Path], toy: Tokenizer):
    def add(raw: dict[str, Any]) -> None:
        raw["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        raw["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
        }  # fmt: skip

    tokenizer = Tokenizer.from_folder(copy_with(add))
    assert tokenizer.encode(CITY) == toy.encode(CITY)
    assert tokenizer.encode_batch([CITY, "a"]) == toy.encode_batch([CITY, "a"])


def test_the_pipeline_that_transformers_5_writes_loads_too(copy_with: Callable[..., Path]):
    def rewrite(raw: dict[str, Any]) -> None:
        raw["normalizer"] = None
        raw["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False
        }  # fmt: skip
        raw["model"]["unk_token"] = None
        raw["model"]["merges"] = [merge.split(" ") for merge in raw["model"]["merges"]]

    tokenizer = Tokenizer.from_folder(copy_with(rewrite))
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"


# --- Special tokens of the configuration -----------------------------------------------------------------------


def declared(token_id: int, content: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {str(token_id): {"content": content, "special": special, **flags}}


def test_a_special_token_of_the_configuration_is_one_id(copy_with: Callable[..., Path], toy: Tokenizer):
    tokenizer = Tokenizer.from_folder(copy_with(added_tokens_decoder=declared(3, "<image>")))
    assert 3 in tokenizer.special_token_ids
    a, b = toy.encode("a"), toy.encode("b", add_bos=False)
    assert tokenizer.encode("a<image>b") == [*a, 3, *b]
    assert tokenizer.decode([*a, 3, *b]) == "a b"
    assert tokenizer.vocab_size == toy.vocab_size


def test_a_new_token_of_the_configuration_extends_the_vocabulary(copy_with: Callable[..., Path], toy: Tokenizer):
    tokenizer = Tokenizer.from_folder(copy_with(added_tokens_decoder=declared(1000, "<|im_end|>", special=False)))
    assert (tokenizer.vocab_size, tokenizer.encode("<|im_end|>", add_bos=False)) == (1001, [1000])
    assert tokenizer.decode([1000]) == "<|im_end|>"


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        (declared(5, "<s>"), "gives '<s>' the id 5, but the vocabulary gives it 1"),
        (declared(5000, "<new>"), "gives '<new>' the id 5000, but the vocabulary gives it 1000"),
        ({"../x": {"content": "a"}}, "expected a token id"),
        ({"7": "text"}, "which is no token"),
        ([], None),
        ("text", "must be an object"),
    ],
)
def test_configured_tokens_that_contradict_the_vocabulary_are_refused(
    copy_with: Callable[..., Path], tokens: Any, complaint: str | None
):
    folder = copy_with(added_tokens_decoder=tokens)
    if complaint is None:
        Tokenizer.from_folder(folder)
        return
    with pytest.raises(FormatError, match="tokenizer_config.json.*" + complaint):
        Tokenizer.from_folder(folder)


def test_an_end_token_that_does_not_exist_is_refused(copy_with: Callable[..., Path]):
    with pytest.raises(FormatError, match=r"no token '<end>', which tokenizer_config\.json names as eos_token"):
        Tokenizer.from_folder(copy_with(eos_token="<end>"))


# --- tokenizer.model -------------------------------------------------------------------------------------------


def test_tokenizer_model_alone_gives_the_official_pieces_and_merges(real_tokenizer: Path):
    official = json.loads((real_tokenizer / "tokenizer.json").read_text())["model"]
    model = read_sentencepiece(real_tokenizer / "tokenizer.model")
    assert {piece: i for i, piece in enumerate(model.pieces)} == official["vocab"]
    assert [" ".join(pair) for pair in bpe_merges(model)] == official["merges"]


@pytest.mark.parametrize("folder", ["real_tokenizer", "toy_folder"])
def test_tokenizer_model_alone_gives_the_same_ids(folder: str, request: pytest.FixtureRequest, tmp_path: Path):
    source = request.getfixturevalue(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path)
    ours, official = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(source)
    for text in [*REAL_VECTORS, "def f(x):\n\treturn x ** 2  # 平方\r\n", "é 龘 😀 \0", "", " ", "</s>a<unk>"]:
        assert ours.encode(text) == official.encode(text), text
    assert ours.special_token_ids == official.special_token_ids


@pytest.mark.parametrize("folder", ["real_tokenizer", "toy_folder"])
def test_pieces_scores_and_types_are_those_that_sentencepiece_reads(folder: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(folder) / "tokenizer.model"
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    model = read_sentencepiece(path)
    ids = range(oracle.get_piece_size())
    assert list(model.pieces) == [oracle.id_to_piece(i) for i in ids]
    assert list(model.scores) == [oracle.get_score(i) for i in ids]
    for i, kind in enumerate(model.types):
        flags = (oracle.is_unknown(i), oracle.is_control(i), oracle.is_unused(i), oracle.is_byte(i))
        assert flags == (kind == 2, kind == 3, kind == 5, kind == 6)
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (
        *(oracle.unk_id(), oracle.bos_id(), oracle.eos_id(), oracle.pad_id()),
    )
    assert model.byte_fallback


def train_sentencepiece(folder: Path, **options: Any) -> None:
    """Write a small tokenizer.model that SentencePiece itself trains, with MiniCPM-2B's flags but for `options`."""
    lines = [f"<用户>How much is {i} and {i + 1}?<AI>{i} plus {i + 1} is {2 * i + 1}." for i in range(200)]
    flags: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        split_digits=True,
        minloglevel=2,
        **{**flags, "add_dummy_prefix": False, **options},
    )


OWN_PIECES = ["\n", "<用户>", "<AI>"]


@pytest.fixture(scope="module")
def unprefixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a blank before a text, and with pieces of the user's, trained by SentencePiece itself."""
    folder = tmp_path_factory.mktemp("unprefixed")
    train_sentencepiece(folder, user_defined_symbols=OWN_PIECES)
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": false}')
    return folder


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that puts a blank before a text itself, as MiniCPM-2B's does not; no configuration beside it."""
    folder = tmp_path_factory.mktemp("prefixed")
    train_sentencepiece(folder, add_dummy_prefix=True)
    return folder


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["<用户>", "<AI>", "<AI", "\n", " ", "  ", "▁", "plus", "How", "7", "42", "用户", "é"]))
)
def test_without_a_blank_before_it_a_text_has_the_ids_that_sentencepiece_gives(unprefixed: Path, parts: list[str]):
    text = "".join(parts)
    ours = Tokenizer.from_folder(unprefixed)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(unprefixed / "tokenizer.model"))
    assert ours.encode(text, add_bos=False) == oracle.encode(text)
    assert ours.decode(oracle.encode(text)) == text.replace("▁", " ")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<用户>", "AI", "\n", " ", "  ", "▁", "plus", "How", "7", "42", "用户", "é"])))
def test_with_add_dummy_prefix_a_text_has_the_ids_that_sentencepiece_gives(prefixed: Path, parts: list[str]):
    text = "".join(parts)
    ours = Tokenizer.from_folder(prefixed)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(prefixed / "tokenizer.model"))
    assert ours.encode(text, add_bos=False) == oracle.encode(text)
    assert ours.decode(oracle.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is on"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises characters"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_normalizer_that_the_pipeline_does_not_have_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], complaint: str
):
    train_sentencepiece(tmp_path, **options)
    with pytest.raises(FormatError, match=f"tokenizer.model: .*{complaint}"):
        Tokenizer.from_folder(tmp_path)


def test_blanks_are_never_removed_as_in_llama_tokenizer_fast(tmp_path: Path):
    train_sentencepiece(tmp_path, add_dummy_prefix=True, remove_extra_whitespaces=True)
    ours = Tokenizer.from_folder(tmp_path)
    for text in ("How  much", " How ", "   "):
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_configuration_decides_about_the_blank_and_the_pieces_of_the_user(tmp_path: Path, prefix: bool):
    train_sentencepiece(tmp_path, add_dummy_prefix=True, user_defined_symbols=OWN_PIECES)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": prefix}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    pieces = [tokenizer.id_to_token(i) for i in tokenizer.encode("How<AI>", add_bos=False)]
    assert str(pieces[0]).startswith("▁") is prefix
    assert ("<AI>" in pieces) is not prefix


def test_a_configured_prefix_that_is_neither_yes_nor_no_is_refused(unprefixed: Path, tmp_path: Path):
    shutil.copy(unprefixed / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": "maybe"}')
    with pytest.raises(FormatError, match="add_prefix_space must be true or false, got 'maybe'"):
        Tokenizer.from_folder(tmp_path)


# --- Decoding --------------------------------------------------------------------------------------------------


def test_decoding_gives_the_text_back_and_needs_no_bos(real: Tokenizer):
    for text in [*REAL_VECTORS, "a\0b", "𝔘𝔫𝔦 龘", "\n\n  \t", "1,545 米"]:
        assert real.decode(real.encode(text)) == text
        assert real.decode(real.encode(text, add_bos=False)) == text


def test_special_tokens_are_shown_on_request(real: Tokenizer):
    assert real.decode([1, 1786, 2], skip_special_tokens=False) == "<s> <</s>"
    assert real.decode([1, 1786, 2]) == "<"


def test_ids_beyond_the_vocabulary_say_nothing_and_negative_ones_are_refused(real: Tokenizer):
    assert real.decode([1786, 122759]) == "<"  # MiniCPM-2B-128k's head has 122,760 rows
    with pytest.raises(ValueError, match="token id must be from 0"):
        real.decode([-1])


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_decodes_as_the_library_decodes_it(toy: Tokenizer, toy_folder: Path, text: str):
    library = _library(toy_folder)
    ids = toy.encode(text)
    assert toy.decode(ids) == library.decode(ids)
    assert toy.decode(ids, skip_special_tokens=False) == library.decode(ids, skip_special_tokens=False)


_LIBRARY: dict[Path, tokenizers.Tokenizer] = {}


def _library(folder: Path) -> tokenizers.Tokenizer:
    if folder not in _LIBRARY:
        _LIBRARY[folder] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return _LIBRARY[folder]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=12))
def test_bytes_that_are_no_text_decode_as_sentencepiece_decodes_them(toy: Tokenizer, toy_folder: Path, data: bytes):
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(toy_folder / "tokenizer.model"))
    first = oracle.piece_to_id("<0x00>")
    letter = oracle.piece_to_id("a")  # keeps clear of the blank that is taken away at the start
    ids = [letter, *(first + byte for byte in data)]
    assert toy.decode(ids) == oracle.decode(ids)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 1003), st.integers(15, 300)), max_size=40), skip=st.booleans())
def test_a_stream_joins_to_the_whole_text(toy: Tokenizer, ids: list[int], skip: bool):
    stream = Detokenizer(toy, skip_special_tokens=skip)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join([*pieces, stream.flush()]) == toy.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=40))
def test_a_stream_never_shows_half_a_character_or_takes_back(toy: Tokenizer, text: str):
    stream = Detokenizer(toy)
    shown = ""
    for token_id in toy.encode(text):
        shown += stream.push(token_id)
        assert "\ufffd" not in shown
    # "</s>" written in a text is a special token and therefore not shown.
    assert (shown + stream.flush()) == toy.decode(toy.encode(text))


@settings(max_examples=200)
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    ids=st.lists(st.one_of(st.integers(0, 1003), st.integers(15, 300)), max_size=20),
    skip=st.booleans(),
)
def test_a_text_that_continues_a_prompt_can_be_put_behind_it(toy: Tokenizer, prompt: str, ids: list[int], skip: bool):
    prompt_ids = toy.encode(prompt)
    assert any(toy.token_bytes(i, skip_special_tokens=skip) for i in prompt_ids)
    whole = toy.decode([*prompt_ids, *ids], skip_special_tokens=skip)
    shown = toy.decode(prompt_ids, skip_special_tokens=skip)
    stream = Detokenizer(toy, skip_special_tokens=skip, continues=True)
    assert shown + "".join(map(stream.push, ids)) + stream.flush() == whole
    assert shown + toy.decode(ids, skip_special_tokens=skip, continues=True) == whole


def test_only_a_text_that_continues_another_keeps_its_first_blank(toy: Tokenizer):
    ids = toy.encode("word", add_bos=False)
    assert (toy.decode(ids), toy.decode(ids, continues=True)) == ("word", " word")


def test_a_stream_cut_inside_a_character_says_so_at_the_end(toy: Tokenizer):
    ids = toy.encode("a龘", add_bos=False)
    stream = Detokenizer(toy)
    assert "".join(stream.push(i) for i in ids[:-1]) == "a"
    assert stream.flush() == "\ufffd\ufffd"


# --- Hostile input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"bytes", "must be a str, got bytes"),
        (None, "must be a str"),
        ("a\ud800b", "half of a surrogate pair .* at character 1"),
        ("a" * (MAX_TEXT_CHARACTERS + 1), "1,048,577 characters, at most 1,048,576"),
    ],
    ids=["bytes", "none", "surrogate", "long"],
)
def test_what_is_no_text_is_refused(toy: Tokenizer, text: Any, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        toy.encode(text)
    with pytest.raises(ValueError, match=complaint):
        toy.encode_batch(["fine", text])


def set_in(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: Any) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = to

    change.__name__ = f"{'.'.join(map(str, path))}={to!r:.30}"
    return change


CATASTROPHE = {"Regex": "(a+)+$"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (set_in("model", "type", to="Unigram"), "model type is 'Unigram', expected 'BPE'"),
        (set_in("model", to=None), "model type is None"),
        (set_in("model", to=[]), "model type is"),
        (set_in("model", "dropout", to=0.5), "ids would be random"),
        (set_in("model", "vocab", to={}), "model.vocab is not an object of pieces"),
        (set_in("model", "vocab", to={"a": 0, "b": 0}), "its own id"),
        (set_in("model", "vocab", to={"a": -1}), "its own id"),
        (set_in("model", "vocab", to={"a": 1 << 40}), "its own id"),
        (set_in("model", "vocab", to={"a": "b"}), "its own id"),
        (set_in("model", "vocab", "beyond", to=2000), "its own id"),
        (set_in("model", "vocab", "x" * 5000, to=1000), "a piece of 5,000 characters"),
        (set_in("model", "vocab", to={"a": 0.5}), "its own id"),
        (set_in("model", "merges", to="x"), "merges is not a list"),
        (set_in("model", "merges", to=["no such piece"]), "tokenizers library refuses it"),
        (set_in("model", "merges", to=[{"a": 1}]), "tokenizers library refuses it"),
        (set_in("model", "continuing_subword_prefix", to="##"), "continuing_subword_prefix"),
        (set_in("normalizer", to={"type": "Replace", "pattern": CATASTROPHE, "content": ""}), "regular expression"),
        (set_in("normalizer", "normalizers", 1, "content", to="▁" * 99), "replaces ' ' by something longer"),
        (set_in("normalizer", "normalizers", 1, "pattern", to={"String": ""}), "plain string to replace"),
        (set_in("normalizer", "normalizers", 0, "prepend", to="a" * 99), "prepends 'aaaa"),
        (set_in("normalizer", to={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "the step 'Precompiled'"),
        (set_in("normalizer", to={"type": "Sequence", "normalizers": [{"type": "NFKC"}]}), "the step 'NFKC'"),
        (set_in("normalizer", to={"type": "Sequence", "normalizers": [None] * 99}), "short list of steps"),
        (set_in("normalizer", to=7), "the step 7"),
        (set_in("pre_tokenizer", to={"type": "Split", "pattern": CATASTROPHE}), "the step 'Split'"),
        (set_in("pre_tokenizer", to={"type": ["Metaspace"]}), "the step"),
        (set_in("post_processor", to={"type": "BertProcessing"}), "post_processor has the step"),
        (set_in("decoder", to=None), "decoder is None, expected ByteLevel, or SentencePiece's"),
        (set_in("decoder", to={"type": "WordPiece", "prefix": "##", "cleanup": True}), "decoder is 'WordPiece'"),
        (set_in("decoder", "decoders", 0, "pattern", to=CATASTROPHE), "decoder is"),
        (set_in("added_tokens", to=[{"id": 0, "content": ""}]), "which is no token"),
        (set_in("added_tokens", to=[{"id": 0, "content": "x" * 1000}]), "which is no token"),
        (set_in("added_tokens", to=3), "must be a list"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_a_hostile_tokenizer_json_is_refused_by_name(copy_with: Callable[..., Path], change: Any, complaint: str):
    with pytest.raises(FormatError, match=f"tokenizer.json: .*{complaint}"):
        Tokenizer.from_folder(copy_with(change))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "holds a JSON list"),
        (b'{"model":{"merges":[' + b'"a b",' * 4_000_000 + b'"a b"]}}', "about 4,000,000 JSON items"),
        (
            b'{"model":{"merges":[' + b'"a b",' * 10_000_000 + b'"a b"]}}',
            "60,000,028 bytes, expected at most 33,554,432",
        ),
    ],
    ids=["empty", "cut", "binary", "deep", "list", "four million merges", "ten million merges"],
)
def test_a_tokenizer_json_that_is_none_is_refused(tmp_path: Path, content: bytes, complaint: str):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FormatError, match=complaint):
        Tokenizer.from_folder(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer.model"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)  # sparse
        with pytest.raises(FormatError, match=f"{name}: 1,099,511,627,776 bytes, expected at most"):
            Tokenizer.from_folder(tmp_path)
        (tmp_path / name).unlink()


def test_a_folder_without_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(FormatError, match=r"no tokenizer here; expected tokenizer\.json or tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_tokenizer_model_is_refused_or_read_never_a_crash(
    toy_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    content = bytearray((toy_folder / "tokenizer.model").read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.model"
    path.write_bytes(content)
    try:
        model = read_sentencepiece(path)
    except FormatError as error:
        assert str(path) in str(error)
    else:
        assert len(model.pieces) == len(model.scores) == len(model.types)


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x7f", "where 0 are left"),
        (b"\x0a" + b"\xff" * 20, "more than ten bytes"),
        (b"\x0b", "unknown wire type 3"),
        (field(1, field(1, b"\xff\xff")), "piece 0 is not text"),
        (field(1, field(1, b"")), "has 0 characters"),
        (field(1, field(1, b"a") + b"\x18\x63"), "piece 0 is not text with a score and a type"),
        (field(1, field(1, b"a") + b"\x15\x00\x00\xc0\x7f"), "score that is no number"),
        (field(1, field(1, b"a")) * 2, "appears twice"),
        (field(1, field(1, b"a")), "model_type is not BPE"),
        (field(1, field(1, b"a")) + field(2, b"\x18\x02"), "unk_id 0 is not its unknown piece"),
        (field(1, field(1, b"a")) + field(2, b"\x18\x02") + field(3, field(2, b"xx")), "it normalises characters"),
        (field(1, field(1, b"a")) + field(2, b"\x18\x02") + field(3, b"\x28\x00"), "escape_whitespaces is off"),
        (
            field(1, field(1, b"a")) + field(2, b"\x18\x02") + field(5, field(2, b"x")),
            "changes characters when decoding",
        ),
    ],
)
def test_a_hostile_tokenizer_model_is_refused_by_name(tmp_path: Path, content: bytes, complaint: str):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(FormatError, match=f"tokenizer.model: not a SentencePiece model: .*{complaint}"):
        Tokenizer.from_folder(tmp_path)
