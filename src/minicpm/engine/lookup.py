"""Prompt-lookup decoding: drafts the tokens that followed the same tokens earlier in the text, and verifies them.

Drafts never change an answer. A drafted token is kept only if sampling gives the same token, and a token's random
number depends only on seed and position. So it needs backends whose logits do not depend on the rest of a step. Whether
drafting is faster is measured: the time of a step by its number of tokens, and the share of accepted drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

# Lengths of the matched sequence of tokens; the longer match is preferred.
MATCHED_TOKENS = (3, 2)
# The native engine computes so many tokens directly from the packed weights (kDirectTokens, csrc/kernels/kernels.h).
MOST_STEP_TOKENS = 16
# Estimated cost of a drafted token, in plain steps, before the first measurement. An underestimate is corrected by the
# next measurement; an overestimate is never tried again.
UNKNOWN_COST = 0.15
# Drafting must be expected to be faster than a plain step by this factor, because estimates are not more accurate.
WORTHWHILE_GAIN = 1.05
# The chance of a right draft before any measurement, and the weight of each new measurement.
FIRST_CHANCE, CHANCE_WEIGHT = 0.5, 0.1
# A measured time fades until it is measured again, so that a step that was slow by accident is tried again.
TIME_WEIGHT, FADING_PER_STEP = 0.25, 0.999


class Guesses:
    """Proposes the next tokens of one text from its own past, and measures how often that was right.

    Content ids of embeddings are never matched and never proposed.
    """

    def __init__(self) -> None:
        self.chance = FIRST_CHANCE
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # tokens -> the end of their last occurrence but one
        self._newest: dict[tuple[int, ...], int] = {}

    @property
    def length(self) -> int:
        """The number of tokens that were read."""
        return len(self._ids)

    def read(self, token_ids: Sequence[int]) -> None:
        """Append the text's next tokens."""
        for token_id in token_ids:
            self._ids.append(token_id)
            end = len(self._ids)
            for count in MATCHED_TOKENS:
                if end < count:
                    continue
                key = tuple(self._ids[-count:])
                if min(key) < 0:
                    continue
                if key in self._newest:
                    self._ends[key] = self._newest[key]
                self._newest[key] = end

    def propose(self, most: int) -> list[int]:
        """At most `most` tokens that followed the last match of the text's end; none if there is no match."""
        for count in MATCHED_TOKENS:
            start = self._ends.get(tuple(self._ids[-count:]))
            if start is not None:
                proposed = self._ids[start : start + most]
                period = len(self._ids) - start  # assume that a repeating text continues to repeat
                while len(proposed) < most:
                    proposed.append(proposed[-period])
                return list(takewhile(lambda token_id: token_id >= 0, proposed))
        return []

    def learn(self, proposed: Sequence[int], actual: Sequence[int]) -> None:
        """Compare a proposal with the actual tokens from the same position on, which end at the first difference."""
        for guess, token_id in zip(proposed, actual):
            self.chance += CHANCE_WEIGHT * ((guess == token_id) - self.chance)


class StepTimes:
    """Seconds of a decoding step by its number of tokens, measured on the steps themselves."""

    def __init__(self) -> None:
        self._steps = 0
        self._measured: dict[int, tuple[float, int]] = {}  # tokens -> seconds, and the step of the measurement

    def learn(self, tokens: int, seconds: float) -> None:
        self._steps += 1
        known = self._measured.get(tokens)
        if known is not None:
            # Limit a measurement to twice the known time: another program may have interrupted the step.
            seconds = known[0] + TIME_WEIGHT * (min(seconds, 2 * known[0]) - known[0])
        self._measured[tokens] = (seconds, self._steps)

    def seconds(self, tokens: int) -> float | None:
        """The expected time of a step of `tokens` tokens; None if no step of at most so many was measured."""
        if tokens in self._measured:
            return self._faded(tokens)
        below = max((count for count in self._measured if count < tokens), default=None)
        if below is None:
            return None
        above = min((count for count in self._measured if count > tokens), default=None)
        start = self._faded(below)
        if above is None:
            return start * (1 + UNKNOWN_COST * (tokens - below))
        return start + (self._faded(above) - start) * (tokens - below) / (above - below)

    def _faded(self, tokens: int) -> float:
        seconds, step = self._measured[tokens]
        return seconds * FADING_PER_STEP ** (self._steps - step)


@dataclass(frozen=True)
class Chance:
    """A possible draft of an answer: `count` tokens, each right with `probability` if all before it are."""

    probability: float
    count: int


def draft_lengths(times: StepTimes, chances: Sequence[Chance]) -> list[int]:
    """The number of tokens to draft for each running answer, to maximize the expected tokens per second; often 0.

    A step of B answers makes B tokens; k drafted tokens of one answer add p + p**2 + ... + p**k. The likeliest tokens
    of all answers are drafted first, because one step verifies the drafts of all.
    """
    lengths = [0] * len(chances)
    plain = times.seconds(len(chances))
    if plain is None:
        return lengths
    gains = sorted(
        ((chance.probability**k, answer) for answer, chance in enumerate(chances) for k in range(1, chance.count + 1)),
        reverse=True,
    )
    tokens = float(len(chances))
    best, best_rate = 0, WORTHWHILE_GAIN * tokens / plain
    for count, (gain, _) in enumerate(gains[: max(0, MOST_STEP_TOKENS - len(chances))], start=1):
        tokens += gain
        seconds = times.seconds(len(chances) + count)
        if seconds is not None and tokens > best_rate * seconds:
            best, best_rate = count, tokens / seconds
    for _, answer in gains[:best]:
        lengths[answer] += 1
    return lengths
