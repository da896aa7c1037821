"""The byte-level tokenizer of a trained model, from GGUF and from tokenizer.json, beside the programs that have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from environments import needing_trained_model, skipped_without
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.tokenizer import Detokenizer, Tokenizer

pytestmark = needing_trained_model()

# Ids that its users publish, and those of the reference in the project's notes on real weights.
PUBLISHED = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "\n": [198],
}


@pytest.fixture(scope="module")
def of_gguf(gguf_file: Path) -> Tokenizer:
    with open_checkpoint(gguf_file, allow_quantized=True) as checkpoint:
        return checkpoint.tokenizer()


@pytest.fixture(scope="module")
def of_folder(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def test_published_ids(of_gguf: Tokenizer, of_folder: Tokenizer):
    for text, ids in PUBLISHED.items():
        assert of_gguf.encode(text) == of_folder.encode(text) == ids


@skipped_without("llamacpp", "llama.cpp")
def test_ten_thousand_odd_texts_have_llama_cpps_ids(
    of_gguf: Tokenizer,
    gguf_file: Path,
    odd_texts: list[str],
    llamacpp: Callable[[Path, list[str]], list[list[int]]],
):
    found = dict(zip(odd_texts, llamacpp(gguf_file, odd_texts)))
    different = [text for text in odd_texts if of_gguf.encode(text) != found[text]]
    assert different == []


def test_ten_thousand_odd_texts_have_the_librarys_ids(of_folder: Tokenizer, folder: Path, odd_texts: list[str]):
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [encoding.ids for encoding in library.encode_batch(odd_texts, add_special_tokens=False)]
    assert of_folder.encode_batch(odd_texts) == expected


def test_ten_thousand_odd_texts_come_back_whole_and_streamed(of_gguf: Tokenizer, odd_texts: list[str]):
    missing = {byte for byte in range(256) if of_gguf.byte_token_id(byte) is None}
    assert len(missing) == 21
    whole = [text for text in odd_texts if not missing & set(text.encode())]
    assert len(whole) > 5_000
    for text, ids in zip(whole, of_gguf.encode_batch(whole)):
        assert of_gguf.decode(ids, skip_special_tokens=False) == text
        stream = Detokenizer(of_gguf, skip_special_tokens=False)
        pieces = [stream.push(token_id) for token_id in ids]
        assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
        assert "".join([*pieces, stream.flush()]) == text


def test_both_forms_differ_only_beside_a_byte_that_has_no_piece(
    of_gguf: Tokenizer, of_folder: Tokenizer, odd_texts: list[str]
):
    """llama.cpp drops such a byte after merging, the library before it: its neighbours merge there."""
    missing = {byte for byte in range(256) if of_gguf.byte_token_id(byte) is None}
    one, other = of_gguf.encode_batch(odd_texts), of_folder.encode_batch(odd_texts)
    different = [text for text, ours, theirs in zip(odd_texts, one, other) if ours != theirs]
    assert all(missing & set(text.encode()) for text in different)


def test_the_deviations_of_transformers_gguf_loader_are_known(of_gguf: Tokenizer, gguf_file: Path):
    """transformers rebuilds the tokenizer from pieces and merges alone, and does not read `pre`."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    same = {
        text: theirs(text, add_special_tokens=False).input_ids == of_gguf.encode(text)
        for text in ("The capital of France is", "in 2026", "a   b\n", "<|im_start|>x", "it is ½", "٣ and ٣", "a\n 12")
    }
    # Digits are not split off first, so a blank joins what the vocabulary has of a number, or the blanks before it.
    assert [text for text, is_same in same.items() if not is_same] == ["it is ½", "٣ and ٣", "a\n 12"]
