"""`Runtime`: the interface between LLM and a loaded model. It provides a scheduler for requests and a scorer for texts.

All backends that compute step by step share `StepRuntime`: one cache, one scheduler, one scorer. An engine with its own
KV cache, such as vLLM, implements `Runtime` itself.
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
        """Whether any request has not finished."""

    def add(self, request: Request) -> None:
        """Take a request. Raises GenerationError for one that this engine cannot run."""

    def step(self) -> list[Outcome]:
        """Compute one step; return the outcomes of the requests that got tokens. An error ends its request."""

    def close(self) -> None:
        """Cancel every request."""


class Scorer(Protocol):
    """Scores given continuations."""

    def loglikelihood(self, texts: Sequence[Continuation]) -> list[Loglikelihood]:
        """Score each text's tokens from its border on. All texts have the same ids up to the lowest border."""


class Runtime(Protocol):
    """A loaded model that runs requests and scores texts."""

    # Properties, so that an implementation may be more exact about their types.
    @property
    def backend(self) -> Backend:
        """The backend that computes."""

    @property
    def context_length(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""

    @property
    def cache_tokens(self) -> int:
        """Most tokens whose keys and values are held at once."""

    @property
    def scorer(self) -> Scorer:
        """The scorer of texts. An engine that computes step by step has a StepScorer, which does more."""

    @property
    def steps(self) -> StepRuntime | None:
        """This runtime if it computes step by step; None if the engine gives no logits and runs its own loop."""

    @property
    def why_no_steps(self) -> str:
        """The error message for a user who needs `steps` if there are none."""

    def new_scheduler(self) -> RequestScheduler:
        """A new scheduler; several may work at once."""

    def drop_cache(self) -> None:
        """Evict the cached keys and values of finished texts and release their memory."""


class StepRuntime:
    """The Runtime of a backend that computes step by step. Its schedulers and its scorer share one cache."""

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
        # A verified token equals the plainly decoded one only if its logits do, so lookup needs an exact backend.
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
