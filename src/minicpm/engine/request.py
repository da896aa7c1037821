"""One request: its state, the pieces it streams, and its completion."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from minicpm.chat import StopMatcher
from minicpm.engine.backend import BLOCK_TOKENS, KVSequence
from minicpm.engine.constraint import Matcher
from minicpm.engine.lookup import MOST_STEP_TOKENS, Chance, Guesses
from minicpm.engine.prompt import Ids, token_ids_of
from minicpm.sampling import Draw, SampledToken, Sampler, SamplingParams, sample_together
from minicpm.tokenizer import Detokenizer, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    """Token counts. `cached_tokens` of the prompt came from the cache. A span's positions count as tokens.

    Prompt lookup drafted `drafted_tokens`, of which `accepted_tokens` were accepted.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


# Tokens that one step verifies come within microseconds of each other, which is no speed.
MEASURABLE_S = 1e-3


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds and rates of one request, from its creation on.

    `decode_tokens_per_s` is 0 where there is none to measure: fewer than two tokens, or all within MEASURABLE_S.
    """

    first_token_s: float
    total_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Completion:
    """A finished answer. `seed` reproduces it on the same backend and weights.

    `end_token` is the token that ended it, if one did and log-probabilities were requested. `ids` does not contain it.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[SampledToken, ...] | None
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    end_token: SampledToken | None = None


@dataclass(frozen=True)
class Piece:
    """Text that became final; the last piece of a request carries the whole completion.

    With SamplingParams.logprobs, `tokens` are the tokens of the text. A token whose text is held back, because it may
    begin a character or a stop string, comes with a later piece. The tokens of all pieces are the completion's
    `logprobs`.
    """

    index: int
    text: str
    completion: Completion | None = None
    tokens: tuple[SampledToken, ...] = ()


class Request:
    """A prompt, and the state of its completion: the tokens and the text so far."""

    def __init__(
        self,
        index: int,
        prompt_ids: Ids,
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        seed: int,
        max_new_tokens: int,
        rope_length: int,
        eos_token_ids: frozenset[int],
        marker_ids: frozenset[int],
        stop: tuple[str, ...],
        continues: bool,
        choice: int = 0,
        matcher: Matcher | None = None,
        structure: str | None = None,
    ):
        self.index = index
        self.number = 0  # its number in the scheduler, in the order of arrival
        self.overtaken = 0  # later requests that were admitted before it
        self.prompt_ids = prompt_ids
        self.params = params
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self.rope_length = rope_length
        self.new_ids: list[int] = []
        self.sequence: KVSequence | None = None
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._guesses = Guesses()
        self._proposed: list[int] = []  # the tokens that the lookup proposes
        self._draft: list[int] = []  # the first of them, which the current step verifies
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._sampler = Sampler(params, seed, token_ids_of(prompt_ids), choice=choice)
        self._matcher = matcher
        self._detokenizer = Detokenizer(tokenizer, continues=continues)
        self._stops = _Stops(stop, structure)
        self._eos_token_ids = eos_token_ids
        self._ending_ids = frozenset() if params.ignore_eos else eos_token_ids
        self._stop_ids = frozenset(params.stop_token_ids) | marker_ids
        self._sampled: list[SampledToken] = []
        self._streamed_tokens = 0  # sampled tokens that a piece has returned
        self._text: list[str] = []
        self._clock = _Clock()

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt_ids) + len(self.new_ids)

    @property
    def known_ids(self) -> Ids:
        return self.prompt_ids + self.new_ids

    @property
    def pending_tokens(self) -> int:
        """Tokens whose keys and values are not computed yet: at least the newest one."""
        assert self.sequence is not None
        return self.length - self.sequence.length

    @property
    def planned_tokens(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + self.max_new_tokens

    @property
    def is_constrained(self) -> bool:
        """Whether the request has a constraint."""
        return self._matcher is not None

    def next_tokens(self, count: int) -> Ids:
        """The first `count` of the pending tokens."""
        assert self.sequence is not None
        start = self.sequence.length - len(self.prompt_ids)
        if start >= 0:
            return self.new_ids[start : start + count]
        # If a preempted prompt is computed again, its last chunk may also have tokens of the answer.
        ids = self.prompt_ids[start:][:count]
        return ids + self.new_ids[: count - len(ids)]

    def shares_next_block(self, other: Request) -> bool:
        """Whether another prompt equals this one up to the end of the block that is computed next."""
        assert self.sequence is not None
        end = (self.sequence.length // BLOCK_TOKENS + 1) * BLOCK_TOKENS
        return (
            end < min(len(self.prompt_ids), len(other.prompt_ids))
            and other.rope_length == self.rope_length
            and self.prompt_ids[:end] == other.prompt_ids[:end]
        )

    def admit(self, sequence: KVSequence) -> bool:
        """Take a sequence that may already hold the first tokens; return whether it is the request's first one."""
        is_first = self.sequence is None
        self.sequence = sequence
        if is_first:
            self.cached_tokens = sequence.length
            self._clock.admitted()
        return is_first

    def begin(self) -> None:
        """Note that an engine with its own KV cache has taken the request."""
        self._clock.admitted()

    @property
    def final_ids(self) -> frozenset[int]:
        """Token ids that end the answer."""
        return self._ending_ids | self._stop_ids

    def guess(self) -> Chance:
        """Look up the likely next tokens; return how many can be drafted, and the chance of each."""
        read = self._guesses.length
        self._guesses.read(self.prompt_ids[read:] + self.new_ids[max(0, read - len(self.prompt_ids)) :])
        # The last token of an answer is sampled after the draft before it.
        room = self.max_new_tokens - len(self.new_ids) - 1
        self._proposed = self._guesses.propose(min(MOST_STEP_TOKENS - 1, room))
        return Chance(self._guesses.chance, len(self._proposed))

    def draft(self, count: int) -> list[int]:
        """The first `count` of the proposed tokens, to be computed after the next one."""
        self._draft = self._proposed[:count]
        return self._draft

    def draw(self, logits: npt.NDArray[np.float32]) -> Draw:
        """The draw of the next token from `logits` (vocab,) float32."""
        return Draw(self._sampler, logits, self.length, None if self._matcher is None else self._allowed_tokens)

    def take(self, logits: npt.NDArray[np.float32], first: SampledToken) -> list[Piece]:
        """Accept a sampled token, then sample after each drafted token as long as the drafts are right.

        `logits` (n, vocab) are those after the token before `first`, then after each drafted token. Keys and values of
        wrong drafts are dropped.
        """
        assert self.sequence is not None
        held, known = self.sequence.length - len(logits), len(self.new_ids)
        self._drafted_tokens += len(self._draft)
        pieces: list[Piece] = [self.accept(first)]
        for row, guess in zip(logits[1:], self._draft):
            if self.finish_reason is not None or self.new_ids[-1] != guess:
                break
            self._accepted_tokens += 1
            (sampled,) = sample_together([self.draw(row)])
            if not isinstance(sampled, SampledToken):
                raise sampled
            pieces.append(self.accept(sampled))
        if self._draft:
            self.sequence.truncate(held + len(pieces))
        if self._proposed:
            self._guesses.learn(self._proposed, self.new_ids[known:])
            self._proposed, self._draft = [], []
        return pieces

    def accept(self, sampled: SampledToken) -> Piece:
        """Add a sampled token to the answer; return the text that became final."""
        self._clock.sampled()
        token_id = sampled.token_id
        if token_id in self._ending_ids or (token_id in self._stop_ids and not self._stops.are_off):
            return self._finish("stop", end_token=sampled)
        if self._matcher is not None:
            self._matcher.accept(token_id)
        self.new_ids.append(token_id)
        if self.params.logprobs is not None:
            self._sampled.append(sampled)
        text, is_stopped = self._stops.push(self._detokenizer.push(token_id))
        self._text.append(text)
        if is_stopped or (self._matcher is not None and self._matcher.is_complete):
            return self._finish("stop", said=text)
        if len(self.new_ids) >= self.max_new_tokens:
            return self._finish("length", said=text)
        return Piece(self.index, text, tokens=self._tokens_to_stream() if text else ())

    def _allowed_tokens(self) -> npt.NDArray[np.bool_]:
        """Mask (vocab,) of the tokens that the constraint allows next."""
        assert self._matcher is not None
        allowed = self._matcher.allowed()
        if self.params.ignore_eos:
            allowed[list(self._eos_token_ids)] = False
        return allowed

    def _tokens_to_stream(self) -> tuple[SampledToken, ...]:
        tokens = tuple(self._sampled[self._streamed_tokens :])
        self._streamed_tokens += len(tokens)
        return tokens

    def _finish(self, reason: FinishReason, said: str = "", end_token: SampledToken | None = None) -> Piece:
        rest = ""
        if not self._stops.is_stopped:
            rest, is_stopped = self._stops.push(self._detokenizer.flush())
            rest += self._stops.flush()
            if is_stopped:
                reason = "stop"
            self._text.append(rest)
        self.finish_reason = reason
        completion = Completion(
            text="".join(self._text),
            ids=tuple(self.new_ids),
            logprobs=tuple(self._sampled) if self.params.logprobs is not None else None,
            finish_reason=reason,
            usage=Usage(
                len(self.prompt_ids),
                len(self.new_ids),
                self.cached_tokens,
                self._drafted_tokens,
                self._accepted_tokens,
            ),
            timings=self._clock.timings(len(self.prompt_ids) - self.cached_tokens),
            seed=self.seed,
            end_token=end_token if self.params.logprobs is not None else None,
        )
        return Piece(self.index, said + rest, completion, self._tokens_to_stream())


class _Stops:
    """Stop strings of an answer, which have no effect if it begins with the text `structure` (None: never).

    A blank before that text does not count; it may be the tokenizer's.
    """

    def __init__(self, stop: tuple[str, ...], structure: str | None):
        self._matcher = StopMatcher(stop)
        self._structure = structure
        self._start: str | None = None if structure in (None, "") else ""  # the text, while it may become either
        self.are_off = structure == ""

    @property
    def is_stopped(self) -> bool:
        return self._matcher.is_stopped

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next text. Return the text that is final, and whether a stop string ended it."""
        if self._start is not None:
            assert self._structure is not None
            text, begun = self._start + text, (self._start + text).removeprefix(" ")
            if len(begun) < len(self._structure) and self._structure.startswith(begun):
                self._start = text
                return "", False
            self._start, self.are_off = None, begun.startswith(self._structure)
        return (text, False) if self.are_off else self._matcher.push(text)

    def flush(self) -> str:
        """The text that is held back, at the end of the answer."""
        start, self._start = self._start or "", None
        return start + self._matcher.flush()


@dataclass
class _Clock:
    """Times of one request; the first sampled token ends its prefill."""

    created: float = field(default_factory=time.perf_counter)
    start: float = 0.0
    first: float = 0.0
    last: float = 0.0
    count: int = 0

    def admitted(self) -> None:
        self.start = time.perf_counter()

    def sampled(self) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.count += 1

    def timings(self, prefilled_tokens: int) -> Timings:
        prefill_s = self.first - self.start
        decode_s = self.last - self.first
        return Timings(
            first_token_s=max(0.0, self.first - self.created),
            total_s=time.perf_counter() - self.created,
            prefill_tokens_per_s=prefilled_tokens / prefill_s if prefill_s > 0 else 0.0,
            decode_tokens_per_s=(self.count - 1) / decode_s if decode_s >= MEASURABLE_S else 0.0,
        )
