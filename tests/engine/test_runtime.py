"""The Runtime interface below LLM: an engine with its own scheduler and scorer, of which LLM knows nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from minicpm import LLM
from minicpm.engine.constraint import Constraint
from minicpm.engine.request import Request
from minicpm.engine.scheduler import Outcome
from minicpm.engine.scoring import Continuation, Loglikelihood
from minicpm.engine.service import Service
from minicpm.errors import GenerationError
from minicpm.sampling import SampledToken

NO_STEPS = "a script has neither logits nor hidden states"


class ScriptedBackend:
    name = "scripted"
    trained_length = context_length = 64
    embedding_size = None
    cache_bytes_per_token = 1000

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def held_tokens(self, planned_tokens: int) -> int:
        return planned_tokens


class ScriptedScheduler:
    """Gives every request the ids of its script, one per step."""

    def __init__(self, script: list[int]):
        self._script = script
        self.requests: list[Request] = []
        self.is_closed = False

    @property
    def is_busy(self) -> bool:
        return any(request.finish_reason is None for request in self.requests)

    def add(self, request: Request) -> None:
        if request.is_constrained:
            raise GenerationError("a script has its own form")
        request.begin()
        self.requests.append(request)

    def step(self) -> list[Outcome]:
        running = [request for request in self.requests if request.finish_reason is None]
        return [(r, r.accept(SampledToken(self._script[len(r.new_ids)]))) for r in running]

    def close(self) -> None:
        self.is_closed = True


class ScriptedScorer:
    def __init__(self) -> None:
        self.texts: list[Continuation] = []

    def loglikelihood(self, texts: Sequence[Continuation]) -> list[Loglikelihood]:
        self.texts += texts
        return [Loglikelihood(-1.0, len(text.ids) - text.border, True) for text in texts]


class ScriptedRuntime:
    steps = None
    why_no_steps = NO_STEPS
    context_length = 64
    cache_tokens = 32

    def __init__(self, vocab_size: int, script: list[int]):
        self.backend = ScriptedBackend(vocab_size)
        self.scorer = ScriptedScorer()
        self.schedulers: list[ScriptedScheduler] = []
        self.drops = 0
        self._script = script

    def new_scheduler(self) -> ScriptedScheduler:
        self.schedulers.append(ScriptedScheduler(self._script))
        return self.schedulers[-1]

    def drop_cache(self) -> None:
        self.drops += 1


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> tuple[LLM, ScriptedRuntime]:
    """The built-in model's tokenizer and template over an engine that answers " Beijing" and an end token."""
    made: list[ScriptedRuntime] = []

    def load(checkpoint, options) -> ScriptedRuntime:
        tokenizer = checkpoint.tokenizer()
        script = [*tokenizer.encode("Beijing", add_bos=False), *checkpoint.eos_token_ids]
        made.append(ScriptedRuntime(checkpoint.config.vocab_size, script))
        return made[0]

    monkeypatch.setattr("minicpm.engine.llm.load", load)
    return LLM(), made[0]


def test_an_engine_of_its_own_answers_by_its_scheduler(scripted: tuple[LLM, ScriptedRuntime]):
    llm, runtime = scripted
    first, second = llm.generate([[5, 6, 7], [8]], max_tokens=20)
    assert (first.text, second.finish_reason) == ("Beijing", "stop")
    assert [piece.text for piece in llm.stream("The capital of China?", max_tokens=9)][-1] == ""
    assert llm.chat("?", max_tokens=1).finish_reason == "length"
    assert [len(scheduler.requests) for scheduler in runtime.schedulers] == [2, 1, 1]
    assert all(scheduler.is_closed for scheduler in runtime.schedulers)


def test_its_limits_are_those_of_requests(scripted: tuple[LLM, ScriptedRuntime]):
    llm, _ = scripted
    with pytest.raises(GenerationError, match="the prompt has 64 tokens, but the context holds 64"):
        llm.generate([[5] * 64])
    with pytest.raises(GenerationError, match=r"may take 40 tokens, which need 0\.0 MB .* holds 32 tokens"):
        llm.generate([[5] * 10], max_tokens=30)


def test_its_scheduler_refuses_what_it_cannot_run(scripted: tuple[LLM, ScriptedRuntime]):
    llm, _ = scripted
    with pytest.raises(GenerationError, match="a script has its own form"):
        llm.chat("?", constraint=Constraint.regex("a"), max_tokens=5)


def test_its_scorer_gets_ids_and_the_border_of_what_is_scored(scripted: tuple[LLM, ScriptedRuntime]):
    llm, runtime = scripted
    scores = llm.loglikelihood([([5, 6], [[7], [8, 9]]), ([5], [[6]])])
    assert runtime.scorer.texts == [Continuation([5, 6, 7], 2), Continuation([5, 6, 8, 9], 2), Continuation([5, 6], 1)]
    assert [[score.token_count for score in of_prefix] for of_prefix in scores] == [[1, 2], [1]]


def test_its_cache_is_dropped_by_itself(scripted: tuple[LLM, ScriptedRuntime]):
    llm, runtime = scripted
    llm.drop_cache()
    assert runtime.drops == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.logits([5]),
        lambda llm: llm.embed("a"),
        lambda llm: llm.embed_in_steps("a", lambda: 1),
        lambda llm: llm.prompt_logprobs_in_steps([[5]], 0, lambda: 1),
        lambda llm: llm.steps,
    ],
    ids=["logits", "embed", "embed_in_steps", "prompt_logprobs_in_steps", "steps"],
)
def test_without_steps_there_is_one_sentence(scripted: tuple[LLM, ScriptedRuntime], call):
    with pytest.raises(GenerationError, match=f"^{NO_STEPS}$"):
        call(scripted[0])


def test_a_service_needs_steps(scripted: tuple[LLM, ScriptedRuntime]):
    with pytest.raises(GenerationError, match="the scripted backend has its own scheduler"):
        Service(scripted[0])


def test_backends_that_step_share_one_cache_between_requests_and_scores(golden: Path):
    llm, prompt = LLM(golden / "minicpm2b_tied", backend="numpy", context=64), [5, 6, 7, 8]
    llm.logits(prompt)
    assert llm.steps.new_scheduler().cache_usage() == llm.steps.cache.usage()
    assert llm.generate([prompt], temperature=0, max_tokens=1)[0].usage.cached_tokens == 3
    llm.drop_cache()
    assert llm.generate([prompt], temperature=0, max_tokens=1)[0].usage.cached_tokens == 0
