"""Which tokens go into the next forward pass: running answers first, then prompts in chunks.

Requests join and leave between any two steps. A long prompt is computed in chunks beside the running
answers, so it delays each of their tokens by one chunk at most. The scheduler never touches text.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import Backend, CacheUsage, KVCache, Row
from minicpm.engine.lookup import StepTimes, draft_lengths
from minicpm.engine.request import Piece, Request
from minicpm.errors import GenerationError

PREFILL_CHUNK_TOKENS = 512  # bounds activation memory: 512 x 5760 x 4 B is 12 MB per MLP tensor of MiniCPM-2B


class Scheduler:
    """Runs requests on a backend, at most `max_batch` at a time, first come first served.

    A request waits until the cache has room for its prompt and its longest answer, so none ever stops half-way. With
    `step_times` answers are guessed ahead by prompt lookup where that pays.
    """

    def __init__(self, backend: Backend, cache: KVCache, max_batch: int, step_times: StepTimes | None = None):
        self._backend = backend
        self._step_times = step_times
        self._cache = cache
        self._max_batch = max_batch
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._running)

    def cache_usage(self) -> CacheUsage:
        return self._cache.usage()

    def cancel(self, request: Request) -> None:
        """Leave a request out of all steps to come; one that is not here any more changes nothing."""
        if request in self._running:
            self._running.remove(request)
            self._retire(request)
        elif request in self._waiting:
            self._waiting.remove(request)

    def close(self) -> None:
        """Cancel every request."""
        for request in self._running:
            self._retire(request)
        self._running.clear()
        self._waiting.clear()

    def step(self) -> list[tuple[Request, Piece | GenerationError]]:
        """Compute once; what became of the requests that got a token, in their order.

        An error ends its request. One of the whole step is raised, and every request is then still here.
        """
        self._admit()
        rows, requests = self._next_batch()
        events: list[tuple[Request, Piece | GenerationError]] = []
        for request, logits in zip(requests, self._forward(rows, requests)):
            if not len(logits):
                continue
            try:
                events += [(request, piece) for piece in request.take(logits)]
            except GenerationError as error:
                self.cancel(request)
                events.append((request, error))
        for request in [r for r in self._running if r.finish_reason is not None]:
            self._running.remove(request)
            self._retire(request)
        return events

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_batch:
            request = self._waiting[0]
            sequence = self._cache.open(request.prompt_ids, request.planned_tokens, request.rope_length)
            if sequence is None:
                if self._running:
                    return
                # What holds the cache are requests of others, which need not move while this one waits.
                raise no_room(self._backend, self._cache, request.planned_tokens)
            self._waiting.popleft()
            request.admit(sequence)
            self._running.append(request)

    def _next_batch(self) -> tuple[list[Row], list[Request]]:
        rows: list[Row] = []
        requests: list[Request] = []
        budget = PREFILL_CHUNK_TOKENS
        for request in sorted(self._running, key=lambda r: len(r.tokens_to_compute) > 1):
            assert request.sequence is not None
            tokens = request.tokens_to_compute
            chunk = tokens if len(tokens) == 1 else tokens[:budget]
            if not chunk:
                continue
            budget -= len(chunk) if len(tokens) > 1 else 0
            is_last_chunk = len(chunk) == len(tokens)
            rows.append(Row(request.sequence, chunk, "last" if is_last_chunk else "none"))
            requests.append(request)
        return rows, requests

    def _forward(self, rows: list[Row], requests: list[Request]) -> list[npt.NDArray[np.float32]]:
        """Compute a step; one of running answers alone goes on with their drafts, and its time is remembered."""
        is_decoding = all(row.logits == "last" and len(row.token_ids) == 1 for row in rows)
        if self._step_times is None or not is_decoding:
            return self._backend.forward(rows)
        rows = _with_drafts(rows, requests, self._step_times)
        start = time.perf_counter()
        logits = self._backend.forward(rows)
        self._step_times.learn(sum(len(row.token_ids) for row in rows), time.perf_counter() - start)
        return logits

    def _retire(self, request: Request) -> None:
        assert request.sequence is not None
        self._cache.close(request.sequence)


def no_room(backend: Backend, cache: KVCache, tokens: int) -> GenerationError:
    """The error of a plan of so many tokens while others hold the cache."""
    megabytes = backend.cache_bytes_per_token / 1e6
    return GenerationError(
        f"{tokens} tokens need {tokens * megabytes:,.1f} MB for keys and values, and other streams that are not "
        f"finished hold too much of the {cache.tokens * megabytes:,.1f} MB there are; finish or close those, or lower "
        "max_tokens"
    )


def _with_drafts(rows: list[Row], requests: list[Request], step_times: StepTimes) -> list[Row]:
    """The same step with what may come next behind each answer's token, as far as verifying it is expected to pay."""
    counts = draft_lengths(step_times, [request.guess() for request in requests])
    return [
        Row(row.sequence, [*row.token_ids, *request.draft(count)], "all") if count else row
        for row, request, count in zip(rows, requests, counts)
    ]
