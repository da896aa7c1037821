"""What an engine owes LLM: a scheduler for its requests and a scorer for texts.

`Runtime` is that contract. An engine with keys and values of its own, as vLLM is, implements it alone. All backends
that compute step by step share `StepRuntime`: one cache, one scheduler, one scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from minicpm.engine.backend import Backend, StepBackend
from minicpm.engine.cache.blocks import budget_tokens
from minicpm.engine.lookup import StepTimes
from minicpm.engine.options import EngineOptions
from minicpm.engine.request import Request
from minicpm.engine.scheduler import Outcome, Pace, Scheduler
from minicpm.engine.scoring import Continuation, Loglikelihood, StepScorer


class RequestScheduler(Protocol):
    """Runs requests until each has finished or failed."""

    @property
    def is_busy(self) -> bool:
        """Whether there are requests that have not finished."""

    def add(self, request: Request) -> None:
        """Take a request; GenerationError for one that this engine cannot run."""

    def step(self) -> list[Outcome]:
        """Compute once; what became of the requests that got tokens. An error ends its request."""

    def close(self) -> None:
        """Cancel every request."""


class Scorer(Protocol):
    """Scores what a model would have said."""

    def loglikelihood(self, texts: Sequence[Continuation]) -> list[Loglikelihood]:
        """Per text, the tokens from its border on. All have the same ids up to the lowest border."""


class Runtime(Protocol):
    """A loaded model that runs requests and scores texts."""

    # Properties, so that an implementation may be more exact about their types.
    @property
    def backend(self) -> Backend:
        """What computes."""

    @property
    def context_length(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""

    @property
    def cache_tokens(self) -> int:
        """Most tokens whose keys and values are held at once."""

    @property
    def scorer(self) -> Scorer:
        """What scores texts; engines that compute step by step give more of them (StepScorer)."""

    @property
    def steps(self) -> StepRuntime | None:
        """This runtime, where it computes step by step; None where the engine gives no logits and runs its own loop."""

    @property
    def why_no_steps(self) -> str:
        """What to tell a user who needs `steps` where there are none."""

    def new_scheduler(self) -> RequestScheduler:
        """A scheduler; any number may be at work."""

    def drop_cache(self) -> None:
        """Forget what was computed for texts that are finished, and give its memory back."""


class StepRuntime:
    """Requests and scores on a backend that computes step by step; its schedulers and its scorer share one cache."""

    why_no_steps = ""

    def __init__(self, backend: StepBackend, options: EngineOptions, context_length: int):
        self.backend = backend
        self.context_length = context_length
        text_tokens = backend.held_tokens(context_length)
        budget = budget_tokens(backend, text_tokens, options.max_batch, options.kv_cache_bytes)
        self.cache = backend.new_cache(budget)
        self.scorer = StepScorer(backend, self.cache, context_length)
        self._max_batch = options.max_batch
        self._pace = Pace()
        # A verified token is the plain one only where its logits are.
        self._step_times = StepTimes() if options.lookup == "auto" and backend.is_exact else None

    @property
    def cache_tokens(self) -> int:
        return self.cache.tokens

    @property
    def steps(self) -> StepRuntime:
        return self

    def new_scheduler(self) -> Scheduler:
        return Scheduler(self.backend, self.cache, self._max_batch, self._pace, self._step_times)

    def drop_cache(self) -> None:
        self.cache.drop_idle()
