"""Prompt-lookup decoding: what followed the last time the same tokens stood there is guessed, and verified in one step.

Guesses never change an answer. A guessed token is kept only where sampling gives that very token, and its random
number depends on seed and position alone; so this is for backends whose logits don't depend on what a step computes
beside them. Whether it pays is measured, not believed: what a step of so many tokens takes, how many guesses are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

# Tokens that must have stood in the same order before; the longer match is preferred.
MATCHED_TOKENS = (3, 2)
# So many tokens the native engine computes straight from the packed weights (kDirectTokens, csrc/kernels/kernels.h).
MOST_STEP_TOKENS = 16
# What a drafted token is thought to cost, in plain steps, until one was drafted: too low is found out, too high never.
UNKNOWN_COST = 0.15
# Drafting has to promise so much more than a plain step: estimates are no better.
WORTHWHILE_GAIN = 1.05
# A right guess before anything is known of a text, and how fast experience replaces it.
FIRST_CHANCE, CHANCE_WEIGHT = 0.5, 0.1
# A measured time that isn't renewed fades, so that a step which was slow by accident is tried again.
TIME_WEIGHT, FADING_PER_STEP = 0.25, 0.999


class Guesses:
    """What one text's own past says about its next tokens, and how often that was right.

    Embeddings have no token ids: nothing is looked up that holds one of their content ids, and no guess goes into them.
    """

    def __init__(self) -> None:
        self.chance = FIRST_CHANCE
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # tokens -> where their latest occurrence but the newest ends
        self._newest: dict[tuple[int, ...], int] = {}

    @property
    def length(self) -> int:
        """Tokens of the text that were read."""
        return len(self._ids)

    def read(self, token_ids: Sequence[int]) -> None:
        """Go on with the text's next tokens."""
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
        """At most `most` tokens that followed the last time, none where the text's end is new to it."""
        for count in MATCHED_TOKENS:
            start = self._ends.get(tuple(self._ids[-count:]))
            if start is not None:
                proposed = self._ids[start : start + most]
                period = len(self._ids) - start  # a text that repeats itself goes on doing so
                while len(proposed) < most:
                    proposed.append(proposed[-period])
                return list(takewhile(lambda token_id: token_id >= 0, proposed))
        return []

    def learn(self, proposed: Sequence[int], actual: Sequence[int]) -> None:
        """Compare with what came: `actual` begins where `proposed` does, and ends with a difference if not before."""
        for guess, token_id in zip(proposed, actual):
            self.chance += CHANCE_WEIGHT * ((guess == token_id) - self.chance)


class StepTimes:
    """Seconds of a decoding step by the number of its tokens, learnt from the steps themselves."""

    def __init__(self) -> None:
        self._steps = 0
        self._measured: dict[int, tuple[float, int]] = {}  # tokens -> seconds, and the step they are of

    def learn(self, tokens: int, seconds: float) -> None:
        self._steps += 1
        known = self._measured.get(tokens)
        if known is not None:
            # One interruption by another program must not count for more than the doubled time.
            seconds = known[0] + TIME_WEIGHT * (min(seconds, 2 * known[0]) - known[0])
        self._measured[tokens] = (seconds, self._steps)

    def seconds(self, tokens: int) -> float | None:
        """What a step of `tokens` is expected to take; None where nothing like it was measured."""
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
    """What could be drafted for an answer: `count` tokens, each right with `probability` if those before it were."""

    probability: float
    count: int


def draft_lengths(times: StepTimes, chances: Sequence[Chance]) -> list[int]:
    """How many tokens to draft for each running answer, so that most tokens a second are expected; often none.

    A step of B answers makes B tokens; k drafted tokens of one answer add p + p**2 + ... + p**k. The likeliest are
    drafted first, whoever's they are, since one step verifies the drafts of all.
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
