"""Chooses the tokens of the next forward pass: running answers first, then chunks of prompts.

Requests join and leave between any two steps. A prompt is computed in chunks beside the running answers; a chunk is
limited so that a step takes at most STEP_S. Memory for keys and values grows with the answers. If it runs out, the
newest request is preempted: it releases its memory and is computed again later, to the same bits. The scheduler never
touches text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import Backend, CacheUsage, KVCache, Row, StepBackend
from minicpm.engine.lookup import MOST_STEP_TOKENS, StepTimes, draft_lengths
from minicpm.engine.request import Piece, Request
from minicpm.errors import GenerationError
from minicpm.sampling import SampledToken, sample_together

PREFILL_CHUNK_TOKENS = 512  # bounds activation memory: 512 x 5760 x 4 B is 12 MB per MLP tensor of MiniCPM-2B
# Prompt tokens per step while answers are streamed: the first of these with which a step takes no longer than STEP_S.
# A quarter of a second would be better for readers, but the native engine unpacks its weights for every step of more
# than 16 tokens. With MiniCPM-2B on two cores that takes most of the time, so prefill would be far too slow.
CHUNKS = (512, 384, 256, 192, 128, 96, 64, 48, 32, 16)
STEP_S = 0.4
# The oldest prompt gets this part of a step's prompt tokens, and the shortest prompts the rest.
OLDEST_PART = 0.25
# An answer's memory grows by so many tokens.
GROWTH_TOKENS = 64
# The number of later requests that may overtake one that does not fit into memory; then all wait for it.
MOST_OVERTAKING = 64
# The number of waiting requests that are checked for one that fits.
_LOOKAHEAD = 16

Outcome = tuple[Request, Piece | GenerationError]


@dataclass
class Work:
    """Sums over all steps: tokens, preemptions and time."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0


class Scheduler:
    """Runs requests on a backend, at most `max_batch` at a time, first come first served.

    A request that is admitted alone gets memory for its longest answer, so progress never stops. With `step_times`,
    prompt lookup drafts tokens if that is faster. `pace` keeps its measurements after the scheduler ends.
    """

    def __init__(
        self, backend: StepBackend, cache: KVCache, max_batch: int, pace: Pace, step_times: StepTimes | None = None
    ):
        self.work = Work()
        self._backend = backend
        self._step_times = step_times
        self._cache = cache
        self._max_batch = max_batch
        self._waiting: list[Request] = []  # in the order of arrival
        self._running: list[Request] = []  # in the order of arrival
        self._planned: dict[Request, int] = {}  # of running requests: tokens that have memory
        self.admits = True  # False: no waiting request is admitted
        self.others_go_on = False  # other users of the cache will release memory without this scheduler
        self._may_admit = False  # a waiting request may fit since the last check
        self._pace = pace
        self._count = 0

    def add(self, request: Request) -> None:
        request.number = self._count
        self._count += 1
        self._waiting.append(request)
        self._may_admit = True

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def chunk_tokens(self) -> int:
        """Tokens that another task may compute between steps: no more than a prompt's chunk."""
        return self._pace.chunk_tokens(len(self._running)) if self._running else PREFILL_CHUNK_TOKENS

    def cache_usage(self) -> CacheUsage:
        return self._cache.usage()

    def no_room(self, tokens: int) -> GenerationError:
        """The error for a plan of so many tokens while others hold the cache."""
        return no_room(self._backend, self._cache, tokens)

    def cancel(self, request: Request) -> None:
        """Remove a request. Has no effect on one that has ended."""
        if request in self._planned:
            self._running.remove(request)
            self._give_back(request)
        elif request in self._waiting:
            self._waiting.remove(request)
            self._may_admit = True

    def close(self) -> None:
        """Cancel every request."""
        for request in self._running:
            self._give_back(request)
        self._running.clear()
        self._waiting.clear()

    def step(self) -> list[Outcome]:
        """Compute one step; return the outcomes of the requests that got a token, in their order.

        An error of a request ends that request. An error of the whole step is raised, and all requests are kept.
        """
        start = time.perf_counter()
        outcomes = self._admit() if self._may_admit and self.admits else []
        outcomes += self._make_room()
        rows, requests = self._next_batch()
        if rows:
            outcomes += self._sample(requests, self._forward(rows, requests))
        for request in [r for r in self._running if r.finish_reason is not None]:
            self._running.remove(request)
            self._give_back(request)
        self.work.steps += 1
        self.work.step_seconds += time.perf_counter() - start
        return outcomes

    # --- admission and preemption --------------------------------------------------------------------------------

    def _admit(self) -> list[Outcome]:
        """Admit waiting requests while there is room, the oldest ones first."""
        self._may_admit = False
        failed: list[Outcome] = []
        misfits: list[Request] = []
        admitted: list[Request] = []
        for request in self._waiting:
            if len(self._running) == self._max_batch or len(misfits) == _LOOKAHEAD:
                break
            if self._is_being_computed(request):
                self._may_admit = True
                continue
            if self._open(request):
                admitted.append(request)
                for misfit in misfits:
                    misfit.overtaken += 1
            elif not self._running and not self.others_go_on:
                # Other schedulers hold the cache, and they may not release it while this request waits.
                failed.append((request, self.no_room(request.planned_tokens)))
            else:
                self._may_admit |= self.others_go_on
                misfits.append(request)
                if request.overtaken >= MOST_OVERTAKING:
                    break
        gone = {*admitted, *(request for request, _ in failed)}
        self._waiting = [request for request in self._waiting if request not in gone]
        return failed

    def _open(self, request: Request) -> bool:
        """Get memory for a request's tokens and some more, or for its whole plan if no other request runs."""
        plan = request.planned_tokens if not self._running else self._next_plan(request)
        sequence = self._cache.open(request.known_ids, plan, request.rope_length)
        if sequence is None:
            return False
        if request.admit(sequence):
            self.work.prompt_tokens += len(request.prompt_ids)
            self.work.cached_prompt_tokens += request.cached_tokens
        self._planned[request] = plan
        self._running.append(request)
        self._running.sort(key=_number)
        return True

    def _is_being_computed(self, request: Request) -> bool:
        """Whether a running request is about to compute the next block of this one, too.

        If this one waits, it can share that block: copies of one prompt are computed once.
        """
        return any(other.pending_tokens > 1 and other.shares_next_block(request) for other in self._running)

    def _make_room(self) -> list[Outcome]:
        """Let the memory of answers grow in the order of arrival; preempt the newest request if it does not fit."""
        failed: list[Outcome] = []
        for request in [r for r in self._running if r.length > self._planned[r]]:
            while request in self._planned and not self._grow(request, self._next_plan(request)):
                last = self._running[-1]
                if last is not self._running[0]:
                    self._put_back(last)
                elif not self._grow(request, request.length):
                    self.cancel(request)
                    failed.append((request, self.no_room(request.planned_tokens)))
        return failed

    def _grow(self, request: Request, plan: int) -> bool:
        if plan > self._planned[request]:
            assert request.sequence is not None
            if not self._cache.grow(request.sequence, plan):
                return False
            self._planned[request] = plan
        return True

    def _next_plan(self, request: Request) -> int:
        return min(request.planned_tokens, request.length + GROWTH_TOKENS)

    def _put_back(self, request: Request) -> None:
        """Preempt a running request: it waits again, before later ones. Its text so far is kept."""
        self._running.remove(request)
        self._give_back(request)
        place = next((i for i, r in enumerate(self._waiting) if r.number > request.number), len(self._waiting))
        self._waiting.insert(place, request)
        self.work.preemptions += 1

    def _give_back(self, request: Request) -> None:
        assert request.sequence is not None
        self._cache.close(request.sequence)
        del self._planned[request]
        self._may_admit = True

    # --- computation ---------------------------------------------------------------------------------------------

    def _next_batch(self) -> tuple[list[Row], list[Request]]:
        rows: list[Row] = []
        requests: list[Request] = []
        prompts: list[Request] = []
        for request in self._running:
            if request.pending_tokens > 1:
                prompts.append(request)
            else:
                assert request.sequence is not None
                rows.append(Row(request.sequence, request.next_tokens(1)))
                requests.append(request)
        if prompts:
            budget = self._pace.chunk_tokens(len(rows)) if rows else PREFILL_CHUNK_TOKENS
            for request, count in _shares(prompts, budget):
                assert request.sequence is not None
                is_last_chunk = count == request.pending_tokens
                rows.append(Row(request.sequence, request.next_tokens(count), "last" if is_last_chunk else "none"))
                requests.append(request)
        return rows, requests

    def _forward(self, rows: list[Row], requests: list[Request]) -> list[npt.NDArray[np.float32]]:
        """Compute a step and record its time. A step without prompts may also verify drafts."""
        prompt_tokens = sum(len(row.token_ids) for row in rows if len(row.token_ids) > 1)
        if not prompt_tokens and self._step_times is not None and len(rows) < MOST_STEP_TOKENS:
            rows = self._with_drafts(rows, requests, self._step_times)
        tokens = sum(len(row.token_ids) for row in rows)
        start = time.perf_counter()
        logits = self._backend.forward(rows)
        seconds = time.perf_counter() - start
        self._pace.learn(tokens, seconds, has_prompts=prompt_tokens > 0)
        if not prompt_tokens and self._step_times is not None and tokens <= MOST_STEP_TOKENS:
            self._step_times.learn(tokens, seconds)
        return logits

    def _with_drafts(self, rows: list[Row], requests: list[Request], step_times: StepTimes) -> list[Row]:
        """The same step with drafts after the answers' tokens, as many as are expected to make it faster."""
        counts = draft_lengths(step_times, [request.guess() for request in requests])
        return [
            Row(row.sequence, [*row.token_ids, *request.draft(count)], "all")
            if count and self._grow(request, request.length + count)
            else row
            for row, request, count in zip(rows, requests, counts)
        ]

    def _sample(self, requests: Sequence[Request], logits: Sequence[npt.NDArray[np.float32]]) -> list[Outcome]:
        """Sample a token for every request that has logits, and continue each with its own."""
        sampling = [(request, rows) for request, rows in zip(requests, logits) if len(rows)]
        firsts = sample_together([request.draw(rows[0]) for request, rows in sampling])
        outcomes: list[Outcome] = []
        for (request, rows), first in zip(sampling, firsts):
            try:
                if not isinstance(first, SampledToken):
                    raise first
                pieces = request.take(rows, first)
            except GenerationError as error:
                self.cancel(request)
                outcomes.append((request, error))
                continue
            self.work.generated_tokens += len(pieces)
            self.work.drafted_tokens += len(rows) - 1
            self.work.accepted_tokens += len(pieces) - 1
            outcomes += [(request, piece) for piece in pieces]
        return outcomes


class Pace:
    """Limits the prompt tokens of a step beside answers, by the measured times of steps of all sizes."""

    def __init__(self) -> None:
        self._times = StepTimes()

    def chunk_tokens(self, answers: int) -> int:
        """The largest chunk with which a step of so many answers should take no longer than STEP_S."""
        for chunk in CHUNKS:
            seconds = self._times.seconds(answers + chunk)
            if seconds is not None and seconds <= STEP_S:
                return min(chunk, PREFILL_CHUNK_TOKENS)
        return CHUNKS[-1]

    def learn(self, tokens: int, seconds: float, *, has_prompts: bool) -> None:
        # Every measurement makes older ones fade. So the many steps without prompts are not used, except the first.
        if has_prompts or self._times.seconds(tokens) is None:
            self._times.learn(tokens, seconds)


def no_room(backend: Backend, cache: KVCache, tokens: int) -> GenerationError:
    """The error for a plan of so many tokens while others hold the cache."""
    megabytes, tokens = backend.cache_bytes_per_token / 1e6, backend.held_tokens(tokens)
    return GenerationError(
        f"{tokens} tokens need {tokens * megabytes:,.1f} MB for keys and values, but other unfinished streams hold too "
        f"much of the cache's {cache.tokens * megabytes:,.1f} MB; finish or close those, or lower max_tokens"
    )


def _shares(prompts: list[Request], budget: int) -> list[tuple[Request, int]]:
    """The tokens of each prompt in a step: a part for the oldest prompt, the rest for the shortest ones."""
    oldest = prompts[0]
    shares = {oldest: min(oldest.pending_tokens, max(CHUNKS[-1], int(OLDEST_PART * budget)), budget)}
    left = budget - shares[oldest]
    for request in sorted(prompts, key=lambda r: (r.pending_tokens, r.number)):
        if not left:
            break
        more = min(left, request.pending_tokens - shares.get(request, 0))
        shares[request] = shares.get(request, 0) + more
        left -= more
    return [(request, count) for request, count in shares.items() if count]


def _number(request: Request) -> int:
    return request.number
