"""The public LLM on the golden toy model: greedy ids, batches, streaming, reuse, scores, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from minicpm import LLM, SamplingParams, native
from minicpm.engine.cache.blocks import budget_tokens
from minicpm.errors import FormatError, GenerationError, MiniCPMError, ModelError
from minicpm.formats.checkpoint import open_checkpoint

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
    assert prompt + list(completion.ids) == reference["gen.sequences"][0].tolist()
    assert completion.finish_reason == "length"


def test_greedy_with_repetition_penalty_equals_the_original_code(llm: LLM, reference):
    prompt = reference["gen.prompt_ids"][0].tolist()
    expected = reference["greedy_rep1.05.sequences"][0].tolist()
    completion = llm.generate([prompt], GREEDY, max_tokens=len(expected) - len(prompt), repetition_penalty=1.05)[0]
    assert prompt + list(completion.ids) == expected


def test_left_padded_batch_of_the_original_equals_our_ragged_batch(llm: LLM, folder: Path):
    padded = load_file(folder / "padded_left.safetensors")
    ids, mask = padded["left.input_ids"], padded["left.attention_mask"]
    prompts = [row[keep == 1].tolist() for row, keep in zip(ids, mask)]
    new = padded["left.gen.sequences"][:, ids.shape[1] :].tolist()
    completions = llm.generate(prompts, GREEDY, max_tokens=len(new[0]))
    assert [list(completion.ids) for completion in completions] == new


def test_chat_reproduces_the_original_conversation(llm: LLM, golden: Path):
    cases = json.loads((golden / "chat" / "minicpm2b_chat_end_to_end.json").read_text(encoding="utf-8"))
    assert len(cases) == 2
    for case in cases:
        messages = [*(case["history"] or []), {"role": "user", "content": case["query"]}]
        expected = case["greedy_ids_no_eos_stop"]
        prompt_tokens = llm.chat(messages, GREEDY, max_tokens=1).usage.prompt_tokens
        answer = llm.chat(messages, GREEDY, max_tokens=len(expected) - prompt_tokens).ids
        assert list(answer) == expected[prompt_tokens:]


def test_logits_equal_the_original_code(llm: LLM, reference):
    for ids, expected in zip(reference["input_ids"], reference["logits"]):
        assert np.abs(llm.logits(ids.tolist()) - expected).max() < 1e-4


def test_a_prompt_in_chunks_gives_the_logits_of_its_parts(llm: LLM):
    ids = np.random.default_rng(0).integers(3, 1000, 1100).tolist()
    whole = llm.logits(ids)
    assert whole.shape == (1100, 1000)
    assert np.abs(llm.logits(ids[:700])[-1] - whole[699]).max() < 1e-4


@pytest.mark.parametrize("chunk_tokens", [7, 64, 512])
def test_a_long_prompt_in_chunks_beside_running_answers_says_the_same(llm: LLM, monkeypatch, chunk_tokens: int):
    monkeypatch.setattr("minicpm.engine.scheduler.PREFILL_CHUNK_TOKENS", chunk_tokens)
    rng = np.random.default_rng(chunk_tokens)
    prompts = [rng.integers(3, 1000, size).tolist() for size in (3, 1100, 40, 600)]
    completions = llm.generate(prompts, GREEDY, max_tokens=6)
    for prompt, completion in zip(prompts, completions):
        expected = llm.logits(prompt + list(completion.ids[:-1]))[len(prompt) - 1 :].argmax(axis=1)
        assert list(completion.ids) == expected.tolist()


def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch(llm: LLM):
    params = SamplingParams(seed=11, max_tokens=24, ignore_eos=True)
    prompts = ["Which city", "山东省最高的山", "a", "def f(x):"]
    alone = [llm.generate(prompt, params)[0].text for prompt in prompts]
    assert [completion.text for completion in llm.generate(prompts, params)] == alone
    assert [c.text for c in LLM(llm.folder, max_batch=2).generate(prompts, params)] == alone


def test_the_reported_seed_reproduces_an_answer(llm: LLM):
    first = llm.chat("hello", max_tokens=16)
    assert llm.chat("hello", max_tokens=16, seed=first.seed).ids == first.ids
    others = {llm.chat("hello", max_tokens=16).ids for _ in range(4)}
    assert len(others) > 1


def test_streamed_pieces_join_to_the_completion(llm: LLM):
    pieces = list(llm.stream("hello world", seed=3, max_tokens=40))
    assert "".join(piece.text for piece in pieces) == pieces[-1].completion.text
    assert all(piece.completion is None for piece in pieces[:-1])


def test_a_second_turn_reuses_the_first_turns_prompt(folder: Path):
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
    assert LLM(folder, threads=1).chat(turns, GREEDY, max_tokens=8).ids == second.ids


def test_an_abandoned_stream_leaves_the_model_usable(folder: Path):
    llm = LLM(folder, threads=1)
    expected = llm.chat("hello", GREEDY, max_tokens=12).ids
    pieces = llm.stream("hello", GREEDY, max_tokens=12)
    next(pieces)
    pieces.close()
    assert llm.chat("hello", GREEDY, max_tokens=12).ids == expected


def test_a_stop_string_ends_the_answer_before_itself(llm: LLM):
    whole = llm.generate("hello", GREEDY, max_tokens=30)[0].text
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = llm.generate("hello", GREEDY, max_tokens=30, stop=[middle])[0]
    assert cut.text == whole[: whole.index(middle)]
    assert cut.finish_reason == "stop"


def test_a_raw_completion_keeps_the_blank_that_parts_it_from_its_prompt(llm: LLM):
    word = llm.tokenizer.encode("hello a")[-1]
    completion = llm.generate("hello", GREEDY, max_tokens=2, logit_bias={word: 100.0})[0]
    assert completion.ids == (word, word)
    assert completion.text == " a a"


def test_a_stop_string_that_is_a_special_token_ends_the_answer(llm: LLM):
    unknown = min(llm.tokenizer.special_token_ids)
    marker = llm.tokenizer.id_to_token(unknown)
    completion = llm.generate("hello", GREEDY, max_tokens=5, logit_bias={unknown: 100.0}, stop=marker)[0]
    assert (completion.ids, completion.finish_reason) == ((), "stop")


def test_an_end_token_of_generation_config_ends_the_answer(folder: Path, tmp_path: Path):
    for path in folder.iterdir():
        if path.name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(path, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 52]}', encoding="utf-8")
    completion = LLM(tmp_path, threads=1).generate("hello", temperature=0, max_tokens=5, logit_bias={52: 100.0})[0]
    assert (completion.ids, completion.finish_reason) == ((), "stop")


def test_logprobs_are_those_of_the_logits(llm: LLM):
    completion = llm.generate("hello", GREEDY, max_tokens=5, logprobs=2)[0]
    ids = llm.tokenizer.encode("hello")
    for i, sampled in enumerate(completion.logprobs):
        row = llm.logits(ids + list(completion.ids[:i]))[-1].astype(np.float64)
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


def test_only_a_continuation_whose_every_token_is_the_likeliest_is_greedy(llm: LLM):
    prefix = [1, 328, 319, 796]
    greedy = [*llm.generate([prefix], GREEDY, max_tokens=5, ignore_eos=True)[0].ids]
    others = [[*greedy[:i], (token_id + 1) % 1000, *greedy[i + 1 :]] for i, token_id in enumerate(greedy)]
    first, *scores = llm.loglikelihood([(prefix, [greedy, *others])])[0]
    assert first.is_greedy and not any(score.is_greedy for score in scores)


def test_text_is_scored_as_the_model_would_read_it(llm: LLM):
    prefix, continuation = "hello", " a"
    whole = llm.tokenizer.encode(prefix + continuation)
    border = len(llm.tokenizer.encode(prefix))
    score = llm.loglikelihood([(prefix, [continuation, " world"])])[0][0]
    assert score == llm.loglikelihood([(whole[:border], [whole[border:]])])[0][0]


def test_a_long_prefix_is_scored_in_chunks(llm: LLM):
    ids = np.random.default_rng(1).integers(3, 1000, 1300).tolist()
    rows = llm.logits(ids).astype(np.float64)[1199:-1]
    logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    score = llm.loglikelihood([(ids[:1200], [ids[1200:]])])[0][0]
    assert abs(score.logprob - logprobs[np.arange(100), ids[1200:]].sum()) < 1e-2


def test_a_continuation_without_tokens_is_refused(llm: LLM):
    with pytest.raises(ValueError, match="adds no token"):
        llm.loglikelihood([("hello", [""])])


def test_an_answer_ends_where_the_context_does(folder: Path):
    llm = LLM(folder, context=20, threads=1)
    completion = llm.generate([[1] * 15], GREEDY)[0]
    assert (len(completion.ids), completion.finish_reason) == (5, "length")


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
        ({"backend": "tpu"}, "backend must be one of auto, native, torch"),
        ({"dtype": "int3"}, "dtype must be one of"),
        ({"context": 0}, "context must be 1 or more"),
        ({"threads": -1}, "threads must be 1 or more"),
        ({"max_batch": 0}, "max_batch must be 1 or more"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes must be 1 or more"),
        ({"kv_cache_bytes": 1000}, "kv_cache_bytes is 1000, but 16 tokens of this model take"),
        ({"device": "abacus"}, "device must be"),
        ({"device": "meta"}, "device must be"),
        ({"context": 100_000}, "context 100000 is more than the 2048 tokens"),
    ],
)
def test_wrong_options_are_named(folder: Path, options: dict, expected: str):
    with pytest.raises(ValueError, match=expected):
        LLM(folder, **options)


def test_an_unknown_sampling_option_is_no_silence(llm: LLM):
    with pytest.raises(ValueError, match="unknown sampling option temprature"):
        llm.chat("hello", temprature=0.3)


def test_without_a_name_the_built_in_model_answers():
    llm = LLM()
    assert llm.folder.name == "MiniCPM-nano"
    assert llm.backend.name == ("numpy" if native.why_missing() else "native")
    assert llm.chat("Hello", max_tokens=2).usage.completion_tokens <= 2


def test_a_missing_built_in_model_is_said_with_what_to_do(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("minicpm.hub.embedded.FOLDER", tmp_path)
    with pytest.raises(
        ModelError, match=r"no built-in model .*config\.json is missing.*install minicpm again.*pass -m"
    ):
        LLM()


@pytest.fixture
def advised(folder: Path, tmp_path: Path) -> Path:
    """The toy model, whose generation_config.json the test writes."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    return tmp_path


def test_advice_of_generation_config_is_the_default_of_sampling(advised: Path):
    advice = {"do_sample": True, "temperature": 0.3, "top_k": 7, "min_p": None, "max_new_tokens": 3, "eos_token_id": 2}
    (advised / "generation_config.json").write_text(json.dumps(advice), encoding="utf-8")
    llm = LLM(advised, backend="numpy")
    assert llm.sampling == SamplingParams(temperature=0.3, top_k=7, max_tokens=3)
    assert len(llm.chat("hello", ignore_eos=True).ids) == 3
    assert len(llm.generate("hello", ignore_eos=True, max_tokens=5)[0].ids) == 5
    assert len(llm.generate("hello", GREEDY, max_tokens=4)[0].ids) == 4


def test_advice_against_sampling_is_greedy(advised: Path):
    (advised / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}', encoding="utf-8")
    assert LLM(advised, backend="numpy").sampling.temperature == 0


def test_without_advice_the_defaults_are_ours(advised: Path):
    assert LLM(advised, backend="numpy").sampling == SamplingParams()


@pytest.mark.parametrize("advice", [{"temperature": -1}, {"top_p": "much"}, {"max_new_tokens": 0}, {"top_k": True}])
def test_advice_that_cannot_be_followed_names_the_file(advised: Path, advice: dict):
    (advised / "generation_config.json").write_text(json.dumps(advice), encoding="utf-8")
    with pytest.raises(FormatError, match=r"generation_config\.json: its advice about sampling"):
        LLM(advised, backend="numpy")


def test_room_counts_the_prompt_and_a_worthwhile_answer(folder: Path):
    llm = LLM(folder, backend="numpy", context=100)
    length = llm.prompt_length("hello")
    assert llm.chat("hello", GREEDY, max_tokens=1).usage.prompt_tokens == length
    question = "hello " * 70
    while llm.prompt_length(question) > 80:
        question = question[:-6]
    assert not llm.has_room(question)
    assert not llm.has_room(question, SamplingParams(max_tokens=25))
    assert llm.has_room(question, SamplingParams(max_tokens=100 - llm.prompt_length(question)))


def test_a_folder_without_tokenizer_is_refused_by_name(folder: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(MiniCPMError, match=r"tokenizer\.json"):
        LLM(tmp_path)


def test_a_cuda_device_that_is_not_there_is_refused(folder: Path):
    with pytest.raises(ModelError, match="device cuda:77 is not available: torch sees"):
        LLM(folder, device="cuda:77")


def test_another_family_is_named_before_its_tokenizer_is_missed(real_configs: Path, tmp_path: Path):
    shutil.copy(real_configs / "MiniCPM-V-2" / "config.json", tmp_path)
    with pytest.raises(MiniCPMError, match="MiniCPM-V"):
        LLM(tmp_path)


def with_cache(folder: Path, tokens: int, **options: int) -> LLM:
    """The toy model with room for the float32 keys and values of so many tokens."""
    config = open_checkpoint(folder).config
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    return LLM(folder, kv_cache_bytes=tokens * token_bytes, threads=1, **options)


def test_a_request_that_memory_cannot_hold_is_refused_with_the_numbers(folder: Path):
    llm = with_cache(folder, 112)
    with pytest.raises(GenerationError, match=r"may take 200 tokens, which need .* MB .* holds 112 tokens in .* MB"):
        llm.generate([[5] * 100], GREEDY, max_tokens=100)
    with pytest.raises(GenerationError, match="prompt 2 and its answer may take 130 tokens"):
        llm.generate([[5] * 10, [5] * 30], GREEDY, max_tokens=100)
    with pytest.raises(GenerationError, match="the text may take 113 tokens"):
        llm.logits([5] * 113)
    assert len(llm.generate([[5] * 100], GREEDY, max_tokens=12)[0].ids) == 12


def test_an_answer_without_a_limit_gets_the_limit_of_the_memory(folder: Path):
    llm = with_cache(folder, 176)
    completion = llm.generate([[5] * 100], GREEDY)[0]
    assert (len(completion.ids), completion.finish_reason) == (76, "length")
    with pytest.raises(GenerationError, match="for keys and values"):
        llm.generate([[5] * 120], GREEDY)


def test_requests_wait_for_memory_rather_than_share_too_little(folder: Path, llm: LLM):
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    expected = [completion.ids for completion in llm.generate(prompts, GREEDY, max_tokens=10)]
    small = with_cache(folder, 16)
    assert [completion.ids for completion in small.generate(prompts, GREEDY, max_tokens=10)] == expected


def test_a_stream_that_is_not_finished_keeps_its_memory(folder: Path):
    llm = with_cache(folder, 32)
    stream = llm.stream_batch([[5, 6, 7]], GREEDY, max_tokens=20)
    next(stream)
    with pytest.raises(GenerationError, match="other unfinished streams"):
        llm.generate([[8, 9]], GREEDY, max_tokens=20)
    with pytest.raises(GenerationError, match="finish or close those"):
        llm.logits([5] * 20)
    stream.close()
    assert len(llm.generate([[8, 9]], GREEDY, max_tokens=20)[0].ids) == 20


def test_scores_are_the_same_from_a_cache_and_leave_it_usable(folder: Path):
    llm, prefix = LLM(folder, threads=1), [1, 328, 319, 796]
    pairs = [(prefix, [[52, 7, 301], [9]]), (prefix, [[9]])]
    first, second = llm.loglikelihood(pairs)
    assert second[0].logprob == pytest.approx(first[1].logprob, abs=1e-4)
    assert llm.generate([prefix], GREEDY, max_tokens=2)[0].usage.cached_tokens == 3
    llm.drop_cache()
    assert llm.generate([prefix], GREEDY, max_tokens=2)[0].usage.cached_tokens == 0


@pytest.mark.parametrize(
    ("free", "expected"),
    [(None, 3 * 2048), (1 << 40, 3 * 2048), (1000 * 512 * 10 // 8, 992)],
    ids=["unknown", "plenty", "little"],
)
def test_the_budget_is_contexts_as_far_as_memory_is_free(free: int | None, expected: int):
    backend = SimpleNamespace(free_cache_bytes=lambda: free, cache_bytes_per_token=512)
    assert budget_tokens(backend, 2048, 2, None) == expected


def test_without_free_memory_no_model_is_loaded():
    backend = SimpleNamespace(free_cache_bytes=lambda: 30_000, cache_bytes_per_token=512)
    with pytest.raises(ModelError, match=r"0\.0 MB of memory are free .* of 32 tokens; at least 64"):
        budget_tokens(backend, 2048, 2, None)


@pytest.fixture(scope="module")
def stretched(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with 64 trained positions, stretched to 256 by dynamic NTK."""
    copy = tmp_path_factory.mktemp("dynamic")
    for path in folder.iterdir():
        if path.suffix == ".json" or path.name in ("model.safetensors", "tokenizer.model"):
            shutil.copy(path, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config |= {"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


class TestDynamicScaling:
    @pytest.mark.parametrize("max_tokens", [10, 60, 150])
    def test_greedy_ids_equal_transformers_generate(self, stretched: Path, max_tokens: int):
        import torch

        llm = LLM(stretched, threads=1)
        prompt = np.random.default_rng(2).integers(3, 1000, 30).tolist()
        ours = llm.generate([prompt], GREEDY, max_tokens=max_tokens)[0].ids
        model = llm.backend._model
        implementation = model.config._attn_implementation
        model.set_attn_implementation("sdpa")
        try:
            length = 64 if max_tokens == 10 else 128 if max_tokens == 60 else 256
            ids = torch.tensor([prompt])
            settings = {"max_new_tokens": max_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            theirs = model.generate(ids, attention_mask=torch.ones_like(ids), rope_length=length, **settings)
        finally:
            model.set_attn_implementation(implementation)
        assert list(ours) == theirs[0, 30:].tolist()

    def test_an_answer_without_a_limit_never_shrinks_to_nothing(self, stretched: Path):
        llm = LLM(stretched, threads=1)
        lengths = [len(llm.generate([[5] * n], GREEDY)[0].ids) for n in (40, 60, 63, 64, 100)]
        assert lengths == [24, 68, 65, 64, 28]

    def test_turns_share_a_base_and_so_their_prefix(self, stretched: Path):
        llm = LLM(stretched, threads=1)
        prompt = np.random.default_rng(3).integers(3, 1000, 70).tolist()
        first = llm.generate([prompt], GREEDY, max_tokens=8)[0]
        second = llm.generate([[*prompt, *first.ids, 9, 9]], GREEDY, max_tokens=8)[0]
        assert second.usage.cached_tokens >= 70
        assert (
            LLM(stretched, threads=1).generate([[*prompt, *first.ids, 9, 9]], GREEDY, max_tokens=8)[0].ids == second.ids
        )


def test_every_prompt_may_have_sampling_of_its_own(llm):
    params = [SamplingParams(temperature=0, max_tokens=2), SamplingParams(temperature=0, max_tokens=5)]
    first, second = llm.generate(["one", "two"], params)
    assert [first.usage.completion_tokens, second.usage.completion_tokens] == [2, 5]
    with pytest.raises(ValueError, match="1 SamplingParams for 2 prompts"):
        llm.generate(["one", "two"], params[:1])
