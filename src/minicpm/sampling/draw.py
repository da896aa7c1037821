"""From logits to a token: penalties in Hugging Face's order, then one draw per request.

Requests of a step are drawn together, and each gets the same token as alone. This module knows only ids and logits, no
text or model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minicpm import native
from minicpm.errors import GenerationError
from minicpm.sampling.logprobs import SampledToken, checked_logits, scored_token
from minicpm.sampling.params import MAX_SEED, SamplingParams, whole_number
from minicpm.sampling.reference import TOO_LARGE, draw_reference

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Scores (float32) that are processed together: 4 MB, about the size of a second-level cache.
_SCORES_AT_ONCE = 1 << 20


class Sampler:
    """Chooses the tokens of one request, one after another, and counts the ids it has seen."""

    def __init__(self, params: SamplingParams, seed: int, prompt_ids: Iterable[int] = (), *, choice: int = 0):
        self.params = params
        self._key = (whole_number("seed", seed, 0, MAX_SEED), whole_number("choice", choice, 0, MAX_SEED))
        self._isa = None if native.why_missing() else native.isa()
        self._native_draw = None if self._isa is None else native.extension().draw
        # Count only for penalties that are on.
        self._context = _TokenCounts() if params.repetition_penalty != 1.0 else None
        self._answer = _TokenCounts() if params.presence_penalty or params.frequency_penalty else None
        if self._context is not None:
            for token_id in prompt_ids:
                self._context.add(int(token_id))
        bias = params.logit_bias or {}
        self._bias_ids = np.array(list(bias), np.int64)
        self._biases = np.array(list(bias.values()), np.float32)
        self.has_answer_penalties = self._answer is not None or len(bias) > 0

    def sample(self, logits: Floats, position: int) -> SampledToken:
        """Choose the token at `position` (its index in prompt + answer) from logits (V,) float32, and count it.

        Raises GenerationError if the logits hold NaN or infinity, or leave no token to choose.
        """
        (sampled,) = sample_together([Draw(self, logits, position)])
        if not isinstance(sampled, SampledToken):
            raise sampled
        return sampled

    def accept(self, token_id: int) -> None:
        """Count a token of the answer that was chosen elsewhere; `sample` counts its own."""
        if self._context is not None:
            self._context.add(token_id)
        if self._answer is not None:
            self._answer.add(token_id)

    def _choose(self, scores: Floats, position: int) -> int:
        """The token of penalized scores (V,), which are overwritten."""
        params = self.params
        if params.temperature == 0:
            return int(scores.argmax())
        if self._native_draw is None:
            return draw_reference(scores, params, *self._key, position)
        token_id: int = self._native_draw(
            self._isa, scores, params.temperature, params.top_k, params.top_p, params.min_p, *self._key, position
        )
        if token_id < 0:
            raise GenerationError(TOO_LARGE)
        return token_id

    def _add_answer_penalties(self, scores: Floats) -> None:
        """Apply presence penalty, frequency penalty and biases in place to scores (V,)."""
        params = self.params
        if self._answer is not None:
            ids = self._answer.ids_below(len(scores))
            per_occurrence = self._answer.counts * np.float32(params.frequency_penalty)
            scores[ids] -= per_occurrence + np.float32(params.presence_penalty)
        if len(self._bias_ids):
            if self._bias_ids.max() >= len(scores):
                raise ValueError(
                    f"logit_bias names token {self._bias_ids.max()}, the vocabulary has {len(scores):,} tokens"
                )
            scores[self._bias_ids] += self._biases


@dataclass(frozen=True)
class Draw:
    """One token to be chosen: at `position` of prompt + answer, from logits (V,) float32.

    If `allowed` is given, only tokens that its mask (V,) allows can be chosen: the others first get the score -inf.
    """

    sampler: Sampler
    logits: Floats
    position: int
    allowed: Callable[[], npt.NDArray[np.bool_]] | None = None


def sample_together(draws: Sequence[Draw]) -> list[SampledToken | GenerationError]:
    """Choose the tokens of several requests at once. Each gets the same token or error as alone."""
    results: list[SampledToken | GenerationError] = []
    # In groups, because copies of all logits of a step would double their memory.
    together = max(1, _SCORES_AT_ONCE // max(1, len(draws[0].logits))) if draws else 1
    for start in range(0, len(draws), together):
        results += _sample_few(draws[start : start + together])
    return results


@np.errstate(over="ignore", invalid="ignore")  # scores beyond float32 become infinite, which is checked
def _sample_few(draws: Sequence[Draw]) -> list[SampledToken | GenerationError]:
    scores = np.array([draw.logits for draw in draws], np.float32)  # (B, V), to be overwritten
    is_sound = np.isfinite(scores.max(axis=1, initial=-np.inf)).tolist() if scores.ndim == 2 else [False] * len(draws)
    results: list[SampledToken | GenerationError | None] = [None] * len(draws)
    for index, draw in enumerate(draws):
        try:
            if not is_sound[index]:
                checked_logits(draw.logits)
            if draw.allowed is not None:
                _mask(scores[index], draw.allowed())
        except GenerationError as error:
            results[index] = error
    penalize(scores, [draw.sampler for draw in draws])
    for index, draw in enumerate(draws):
        if results[index] is None:
            results[index] = _sampled(draw, scores[index])
    return [result for result in results if result is not None]


def _sampled(draw: Draw, scores: Floats) -> SampledToken | GenerationError:
    """Choose a token from penalized scores (V,), and count it."""
    sampler = draw.sampler
    try:
        token_id = sampler._choose(scores, draw.position)
    except GenerationError as error:
        return error
    sampler.accept(token_id)
    if sampler.params.logprobs is None:
        return SampledToken(token_id)
    return scored_token(draw.logits, token_id, sampler.params.logprobs)


def _mask(scores: Floats, allowed: npt.NDArray[np.bool_]) -> None:
    scores[~allowed] = -np.inf
    if scores.max() == -np.inf:
        raise GenerationError("the model gives no chance to any allowed token; loosen the constraint")


def penalize(scores: Floats, samplers: Sequence[Sampler]) -> None:
    """Apply penalties and biases in place, in Hugging Face's order, to scores (B, V) of B samplers."""
    vocab_size = scores.shape[1]
    flat = scores.reshape(-1)
    places: dict[float, list[Integers]] = {}  # by penalty, since most requests have the same one
    for index, sampler in enumerate(samplers):
        if sampler._context is not None:
            ids = sampler._context.ids_below(vocab_size)
            places.setdefault(sampler.params.repetition_penalty, []).append(ids + index * vocab_size if index else ids)
    for value, parts in places.items():
        where, penalty = np.concatenate(parts) if len(parts) > 1 else parts[0], np.float32(value)
        seen = flat[where]
        flat[where] = np.where(seen < 0, seen * penalty, seen / penalty)
    for index, sampler in enumerate(samplers):
        if sampler.has_answer_penalties:
            sampler._add_answer_penalties(scores[index])


class _TokenCounts:
    """The count of each id, in arrays, so that the cost of a token does not grow with the length of the text."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        self._largest_id = -1

    @property
    def counts(self) -> Floats:
        """(n,), in the order of `ids_below`."""
        return self._counts[: len(self._slots)]

    def add(self, token_id: int) -> None:
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._new_slot(token_id)
        self._counts[slot] += 1

    def ids_below(self, vocab_size: int) -> Integers:
        """Ids (n,) seen so far. Raises ValueError if one is outside the logits."""
        if self._largest_id >= vocab_size:
            raise ValueError(f"token id {self._largest_id} of the prompt is beyond the {vocab_size:,} logits")
        return self._ids[: len(self._slots)]

    def _new_slot(self, token_id: int) -> int:
        if token_id < 0:
            raise ValueError(f"a token id must not be negative, got {token_id}")
        slot = len(self._slots)
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._slots[token_id] = slot
        self._ids[slot] = token_id
        self._largest_id = max(self._largest_id, token_id)
        return slot
