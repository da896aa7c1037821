"""The frozen prompts of nano v2 never change, and comparisons with them see through case, affixes and punctuation."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from bilingual.held_out import FROZEN, Prompts, frozen, frozen_prompts, is_aside, normalized

# Written on 2026-11-30, before the generator. A model is measured on these prompts: never change them.
FROZEN_SHA256 = "90eef94214eaaf887b36d9db55b9a3fe3091761cf08a52b1d307dbddc9328cd0"


def test_the_frozen_prompts_have_their_hash():
    assert hashlib.sha256(FROZEN.read_bytes()).hexdigest() == FROZEN_SHA256


def test_there_are_400_different_prompts_in_each_language():
    assert Counter(record["language"] for record in frozen()) == {"en": 400, "zh": 400}
    assert len({normalized(record["prompt"]) for record in frozen()}) == 800


@pytest.mark.parametrize("record", frozen()[::40], ids=lambda record: record["prompt"][:20])
def test_a_frozen_prompt_is_found_whatever_stands_around_it(record):
    prompt = record["prompt"]
    for form in (prompt, prompt.upper(), prompt.rstrip(".?!。？！"), f"  {prompt} "):
        assert form in frozen_prompts()
    if len(normalized(prompt)) >= 5:
        assert f"Please answer: {prompt}" in frozen_prompts()
        assert f"请问，{prompt}谢谢！" in frozen_prompts()


def test_prompts_that_only_resemble_a_frozen_one_are_not_in_the_set():
    held = Prompts(["What is 3 plus 4, please?", "Hi", "七加八等于几？"])
    assert "What is 3 plus 4, please" in held and "hi!" in held and "请问七加八等于几" in held
    assert "What is 3 plus 41, please?" not in held
    assert "What is 3 plus 4?" not in held
    assert "Hi there" not in held
    assert "七加八等于" not in held


def test_full_width_and_half_width_forms_are_equal():
    assert normalized("３＋４＝？") == normalized("3+4=?") == ("3", "+", "4", "=")


def test_two_in_a_hundred_prompts_are_kept_aside():
    share = sum(is_aside([f"What is {i} plus {i + 1}?"]) for i in range(20_000)) / 20_000
    assert 0.015 < share < 0.025
