"""A new tokenizer, as `minicpm prepare` learns it from texts, read by this package and by SentencePiece."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from minicpm.chat.templates import CURRENT_TEMPLATE
from minicpm.errors import DataError
from minicpm.tokenizer import Tokenizer
from minicpm.tokenizer.training import train_tokenizer

MARKERS = ("\n", "<用户>", "<AI>")
WORDS = ["the", "rabbit", "ran", "home", "and", "found", "a", "red", "balloon", "near", "Wally's", "house", "hello"]
WORDS += ["天津", "之眼", "是", "什么", "12", "3.5"]


def texts(count: int = 400) -> list[str]:
    chosen = random.Random(0)
    return [" ".join(chosen.choices(WORDS, k=12)) + "\n<用户>Hi<AI>Yes" for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts(), folder, vocab_size=400, markers=MARKERS, chat_template=CURRENT_TEMPLATE.text, context=128)
    return folder


def test_every_text_comes_back(folder: Path):
    tokenizer = Tokenizer.from_folder(folder)
    for text in [*texts(5), "  two  blanks ", "é ü 漢字 🙂\x07", "tab\there", "a\n\nb", ""]:
        assert tokenizer.decode(tokenizer.encode(text)[1:]) == text
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2


def test_markers_and_frequent_words_are_single_tokens_and_digits_stand_alone(folder: Path):
    tokenizer = Tokenizer.from_folder(folder)
    for text in (*MARKERS, " rabbit", " balloon"):
        assert len(tokenizer.encode(text, add_bos=False)) == 1, text
    assert len(tokenizer.encode("12", add_bos=False)) == 2
    assert tokenizer.vocab_size <= 400


def test_sentencepiece_reads_the_same_model(folder: Path):
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ours = Tokenizer.from_folder(folder)
    assert theirs.vocab_size() == ours.vocab_size
    for text in texts(20):
        assert theirs.encode(text) == ours.encode(text, add_bos=False)


def test_the_two_files_say_the_same(folder: Path, tmp_path: Path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    one, other = Tokenizer.from_folder(folder), Tokenizer.from_folder(tmp_path)
    for text in texts(20):
        assert one.encode(text) == other.encode(text)


def test_nothing_to_learn_and_too_small_a_vocabulary_are_errors(tmp_path: Path):
    options = {"markers": MARKERS, "chat_template": "", "context": 128}
    with pytest.raises(DataError, match="no text to learn"):
        train_tokenizer(["\n", "<AI>"], tmp_path, vocab_size=400, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 326 to"):
        train_tokenizer(texts(3), tmp_path, vocab_size=300, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
