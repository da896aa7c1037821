"""Log-likelihoods of a backend: alone and in a batch, at once and in parts, for texts of any length."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm.engine.llm import LLM
from minicpm.eval import likelihood as foresight
from minicpm.eval.likelihood import chosen, encoded_text, logits_of, nats_of
from minicpm.eval.passages import passages
from minicpm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def nano() -> LLM:
    return LLM(backend="numpy", max_batch=1)


@pytest.fixture(scope="module")
def rows(nano: LLM) -> list[list[int]]:
    return [nano.tokenizer.encode(passage.text)[:60] for passage in passages()[:4]]


def test_together_and_alone_are_the_same(nano: LLM, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch):
    together = list(logits_of(nano.backend, rows))
    assert [len(one) for one in together] == [len(ids) - 1 for ids in rows]
    monkeypatch.setattr(foresight, "FORWARD_TOKENS", 1)
    for one, other in zip(together, logits_of(nano.backend, rows)):
        assert np.array_equal(one, other)


def test_a_row_in_parts_costs_what_it_costs_at_once(nano: LLM, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch):
    (logits,) = logits_of(nano.backend, rows[:1])
    expected = -chosen(logits, rows[0][1:])
    for tokens in (512, 7, 59):
        monkeypatch.setattr(foresight, "FORWARD_TOKENS", tokens)
        assert np.array_equal(nats_of(nano.backend, rows[0]), expected)


@pytest.mark.parametrize("part_characters", [1, 5, 60, 400, 10**6])
def test_a_text_encoded_in_parts_has_the_ids_of_the_whole(golden, part_characters: int):
    text = "\n\n".join(passage.text for passage in passages()) + "\n = Title = \n\n\n Some  words .\n"
    for tokenizer in (Tokenizer.from_folder(golden / "minicpm2b_tied"), LLM(backend="numpy").tokenizer):
        assert encoded_text(tokenizer, text, part_characters) == tokenizer.encode(text)


def test_a_text_encoded_in_parts_has_the_official_ids(real_tokenizer):
    text = "\n".join(passage.text for passage in passages())
    tokenizer = Tokenizer.from_folder(real_tokenizer)
    assert encoded_text(tokenizer, text, 50) == tokenizer.encode(text)


def test_the_packages_texts_are_of_three_kinds_and_say_where_they_are_from():
    assert {passage.language for passage in passages()} == {"en", "zh", "code"}
    assert all("public domain" in passage.source or "CC0" in passage.source for passage in passages())
    assert len({passage.name for passage in passages()}) == len(passages())
