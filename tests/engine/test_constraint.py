"""Answers of a given form: what ends by itself has it, whatever the model would rather say."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from minicpm import LLM, Constraint, SamplingParams
from minicpm.engine.constraint import MAX_CONSTRAINT_CHARACTERS, Constraints
from minicpm.errors import GenerationError
from minicpm.sampling import Draw, Sampler, sample_together
from minicpm.tokenizer import Tokenizer

FREE = SamplingParams(temperature=1, top_p=1, repetition_penalty=1, seed=2, max_tokens=120)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(threads=1, max_batch=32)


@pytest.fixture(scope="module")
def real(real_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_folder(real_tokenizer)


def random_schema(dice: random.Random, depth: int = 0) -> dict[str, object]:
    """A schema whose values are short, so that most answers end before the limit."""
    kinds = ["integer", "boolean", "enum", "const", "null", "string"] + ["object", "array", "anyOf"] * (depth < 2)
    kind = dice.choice(kinds) if depth else "object"
    inner = [random_schema(dice, depth + 1) for _ in range(dice.randint(1, 3))] if depth < 2 else []
    match kind:
        case "object":
            properties = dict(zip(dice.sample(["a", "名", "key two", 'q"uote', "e\\f"], len(inner)), inner))
            required = dice.sample(list(properties), dice.randint(0, len(properties)))
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            return {"type": "array", "items": inner[0], "minItems": dice.randint(0, 2), "maxItems": 3}
        case "anyOf":
            return {"anyOf": inner}
        case "integer":
            return {"type": "integer", "minimum": dice.randint(-50, 0), "maximum": dice.randint(1, 5000)}
        case "string":
            return {"type": "string", "maxLength": dice.randint(1, 12)}
        case "enum":
            return {"enum": dice.sample(["yes", "不", 1, None, "🦙", 2.5], 3)}
        case "const":
            return {"const": dice.choice(["fixed", 7, ["x", {"y": 1}]])}
        case _:
            return {"type": kind}


@pytest.mark.parametrize("number", range(12))
def test_an_answer_that_ends_by_itself_is_valid_by_its_schema(llm: LLM, number: int):
    schema = random_schema(random.Random(number))
    constraint = Constraint.json_schema(schema)
    answers = llm.generate(["Here it is: ", "山东", "{"], FREE, constraint=constraint)
    for answer in answers:
        if answer.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.text), schema)
        else:
            assert len(answer.ids) == FREE.max_tokens
    assert any(answer.finish_reason == "stop" for answer in answers)


def test_the_same_seed_gives_the_same_text_alone_in_a_batch_and_with_lookup(llm: LLM):
    constraint = Constraint.json_schema({"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 12})
    prompts = ["left right left right", "b", "c d"]
    alone = [llm.generate(prompt, FREE, constraint=constraint)[0].text for prompt in prompts]
    assert [answer.text for answer in llm.generate(prompts, FREE, constraint=constraint)] == alone
    plain = LLM(llm.folder, threads=1, lookup="off")
    assert [plain.generate(prompt, FREE, constraint=constraint)[0].text for prompt in prompts] == alone


@pytest.mark.parametrize("pattern", [r"\d{3}-\d{4}", r"(ja|nein)!?", r"[山水]{2,5}", r"🦙{1,3}"])
def test_an_answer_matches_its_regular_expression(llm: LLM, pattern: str):
    for answer in llm.generate(["The number is ", "x"], FREE, constraint=Constraint.regex(pattern)):
        assert re.fullmatch(pattern, answer.text) and answer.finish_reason == "stop"


def test_an_answer_is_one_of_the_choices_whatever_characters_they_have(llm: LLM):
    texts = ["yes", "no", "山东省", "🦙 𝕏", 'a "quoted" \\ line\nand more', " blank first", "a<AI>b"]
    for text in texts:
        assert llm.chat("Which?", FREE, constraint=Constraint.choice([text])).text == text
    said = {llm.chat("Which?", FREE, seed=seed, constraint=Constraint.choice(texts)).text for seed in range(12)}
    assert len(said) > 1 and said <= set(texts)


MARKED = "a<用户>b<AI>c"


@pytest.mark.parametrize("stop", [(), "b", ("<AI>", '"', "}")])
def test_json_ends_where_its_grammar_ends_whatever_stop_strings_stand_in_it(llm: LLM, stop):
    constraint = Constraint.json_schema({"type": "object", "properties": {"x": {"const": MARKED}}, "required": ["x"],
                                         "additionalProperties": False})  # fmt: skip
    pieces = list(llm.stream("Which?", FREE, stop=stop, constraint=constraint))
    assert json.loads("".join(piece.text for piece in pieces)) == {"x": MARKED}
    assert pieces[-1].completion.finish_reason == "stop"


def test_json_is_not_cut_by_stop_tokens_either(llm: LLM):
    quotes = tuple(i for i in range(6144) if b'"' in llm.tokenizer.token_bytes(i))[:128]
    constraint = Constraint.json_schema({"const": MARKED})
    answer = llm.chat("Which?", FREE, stop_token_ids=quotes, constraint=constraint)
    assert json.loads(answer.text) == MARKED


@pytest.mark.parametrize(("stop", "text"), [((), "hello "), (("lo",), "hel"), (("<call>", "x"), "hello ")])
def test_words_beside_a_structure_end_as_words_and_the_structure_does_not(llm: LLM, stop, text: str):
    words = Constraint.lark('start: "hello <用户>x" | "<call>" /[0-9]/', structure="<call>")
    only_words = {i: -100.0 for i in range(6144) if llm.tokenizer.token_bytes(i)[:1] == b"<"}
    said = llm.chat("Which?", FREE, stop=stop, constraint=words, logit_bias=dict(list(only_words.items())[:1000]))
    assert said.text == text and said.finish_reason == "stop"
    call = Constraint.lark('start: "<call>x<用户>1"', structure="<call>")
    pieces = list(llm.stream("Which?", FREE, stop=stop, constraint=call))
    assert "".join(piece.text for piece in pieces) == pieces[-1].completion.text == "<call>x<用户>1"


def test_a_text_that_only_begins_like_a_structure_is_words(llm: LLM):
    near = Constraint.lark('start: "<cat> and dog"', structure="<call>")
    assert llm.chat("Which?", FREE, constraint=near).text == "<cat> and dog"
    assert llm.chat("Which?", FREE, stop="dog", constraint=near).text == "<cat> and "
    short = llm.chat("Which?", FREE, max_tokens=1, constraint=Constraint.lark('start: "<ca" /l+/', structure="<call>"))
    assert "<ca".startswith(short.text) and short.text


def test_stop_strings_cut_texts_of_other_forms(llm: LLM):
    assert llm.chat("Which?", FREE, stop="b", constraint=Constraint.choice(["a b c"])).text == "a "


def test_a_blank_at_the_start_stays_where_the_tokenizer_would_drop_it(golden: Path):
    toy = LLM(golden / "minicpm2b_tied", threads=1)
    assert toy.chat("Which?", FREE, constraint=Constraint.choice([" a"])).text == " a"


def test_any_json_object_is_an_object(llm: LLM):
    answers = llm.generate(["{", "a", "b", "c"], FREE, max_tokens=300, constraint=Constraint.json_object())
    ended = [answer.text for answer in answers if answer.finish_reason == "stop"]
    assert ended and all(isinstance(json.loads(text), dict) for text in ended)


def test_an_answer_follows_a_grammar(llm: LLM):
    grammar = 'start: pair+\npair: "(" inner ")"\ninner: "x" | pair'
    answer = llm.generate("(", FREE, temperature=0.9, constraint=Constraint.lark(grammar))[0]
    assert re.fullmatch(r"[x()]+", answer.text)
    if answer.finish_reason == "stop":
        assert answer.text.count("(") == answer.text.count(")")


def test_the_end_may_come_exactly_where_the_answer_has_its_form(llm: LLM):
    eos = llm.tokenizer.eos_token_id
    matcher = Constraints(llm.tokenizer, llm.backend.vocab_size, frozenset({eos})).matcher(Constraint.regex("ab+"))
    a, b = (next(i for i in range(6144) if llm.tokenizer.token_bytes(i) == text) for text in (b"a", b"b"))
    assert not matcher.allowed()[eos] and matcher.allowed()[a] and not matcher.allowed()[b]
    matcher.accept(a)
    assert not matcher.allowed()[eos]
    matcher.accept(b)
    assert matcher.allowed()[eos] and matcher.allowed()[b] and not matcher.is_complete


def test_an_answer_that_ignores_the_end_token_goes_on_as_long_as_its_form_lets_it(llm: LLM):
    params = SamplingParams(seed=1, max_tokens=30, ignore_eos=True)
    short = llm.generate("x", params, constraint=Constraint.regex("[a-z]{3}"))[0]
    long = llm.generate("x", params, constraint=Constraint.regex("[a-z]*"))[0]
    assert (len(short.text), short.finish_reason) == (3, "stop")
    assert (len(long.ids), long.finish_reason) == (30, "length")


def test_biases_and_penalties_cannot_bring_a_token_in_that_may_not_come(llm: LLM):
    banned = next(i for i in range(6144) if llm.tokenizer.token_bytes(i) == b"z")
    answer = llm.generate("x", FREE, logit_bias={banned: 100.0}, constraint=Constraint.regex("[a-y]{8}"))[0]
    assert re.fullmatch("[a-y]{8}", answer.text)


def test_logprobs_are_of_the_models_own_distribution(llm: LLM):
    free = llm.generate("1, 2, 3,", FREE, max_tokens=1, logprobs=5)[0].logprobs[0]
    bound = llm.generate("1, 2, 3,", FREE, max_tokens=1, logprobs=5, constraint=Constraint.choice(["zebra"]))[0]
    assert bound.logprobs[0].top_logprobs == free.top_logprobs
    assert bound.logprobs[0].logprob < free.top_logprobs[-1][1]


@pytest.mark.parametrize("text", ["山东🦙", "yes, of course", "<用户>", "\n\n x", "</s> is the end", "\x02", " "])
def test_the_official_tokenizer_spells_every_text_whatever_the_logits(real: Tokenizer, text: str):
    constraints = Constraints(real, 122_760, frozenset({real.eos_token_id}))  # a head padded beyond the vocabulary
    noise = np.random.default_rng(0)
    matcher, ids = constraints.matcher(Constraint.choice([text])), []
    sampler = Sampler(SamplingParams(temperature=1, top_p=1), seed=0)
    while not matcher.is_complete:
        logits = noise.standard_normal(122_760).astype(np.float32)
        (token,) = sample_together([Draw(sampler, logits, len(ids), matcher.allowed)])
        matcher.accept(token.token_id)
        ids.append(token.token_id)
    assert real.decode(ids, continues=True) == text


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (Constraint.regex("(a"), "regular expression cannot be followed.*unclosed group"),
        (Constraint.json_schema({"type": "nothing"}), "JSON schema cannot be followed"),
        (Constraint.json_schema({"$ref": "#/nowhere"}), "JSON schema cannot be followed"),
        (Constraint.json_schema("{"), "JSON schema cannot be followed"),
        (Constraint.json_schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable"),
        (Constraint.lark("start: missing"), "grammar cannot be followed"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_runs(llm: LLM, constraint: Constraint, expected: str):
    with pytest.raises(GenerationError, match=expected):
        llm.stream("x", constraint=constraint)


def test_a_grammar_that_never_ends_is_an_error_or_cut(llm: LLM):
    try:
        answer = llm.generate("x", FREE, constraint=Constraint.lark('start: "a" b\nb: "b" b'))[0]
    except GenerationError as error:
        assert "cannot be brought into its form" in str(error)
    else:
        assert answer.finish_reason == "length"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Constraint.regex(""), "must be a text that is not empty"),
        (lambda: Constraint.choice([]), "choices must be 1 to"),
        (lambda: Constraint.choice("yes"), "choices must be 1 to"),
        (lambda: Constraint.json_schema({"a": object()}), "no JSON value"),
        (lambda: Constraint.lark("x" * (MAX_CONSTRAINT_CHARACTERS + 1)), "65,537 characters"),
    ],
)
def test_what_cannot_be_meant_is_a_wrong_argument(make, expected: str):
    with pytest.raises(ValueError, match=expected):
        make()
