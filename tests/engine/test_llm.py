"""The public LLM on the golden toy model: greedy ids, batches, streaming, reuse, scores, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minicpm import LLM, SamplingParams
from minicpm.errors import GenerationError, MiniCPMError, ModelError

GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "minicpm2b_tied"


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder, threads=1)


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "golden.safetensors")


def test_greedy_ids_equal_the_original_code(llm: LLM, reference):
    prompt = reference["gen.prompt_ids"][0].tolist()
    completion = llm.generate([prompt], GREEDY, max_tokens=32)[0]
    assert prompt + list(completion.token_ids) == reference["gen.sequences"][0].tolist()
    assert completion.finish_reason == "length"


def test_greedy_with_repetition_penalty_equals_the_original_code(llm: LLM, reference):
    prompt = reference["gen.prompt_ids"][0].tolist()
    expected = reference["greedy_rep1.05.sequences"][0].tolist()
    completion = llm.generate([prompt], GREEDY, max_tokens=len(expected) - len(prompt), repetition_penalty=1.05)[0]
    assert prompt + list(completion.token_ids) == expected


def test_left_padded_batch_of_the_original_equals_our_ragged_batch(llm: LLM, folder: Path):
    padded = load_file(folder / "padded_left.safetensors")
    ids, mask = padded["left.input_ids"], padded["left.attention_mask"]
    prompts = [row[keep == 1].tolist() for row, keep in zip(ids, mask)]
    new = padded["left.gen.sequences"][:, ids.shape[1] :].tolist()
    completions = llm.generate(prompts, GREEDY, max_tokens=len(new[0]))
    assert [list(completion.token_ids) for completion in completions] == new


def test_chat_reproduces_the_original_conversation(llm: LLM, golden: Path):
    for case in json.loads((golden / "chat" / "minicpm2b_chat_end_to_end.json").read_text(encoding="utf-8")):
        messages = [*(case["history"] or []), {"role": "user", "content": case["query"]}]
        expected = case["greedy_ids_no_eos_stop"]
        completion = llm.chat(messages, GREEDY, max_tokens=case["max_length"] - len(expected) + 1000)
        answer = list(completion.token_ids)
        prompt_tokens = completion.usage.prompt_tokens
        assert expected[prompt_tokens : prompt_tokens + len(answer)] == answer[: len(expected) - prompt_tokens]


def test_logits_equal_the_original_code(llm: LLM, reference):
    for ids, expected in zip(reference["input_ids"], reference["logits"]):
        assert np.abs(llm.logits(ids.tolist()) - expected).max() < 1e-4


def test_a_prompt_in_chunks_gives_the_logits_of_its_parts(llm: LLM):
    ids = np.random.default_rng(0).integers(3, 1000, 1100).tolist()
    whole = llm.logits(ids)
    assert whole.shape == (1100, 1000)
    assert np.abs(llm.logits(ids[:700])[-1] - whole[699]).max() < 1e-4


def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch(llm: LLM):
    params = SamplingParams(seed=11, max_tokens=24, ignore_eos=True)
    prompts = ["Which city", "山东省最高的山", "a", "def f(x):"]
    alone = [llm.generate(prompt, params)[0].text for prompt in prompts]
    assert [completion.text for completion in llm.generate(prompts, params)] == alone
    assert [c.text for c in LLM(llm.folder, max_batch=2).generate(prompts, params)] == alone


def test_the_reported_seed_reproduces_an_answer(llm: LLM):
    first = llm.chat("hello", max_tokens=16)
    assert llm.chat("hello", max_tokens=16, seed=first.seed).token_ids == first.token_ids
    others = {llm.chat("hello", max_tokens=16).token_ids for _ in range(4)}
    assert len(others) > 1


def test_streamed_pieces_join_to_the_completion(llm: LLM):
    pieces = list(llm.stream("hello world", seed=3, max_tokens=40))
    assert "".join(piece.text for piece in pieces) == pieces[-1].completion.text
    assert all(piece.completion is None for piece in pieces[:-1])


def test_a_second_turn_computes_only_what_is_new(folder: Path):
    llm = LLM(folder, threads=1)
    first = llm.chat("Which city is the capital?", GREEDY, max_tokens=8)
    turns = [
        {"role": "user", "content": "Which city is the capital?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And why?"},
    ]
    second = llm.chat(turns, GREEDY, max_tokens=8)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert LLM(folder, threads=1).chat(turns, GREEDY, max_tokens=8).token_ids == second.token_ids


def test_an_abandoned_stream_leaves_the_model_usable(folder: Path):
    llm = LLM(folder, threads=1)
    expected = llm.chat("hello", GREEDY, max_tokens=12).token_ids
    pieces = llm.stream("hello", GREEDY, max_tokens=12)
    next(pieces)
    pieces.close()
    assert llm.chat("hello", GREEDY, max_tokens=12).token_ids == expected


def test_a_stop_string_ends_the_answer_before_itself(llm: LLM):
    whole = llm.generate("hello", GREEDY, max_tokens=30)[0].text
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = llm.generate("hello", GREEDY, max_tokens=30, stop=[middle])[0]
    assert cut.text == whole[: whole.index(middle)]
    assert cut.finish_reason == "stop"


def test_logprobs_are_those_of_the_logits(llm: LLM):
    completion = llm.generate("hello", GREEDY, max_tokens=5, logprobs=2)[0]
    ids = llm.tokenizer.encode("hello")
    for i, sampled in enumerate(completion.logprobs):
        row = llm.logits(ids + list(completion.token_ids[:i]))[-1].astype(np.float64)
        expected = row[sampled.token_id] - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert abs(sampled.logprob - expected) < 1e-4
        assert len(sampled.top_logprobs) == 2


def test_loglikelihood_equals_the_sum_over_logits(llm: LLM):
    prefix, tails = [1, 328, 319, 796], [[52, 7, 301], [9], [52, 7, 300]]
    scores = llm.loglikelihood([(prefix, tails)])[0]
    for tail, score in zip(tails, scores):
        rows = llm.logits(prefix + tail).astype(np.float64)[len(prefix) - 1 : -1]
        logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        assert abs(score.logprob - logprobs[np.arange(len(tail)), tail].sum()) < 1e-4
        assert score.token_count == len(tail)
        assert score.is_greedy == bool((rows.argmax(axis=1) == tail).all())


def test_an_answer_ends_where_the_context_does(folder: Path):
    llm = LLM(folder, context=20, threads=1)
    completion = llm.generate([[1] * 15], GREEDY)[0]
    assert (len(completion.token_ids), completion.finish_reason) == (5, "length")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", "the prompt is empty"),
        ([], "no token ids"),
        ([1, 1000], "token id 1000 is outside the vocabulary of 1000"),
        ([1] * 2048, "the prompt has 2048 tokens, but the context holds 2048"),
    ],
)
def test_impossible_prompts_are_refused(llm: LLM, prompt, expected: str):
    with pytest.raises(GenerationError, match=expected):
        llm.generate([prompt])


def test_the_wrong_prompt_of_a_batch_is_named_before_anything_runs(llm: LLM):
    with pytest.raises(GenerationError, match="prompt 2 has 3000 tokens"):
        llm.generate([[1, 5], [1] * 3000])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backend": "tpu"}, "backend must be one of auto, torch"),
        ({"dtype": "int3"}, "dtype must be one of"),
        ({"context": 0}, "context must be 1 or more"),
        ({"threads": -1}, "threads must be 1 or more"),
        ({"max_batch": 0}, "max_batch must be 1 or more"),
        ({"device": "abacus"}, "device must be"),
    ],
)
def test_wrong_options_are_named(folder: Path, options: dict, expected: str):
    with pytest.raises(ValueError, match=expected):
        LLM(folder, **options)


def test_an_unknown_sampling_option_is_no_silence(llm: LLM):
    with pytest.raises(ValueError, match="unknown sampling option temprature"):
        llm.chat("hello", temprature=0.3)


def test_no_embedded_model_is_said_clearly():
    with pytest.raises(ModelError, match="folder"):
        LLM()


def test_a_folder_without_tokenizer_is_refused_by_name(folder: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(MiniCPMError, match=r"tokenizer\.json"):
        LLM(tmp_path)
