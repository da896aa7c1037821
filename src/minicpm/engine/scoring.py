"""Scores, logits and embeddings of texts that are there already: token ids in, numbers out.

Texts are computed in steps, so that whoever has other work can do some of it in between. The memory comes from the
cache that requests use, too. Text never gets here; LLM makes the ids.
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

# Logits of a whole text are looked at in parts of so many bytes: 130 tokens of MiniCPM-2B's vocabulary.
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
    """Ids of a prefix, which may hold spans, and its continuation; those from `border` on, at least 1, are scored."""

    ids: Ids
    border: int


class StepScorer:
    """Scores on a backend that computes a step at a time, within the keys and values of `cache`.

    GenerationError where a text needs more memory than there is.
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
        """Score texts that have the same ids up to their lowest border; those are computed once."""
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
        """`embed`, a step of about `most_tokens()` at a time.

        Yields 0 after a step, and the tokens that there is no room for where it has to be tried again. A text that can
        never be computed is refused at once.
        """
        self._require_fitting(texts)
        return self._embed(texts, most_tokens)

    def prompt_logprobs_in_steps(
        self, texts: list[Ids], top: int, most_tokens: Callable[[], int]
    ) -> Generator[int, None, list[list[SampledToken]]]:
        """Per text all its tokens, each with its log-probability behind those before it and the `top` likeliest ones.

        The first position has neither, and a span's positions are left out. In steps, and refused, like
        `embed_in_steps`; of the logits (T, vocab) no more than LOGITS_BYTES are held at a time.
        """
        self._require_fitting(texts)
        return self._score_prompts(texts, top, most_tokens)

    # --- how texts are computed ----------------------------------------------------------------------------------

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
        """Hand what is computed of every text's tokens to its reader, as `embed_in_steps` says."""
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
        """What work in steps returns, where nobody else waits for the memory."""
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
        """Compute `ids` (T,); logits (T, vocab), or (1, vocab) after the last."""
        chunks = Row(sequence, ids, logits).chunks(PREFILL_CHUNK_TOKENS)
        return np.concatenate([self._backend.forward([chunk])[0] for chunk in chunks])

    @contextmanager
    def _open(self, prompt_ids: Ids, tokens: int) -> Iterator[KVSequence]:
        """A sequence of the cache that may grow to `tokens`, holding what is known of all but the prompt's last."""
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
    """The first texts, as many as have at most so many tokens together, but one at least."""
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
    """Takes in what a backend computes of a text's tokens, chunk after chunk (T, n)."""

    def add(self, computed: npt.NDArray[np.float32]) -> None: ...


class _Scores:
    """A text's tokens with their log-probabilities, from the logits (T, vocab) of all chunks that are added."""

    def __init__(self, ids: Ids, top: int):
        self._ids = ids
        self._top = top
        self._read = 1  # positions that are done with
        self.tokens = [SampledToken(token_id) for token_id in ids[:1] if token_id >= 0]

    def add(self, computed: npt.NDArray[np.float32]) -> None:
        # The last logits predict a token that is not there. A span's positions have content ids, below 0.
        for logits, token_id in zip(computed, self._ids[self._read :]):
            if token_id >= 0:
                self.tokens.append(scored_token(logits, token_id, self._top))
        self._read += len(computed)


class _Mean:
    """Mean over the tokens of all chunks (T, hidden) that are added: (hidden,) float64."""

    def __init__(self) -> None:
        self._sum: npt.NDArray[np.float64] | None = None
        self._count = 0

    def add(self, computed: npt.NDArray[np.float32]) -> None:
        # The sum so far is the first of the rows, which numpy adds one by one: chunks don't change its bits.
        rows = computed.astype(np.float64) if self._sum is None else np.vstack([self._sum, computed])
        self._sum = rows.sum(axis=0)
        self._count += len(computed)

    @property
    def value(self) -> npt.NDArray[np.float64]:
        assert self._sum is not None
        mean: npt.NDArray[np.float64] = self._sum / self._count
        return mean
