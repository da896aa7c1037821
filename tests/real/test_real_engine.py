"""A trained model in the engine: logits, greedy tokens, scores, lookup, prefix cache and constraints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from environments import needing_trained_model, skipped_without
from minicpm.engine.constraint import Constraint
from minicpm.engine.llm import LLM
from minicpm.eval.likelihood import logits_of
from minicpm.export.convert import convert
from minicpm.export.quantize import quantize_folder
from minicpm.quant.quality import Comparison, log_softmax

pytestmark = needing_trained_model()

PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "Water boils at a temperature of",
    "In 1969, the first man",
)
# The reference's own continuation of the first prompt, in float32.
FRANCE = " Paris.\n\nThe answer is: 2018-01-22 12:1"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "people": {"type": "integer", "minimum": 0, "maximum": 9999999},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}
# What int8 activations and a cache of int8 do to a logit of this model, doubled: the margin rule's tolerance.
TOLERANCE = 1.0


@pytest.fixture(scope="module")
def of_file(gguf_file: Path) -> LLM:
    """The native engine on the file: INT8 of its Q4_1."""
    return LLM(gguf_file, backend="native")


@pytest.fixture(scope="module")
def of_folder(folder: Path) -> LLM:
    """The native engine on the folder: bfloat16."""
    return LLM(folder, backend="native")


@pytest.fixture(params=["of_file", "of_folder"])
def llm(request: pytest.FixtureRequest) -> LLM:
    found: LLM = request.getfixturevalue(request.param)
    return found


# --- Logits ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(weights: ModuleType, float_folder: Path) -> list[list[int]]:
    """The fixed text of the bounds: prose.txt, 1,561 predicted tokens. Markup costs int8 a third more."""
    return [weights.texts(float_folder)["prose.txt"]]


@pytest.fixture(scope="module")
def expected(rows: list[list[int]], reference: Any, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The reference's logits (T - 1, vocab) of every row, mapped from disk."""
    folder = tmp_path_factory.mktemp("logits")
    for index, ids in enumerate(rows):
        np.save(folder / f"{index}.npy", reference.logits(ids))
    return [np.load(folder / f"{index}.npy", mmap_mode="r") for index in range(len(rows))]


def compared(expected: list[np.ndarray], found: Iterator[np.ndarray], rows: list[list[int]]) -> Comparison:
    comparison = Comparison()
    for logits, ours, ids in zip(expected, found, rows):
        for start in range(0, len(ours), 256):  # probabilities are computed in float64
            part = slice(start, start + 256)
            comparison.add(logits[part], ours[part], np.array(ids[1:])[part])
    return comparison


def test_bfloat16_costs_at_most_3e_4_nats(
    weights: ModuleType, folder: Path, expected: list[np.ndarray], rows: list[list[int]]
):
    found = compared(expected, logits_of(weights.opened(folder, "bfloat16"), rows), rows)
    print(f"bfloat16: KL {found.kl:.2e}, {found.top1_agreement:.4f} of {found.tokens} first choices")
    assert found.kl <= 0.0003


def test_int8_costs_at_most_6e_3_nats(
    weights: ModuleType, float_folder: Path, expected: list[np.ndarray], rows: list[list[int]], tmp_path: Path
):
    quantize_folder(float_folder, tmp_path / "int8", preset="int8")
    found = compared(expected, logits_of(weights.opened(tmp_path / "int8"), rows), rows)
    print(f"int8: KL {found.kl:.2e}, {found.top1_agreement:.4f} of {found.tokens} first choices")
    assert found.kl <= 0.006


def test_the_gguf_file_costs_no_more_than_int8(
    weights: ModuleType, gguf_file: Path, expected: list[np.ndarray], rows: list[list[int]]
):
    found = compared(expected, logits_of(weights.opened(gguf_file), rows), rows)
    print(f"Q4_1 read as INT8: KL {found.kl:.2e}, {found.top1_agreement:.4f} of {found.tokens} first choices")
    assert found.kl <= 0.006


# --- Tokens ------------------------------------------------------------------------------------------------------


def test_the_reference_says_what_it_is_known_to_say(reference: Any, of_file: LLM):
    tokenizer = of_file.tokenizer
    ids = tokenizer.encode(PROMPTS[0])
    prompt_length = len(ids)
    while len(ids) < prompt_length + 24:
        ids.append(int(reference.logits([*ids, 0])[-1].argmax()))
    assert tokenizer.decode(ids[prompt_length:]).startswith(FRANCE)


def sure_tokens(logits: np.ndarray) -> np.ndarray:
    """Where exact arithmetic is sure by more than twice the tolerance: (T,) booleans."""
    top = np.sort(logits, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0] > 2 * TOLERANCE


def test_greedy_tokens_are_the_references_by_the_margin_rule(llm: LLM, reference: Any):
    sure = 0
    for prompt in PROMPTS:
        (answer,) = llm.generate(prompt, temperature=0, max_tokens=32)
        ids = [*llm.tokenizer.encode(prompt), *answer.ids]
        start = len(ids) - len(answer.ids)
        logits = reference.logits(ids)[start - 1 :]
        is_sure = sure_tokens(logits)
        assert np.array_equal(np.array(answer.ids)[is_sure], logits.argmax(axis=1)[is_sure]), prompt
        # Where it is not sure, the token is one of those that are as likely.
        chosen = logits[np.arange(len(answer.ids)), list(answer.ids)]
        assert (logits.max(axis=1) - chosen).max() <= 2 * TOLERANCE, prompt
        sure += int(is_sure.sum())
    assert sure > 30


@skipped_without("llamacpp", "llama.cpp")
def test_greedy_tokens_are_llama_cpps_by_the_margin_rule(
    llm: LLM, weights: ModuleType, gguf_file: Path, tmp_path: Path
):
    rows = []
    for prompt in PROMPTS:
        (answer,) = llm.generate(prompt, temperature=0, max_tokens=32)
        rows.append((len(answer.ids), [*llm.tokenizer.encode(prompt), *answer.ids]))
    found = weights.llamacpp_logits(gguf_file, [ids for _, ids in rows], tmp_path)
    for (count, ids), logits in zip(rows, found):
        answer, logits = np.array(ids[-count:]), logits[-count:]
        is_sure = sure_tokens(logits)
        assert np.array_equal(answer[is_sure], logits.argmax(axis=1)[is_sure])
        assert (logits.max(axis=1) - logits[np.arange(count), answer]).max() <= 2 * TOLERANCE


def test_loglikelihood_is_the_references(llm: LLM, reference: Any):
    pairs = [("The capital of France is", [" Paris", " London", " a banana"]), ("Two and two make", [" four", " nine"])]
    for (prefix, continuations), scores in zip(pairs, llm.loglikelihood(pairs)):
        for continuation, score in zip(continuations, scores):
            ids = llm.tokenizer.encode(prefix + continuation)
            count = len(ids) - len(llm.tokenizer.encode(prefix))
            logarithms = log_softmax(reference.logits(ids)[-count:])
            exact = logarithms[np.arange(count), ids[-count:]].sum()
            assert score.logprob == pytest.approx(exact, abs=0.3 * count)
        assert max(scores, key=lambda score: score.logprob) is scores[0]


def test_lookup_changes_nothing(gguf_file: Path, of_file: LLM):
    prompt = "Repeat this list: apple, banana, cherry, apple, banana, cherry, apple, banana, cherry, apple,"
    with_lookup = of_file.generate(prompt, temperature=0, max_tokens=48)[0]
    without = LLM(gguf_file, backend="native", lookup="off").generate(prompt, temperature=0, max_tokens=48)[0]
    assert with_lookup.ids == without.ids
    assert without.usage.drafted_tokens == 0


def test_a_prefix_is_computed_once(llm: LLM):
    question = "Tell me about the sea. " * 8
    first = llm.chat(question, temperature=0, max_tokens=8)
    second = llm.chat(question, temperature=0, max_tokens=8)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    assert second.ids == first.ids


def test_an_answer_keeps_its_form(llm: LLM):
    constraint = Constraint.json_schema(SCHEMA)
    for seed in range(3):
        answer = llm.chat("Name a city.", constraint=constraint, temperature=1.0, seed=seed, max_tokens=80)
        assert answer.finish_reason == "stop"
        assert json.loads(answer.text).keys() == {"city", "people"}
    dates = Constraint.regex(r"\d{4}-\d{2}-\d{2}")
    assert len(llm.chat("What day is it?", constraint=dates, temperature=0).text) == 10
    choice = Constraint.choice(["réussi", "失败", "🙂"])
    assert llm.chat("How was it?", constraint=choice, temperature=0).text in ("réussi", "失败", "🙂")


def test_a_chat_ends_by_its_own_token_and_streams_what_it_says(llm: LLM):
    reasons = []
    for question in ("Hi", "Thank you!", "Say hello.", "What is 2+2?"):
        pieces = list(llm.stream(question, temperature=0, max_tokens=60))
        completion = pieces[-1].completion
        assert completion is not None
        reasons.append(completion.finish_reason)
        assert "".join(piece.text for piece in pieces) == completion.text
        assert completion.text and "<|im_end|>" not in completion.text and "\ufffd" not in completion.text
    assert "stop" in reasons
    # Every token leads by 0.6 nats, more than int8 can change. Behind "What is the capital of France?" it is 0.003.
    assert completion.text == "The answer to this classic math problem is 4."


def test_a_llama_folder_converted_and_quantized_runs(float_folder: Path, tmp_path: Path):
    convert(float_folder, tmp_path / "hf", to="hf", dtype="bfloat16")
    quantize_folder(tmp_path / "hf", tmp_path / "int4", preset="int4")
    for name in ("hf", "int4"):
        answer = LLM(tmp_path / name, backend="native").chat("Hi!", temperature=0, max_tokens=8)
        assert answer.usage.completion_tokens
