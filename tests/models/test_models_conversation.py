"""model.chat: the 2024 signature, its behaviour where that was right, and its faults mended."""

from __future__ import annotations

import copy
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minicpm.errors import GenerationError
from minicpm.models import MiniCPMForCausalLM


@pytest.fixture(scope="module")
def tokenizer(golden: Path) -> Any:
    return AutoTokenizer.from_pretrained(golden / "minicpm2b_tied")


@pytest.fixture(scope="module")
def model(golden: Path) -> MiniCPMForCausalLM:
    return AutoModelForCausalLM.from_pretrained(golden / "minicpm2b_tied")


def chat_golden(golden: Path, name: str) -> Any:
    return json.loads((golden / "chat" / f"{name}.json").read_text(encoding="utf-8"))


class Scripted(MiniCPMForCausalLM):
    """Answers with given ids and remembers how it was asked."""

    def __init__(self, model: MiniCPMForCausalLM, answer: list[int]):
        self.__dict__ = dict(model.__dict__)
        self.answer, self.calls = answer, []

    def generate(self, input_ids, **kwargs):
        self.calls.append(SimpleNamespace(ids=input_ids[0].tolist(), **kwargs))
        return torch.cat([input_ids, torch.tensor([self.answer])], dim=1)


def test_the_signature_is_that_of_2024():
    parameters = list(inspect.signature(MiniCPMForCausalLM.chat).parameters.values())[1:]
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert positional == {
        "tokenizer": inspect.Parameter.empty, "query": inspect.Parameter.empty, "history": None, "role": "user",
        "max_length": 4096, "num_beams": 1, "do_sample": True, "top_p": 0.8, "temperature": 0.3,
        "logits_processor": None,
    }  # fmt: skip


def test_prompts_and_defaults_equal_the_reference(golden: Path, model: MiniCPMForCausalLM, tokenizer: Any):
    for case in chat_golden(golden, "minicpm2b_chat")["cases"]:
        scripted = Scripted(model, [2])
        scripted.chat(tokenizer, case["query"], case["history"], role=case["role"])
        (call,) = scripted.calls
        assert call.ids == case["input_ids"], case["query"]
        for name, value in case["default_generation_kwargs"].items():
            found = call.logits_processor if name == "logits_processor" else getattr(call.generation_config, name)
            assert found == value, name


def test_responses_equal_the_reference_save_for_its_lost_token(golden: Path, model: MiniCPMForCausalLM, tokenizer: Any):
    for case in chat_golden(golden, "minicpm2b_chat")["response_extraction"]:
        response, history = Scripted(model, case["generated_ids"]).chat(tokenizer, "hi")
        is_cut_short = case["generated_ids"][-1] != 2
        assert response == (case["source_text"] if is_cut_short else case["response"])
        assert history == [*case["history_after"][:-1], {"role": "assistant", "content": response}]


def test_greedy_conversations_equal_the_reference(golden: Path, model: MiniCPMForCausalLM, tokenizer: Any):
    for case in chat_golden(golden, "minicpm2b_chat_end_to_end"):
        response, _ = model.chat(
            tokenizer, case["query"], case["history"], max_length=case["max_length"], do_sample=False
        )
        # The reference read text with the slow tokenizer, which drops the blank behind a special token inside a text,
        # and always dropped the last token.
        assert re.sub("(<s>|</s>) ", r"\1", response).startswith(case["response"])


def test_the_callers_history_is_left_alone_unless_asked(model: MiniCPMForCausalLM, tokenizer: Any):
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    before = copy.deepcopy(history)
    _, longer = Scripted(model, [385, 2]).chat(tokenizer, "c", history)
    assert history == before
    assert len(longer) == 4
    _, same = Scripted(model, [385, 2]).chat(tokenizer, "c", history, update_history=True)
    assert same is history
    assert history == longer


def test_a_failed_answer_leaves_even_a_shared_history_unchanged(model: MiniCPMForCausalLM, tokenizer: Any):
    history: list[Any] = []
    with pytest.raises(GenerationError, match="max_length is 3"):
        model.chat(tokenizer, "hello", history, max_length=3, update_history=True)
    assert history == []


def test_the_same_seed_gives_the_same_answer(model: MiniCPMForCausalLM, tokenizer: Any):
    answers = []
    for _ in range(2):
        torch.manual_seed(0)
        answers.append(model.chat(tokenizer, "hello", temperature=0.8, top_p=0.8, max_length=24)[0])
    assert answers[0] == answers[1]


def test_a_streamer_hears_every_token(model: MiniCPMForCausalLM, tokenizer: Any):
    heard: list[int] = []
    streamer = SimpleNamespace(put=lambda ids: heard.extend(ids.flatten().tolist()), end=lambda: heard.append(-1))
    response, _ = model.chat(tokenizer, "hello", do_sample=False, max_new_tokens=5, streamer=streamer)
    prompt = tokenizer("<用户>hello<AI>").input_ids
    assert heard[: len(prompt)] == prompt
    assert heard[-1] == -1
    assert tokenizer.decode(heard[len(prompt) : -1]).startswith(response)


def test_beams_work(model: MiniCPMForCausalLM, tokenizer: Any):
    response, _ = model.chat(tokenizer, "hello", num_beams=3, do_sample=False, max_new_tokens=4)
    assert isinstance(response, str)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "temperature": 0.8},
        {"do_sample": False, "top_p": 0.9},
        {"do_sample": False, "top_k": 5},
        {"num_beams": 1, "length_penalty": 2.0},
        {"temprature": 0.8},
        {"max_new_tokens": 5, "max_length": 50},
        {"temperature": -1.0},
    ],
    ids=str,
)
def test_a_setting_that_cannot_act_is_an_error(model: MiniCPMForCausalLM, tokenizer: Any, settings: dict[str, Any]):
    with pytest.raises(ValueError, match="|".join(settings)):
        model.chat(tokenizer, "hello", **settings)


def test_a_tokenizer_without_a_template_gets_minicpms_own(model: MiniCPMForCausalLM, tokenizer: Any):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    scripted = Scripted(model, [2])
    scripted.chat(bare, "你好")
    assert scripted.calls[0].ids == tokenizer("<用户>你好<AI>").input_ids


def test_the_models_own_generation_settings_are_not_changed(model: MiniCPMForCausalLM, tokenizer: Any):
    before = model.generation_config.to_dict()
    model.chat(tokenizer, "hello", do_sample=False, max_new_tokens=2)
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize(("limit", "tokens"), [({"max_new_tokens": 7}, 7), ({"max_length": 20}, 12)], ids=str)
def test_the_callers_limit_holds_against_the_folders(golden: Path, tokenizer: Any, limit: dict[str, int], tokens: int):
    model = AutoModelForCausalLM.from_pretrained(golden / "minicpm2b_tied")
    model.generation_config.max_new_tokens = 3
    model.generation_config.eos_token_id = None
    heard: list[torch.Tensor] = []
    streamer = SimpleNamespace(put=heard.append, end=lambda: None)
    model.chat(tokenizer, "hi", do_sample=False, streamer=streamer, eos_token_id=[999999], **limit)
    assert heard[0].shape[-1] + tokens == sum(ids.numel() for ids in heard)
