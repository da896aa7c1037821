"""The demo over a model in this process: many sessions share one engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from minicpm import LLM
from minicpm.demo.local import LocalSource
from minicpm.demo.source import Progress, SourceError
from minicpm.engine.service import Service
from minicpm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=24, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(backend="numpy", context=256, max_batch=4)


@pytest.fixture
def source(llm: LLM) -> Iterator[LocalSource]:
    with Service(llm) as service:
        yield LocalSource(llm, service, "minicpm-nano")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def states_of(source: LocalSource, *questions: str, sampling: SamplingParams = GREEDY) -> list[Progress]:
    messages = [user(question) for question in questions]
    return [state async for state in source.answer(messages, sampling)]


def test_an_answer_grows_to_what_the_model_says(llm, source):
    states = asyncio.run(states_of(source, "What is the capital of Japan?"))
    expected = llm.chat("What is the capital of Japan?", GREEDY)
    assert states[-1].text == expected.text
    assert (states[-1].finish_reason, states[-1].tokens) == ("stop", expected.usage.completion_tokens)
    assert all(later.text.startswith(earlier.text) for earlier, later in pairwise(states))
    assert source.engine == "numpy"


def test_sessions_are_answered_together_each_with_its_own(source):
    async def all_of() -> list[list[Progress]]:
        questions = [f"What is {number} plus 5?" for number in range(6)]
        return await asyncio.gather(*(states_of(source, question) for question in questions))

    alone = [asyncio.run(states_of(source, f"What is {number} plus 5?"))[-1].text for number in range(6)]
    assert [states[-1].text for states in asyncio.run(all_of())] == alone


def test_leaving_an_answer_ends_its_work(source):
    endless = SamplingParams(temperature=0, ignore_eos=True, max_tokens=200)

    async def leave() -> None:
        states = source.answer([user("Hello!")], endless)
        await anext(states)
        await states.aclose()

    asyncio.run(leave())
    assert source._engine.statistics().outcomes["cancelled"] == 1


def test_the_oldest_rounds_make_room_and_it_is_said(llm, source):
    told = "Tell me a story about a brave rabbit. " * 5
    messages = [message for _ in range(6) for message in (user(told), {"role": "assistant", "content": "Once."})]

    async def ask() -> list[Progress]:
        everything = [{"role": "system", "content": "Be kind."}, *messages, user("Hello!")]
        return [state async for state in source.answer(everything, GREEDY)]

    last = asyncio.run(ask())[-1]
    assert 0 < last.dropped_rounds < 6
    kept = messages[2 * last.dropped_rounds :]
    assert last.text == llm.chat([{"role": "system", "content": "Be kind."}, *kept, user("Hello!")], GREEDY).text


def test_a_question_beyond_the_context_is_a_sentence(source):
    with pytest.raises(SourceError, match="context holds 256"):
        asyncio.run(states_of(source, "Hello! " * 300))


def test_a_2024_model_on_torch_answers_too(golden: Path):
    pytest.importorskip("torch")
    llm = LLM(golden / "minicpm2b_tied", backend="torch")
    with Service(llm) as service:
        source = LocalSource(llm, service, "toy")
        states = asyncio.run(states_of(source, "Hi", sampling=SamplingParams(temperature=0, max_tokens=4)))
    assert (states[-1].finish_reason, states[-1].tokens, source.engine) == ("length", 4, "torch")
