"""Scores, logits and embeddings of given texts: token ids in, numbers out.

Texts are computed in steps, so that the caller can do other work in between. Keys and values are held in the same cache
as those of requests. LLM makes the ids; this module never sees text.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import KVCache, KVSequence, Row, StepBackend
from minicpm.engine.cache.blocks import beyond_budget
from minicpm.engine.prompt import Ids
from minicpm.engine.scheduler import PREFILL_CHUNK_TOKENS, no_room
from minicpm.errors import GenerationError
from minicpm.sampling import SampledToken, scored_token

# The logits of a text are processed in parts of so many bytes: 130 tokens of MiniCPM-2B's vocabulary.
LOGITS_BYTES = 64 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Loglikelihood:
    """Log-probability (natural) of a continuation, summed over its tokens; `is_greedy` if each was the likeliest."""

    logprob: float
    token_count: int
    is_greedy: bool


@dataclass(frozen=True)
class Continuation:
    """Ids of a prefix, which may hold spans, and its continuation. Those from `border` (at least 1) on are scored."""

    ids: Ids
    border: int


class StepScorer:
    """Scores texts on a backend that computes step by step, with keys and values in `cache`.

    Raises GenerationError if a text needs more memory than the cache has.
    """

    def __init__(self, backend: StepBackend, cache: KVCache, context_length: int):
        self._backend = backend
        self._cache = cache
        self._context_length = context_length

    def logits(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Next-token logits after each of the ids: (T, vocab)."""
        with self._open([], len(ids)) as sequence:
            return self._forward_in_chunks(sequence, ids, "all")

    def loglikelihood(self, texts: Sequence[Continuation]) -> list[Loglikelihood]:
        """Score texts that have the same ids up to their lowest border. The common prefix is computed once."""
        shared = min((text.border for text in texts), default=0)
        if not shared:
            return []
        prefix = texts[0].ids[:shared]
        scores = []
        with self._open(prefix, max(len(text.ids) for text in texts)) as sequence:
            logits = self._forward_in_chunks(sequence, prefix[sequence.length :], "last")
            for text in texts:
                tail = text.ids[shared:-1]
                rows = self._forward_in_chunks(sequence, tail, "all") if tail else logits[:0]
                sequence.truncate(shared)
                predictions = np.concatenate([logits, rows])[text.border - shared :]
                scores.append(_loglikelihood(predictions, text.ids[text.border :]))
        return scores

    def embed(self, texts: list[Ids]) -> npt.NDArray[np.float32]:
        """Mean of the last hidden states of each text: (n, hidden)."""
        return self._at_once(self.embed_in_steps(texts, lambda: PREFILL_CHUNK_TOKENS))

    def embed_in_steps(
        self, texts: list[Ids], most_tokens: Callable[[], int]
    ) -> Generator[int, None, npt.NDArray[np.float32]]:
        """`embed` in steps of about `most_tokens()` tokens.

        Yields 0 after a step. If there is no room in the cache, it yields the number of missing tokens and tries again
        when it is resumed. A text that can never be computed is refused before the first step.
        """
        self._require_fitting(texts)
        return self._embed(texts, most_tokens)

    def prompt_logprobs_in_steps(
        self, texts: list[Ids], top: int, most_tokens: Callable[[], int]
    ) -> Generator[int, None, list[list[SampledToken]]]:
        """Per text all its tokens, each with its log-probability given the tokens before it, and the `top` likeliest.

        The first position has neither, and a span's positions are left out. Steps and refusals are as in
        `embed_in_steps`. At most LOGITS_BYTES of the logits (T, vocab) are held at a time.
        """
        self._require_fitting(texts)
        return self._score_prompts(texts, top, most_tokens)

    # --- computation ---------------------------------------------------------------------------------------------

    def _embed(self, texts: list[Ids], most_tokens: Callable[[], int]) -> Generator[int, None, npt.NDArray[np.float32]]:
        means = [_Mean() for _ in texts]
        yield from self._read_in_steps(texts, means, self._backend.hidden_states, most_tokens)
        return np.stack([mean.value for mean in means]).astype(np.float32)

    def _score_prompts(
        self, texts: list[Ids], top: int, most_tokens: Callable[[], int]
    ) -> Generator[int, None, list[list[SampledToken]]]:
        scores = [_Scores(ids, top) for ids in texts]
        at_once = max(1, LOGITS_BYTES // (4 * self._backend.vocab_size))
        yield from self._read_in_steps(texts, scores, self._backend.forward, lambda: min(at_once, most_tokens()))
        return [score.tokens for score in scores]

    def _read_in_steps(
        self,
        texts: list[Ids],
        readers: Sequence[_Reader],
        compute: Callable[[Sequence[Row]], list[npt.NDArray[np.float32]]],
        most_tokens: Callable[[], int],
    ) -> Generator[int, None, None]:
        """Compute all texts in steps and pass the results of each to its reader; yields as `embed_in_steps` does."""
        done = 0
        while done < len(texts):
            batch = _first_batch(texts[done:], most_tokens())
            sequences = [self._cache.open((), len(ids), len(ids)) for ids in batch]
            try:
                if None in sequences:
                    yield sum(map(len, batch))
                    continue
                longest = max(map(len, batch))
                start = 0
                while start < longest:
                    end = longest if len(batch) > 1 else start + most_tokens()
                    rows = [Row(sequence, ids[start:end], "all") for sequence, ids in zip(sequences, batch) if sequence]
                    for reader, computed in zip(readers[done:], compute(rows)):
                        reader.add(computed)
                    start = end
                    yield 0
            finally:
                for sequence in sequences:
                    if sequence is not None:
                        self._cache.close(sequence)
            done += len(batch)

    def _at_once(self, work: Generator[int, None, T]) -> T:
        """The result of work in steps. Raises GenerationError if it would have to wait for memory."""
        while True:
            try:
                missing_tokens = next(work)
            except StopIteration as done:
                result: T = done.value
                return result
            if missing_tokens:
                raise no_room(self._backend, self._cache, missing_tokens)

    def _forward_in_chunks(
        self, sequence: KVSequence, ids: Ids, logits: Literal["last", "all"]
    ) -> npt.NDArray[np.float32]:
        """Compute `ids` (T,); returns the logits (T, vocab), or (1, vocab) after the last id."""
        chunks = Row(sequence, ids, logits).chunks(PREFILL_CHUNK_TOKENS)
        return np.concatenate([self._backend.forward([chunk])[0] for chunk in chunks])

    @contextmanager
    def _open(self, prompt_ids: Ids, tokens: int) -> Iterator[KVSequence]:
        """A sequence that may grow to `tokens`. It holds the cached prefix of the prompt, without the last token."""
        if tokens > self._cache.tokens:
            raise beyond_budget(self._backend, self._cache.tokens, "the text", tokens)
        sequence = self._cache.open(prompt_ids, tokens, tokens, keeps_all=True)
        if sequence is None:
            raise no_room(self._backend, self._cache, tokens)
        try:
            yield sequence
        finally:
            self._cache.close(sequence)

    def _require_fitting(self, texts: list[Ids]) -> None:
        for number, ids in enumerate(texts, start=1):
            if len(ids) > self._context_length:
                raise GenerationError(
                    f"text {number} has {len(ids)} tokens, more than the context's {self._context_length}; split it"
                )
            if self._backend.held_tokens(len(ids)) > self._cache.tokens:
                raise beyond_budget(self._backend, self._cache.tokens, f"text {number}", len(ids))


def _first_batch(texts: list[Ids], most_tokens: int) -> list[Ids]:
    """The first texts that have at most `most_tokens` tokens together, but at least one text."""
    count, tokens = 1, len(texts[0])
    while count < len(texts) and tokens + len(texts[count]) <= most_tokens:
        tokens += len(texts[count])
        count += 1
    return texts[:count]


def _loglikelihood(logits: npt.NDArray[np.float32], token_ids: Ids) -> Loglikelihood:
    """Score `token_ids` (T,) against the logits (T, vocab) that predict them."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    log_sums = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    chosen = wide[np.arange(len(token_ids)), token_ids]
    is_greedy = bool((logits.argmax(axis=1) == token_ids).all())
    return Loglikelihood(float((chosen - log_sums).sum()), len(token_ids), is_greedy)


class _Reader(Protocol):
    """Processes what a backend computes for a text's tokens, chunk by chunk (T, n)."""

    def add(self, computed: npt.NDArray[np.float32]) -> None: ...


class _Scores:
    """A text's tokens with their log-probabilities, from the logits (T, vocab) of all added chunks."""

    def __init__(self, ids: Ids, top: int):
        self._ids = ids
        self._top = top
        self._read = 1  # processed positions
        self.tokens = [SampledToken(token_id) for token_id in ids[:1] if token_id >= 0]

    def add(self, computed: npt.NDArray[np.float32]) -> None:
        # The last logits predict a token after the text. A span's positions have content ids, which are negative.
        for logits, token_id in zip(computed, self._ids[self._read :]):
            if token_id >= 0:
                self.tokens.append(scored_token(logits, token_id, self._top))
        self._read += len(computed)


class _Mean:
    """The mean (hidden,), float64, over the tokens of all added chunks (T, hidden)."""

    def __init__(self) -> None:
        self._sum: npt.NDArray[np.float64] | None = None
        self._count = 0

    def add(self, computed: npt.NDArray[np.float32]) -> None:
        # The sum so far is the first row, and numpy adds rows one by one: so the chunks do not change the bits.
        rows = computed.astype(np.float64) if self._sum is None else np.vstack([self._sum, computed])
        self._sum = rows.sum(axis=0)
        self._count += len(computed)

    @property
    def value(self) -> npt.NDArray[np.float64]:
        assert self._sum is not None
        mean: npt.NDArray[np.float64] = self._sum / self._count
        return mean
