"""From logits to a token: the parameters, their defaults, the order of operations and the random numbers.

The one place for sampling defaults. Everything here is defined so exactly that another language can give the same
token (docs/chat-and-sampling.md): weights are integers, so sums do not depend on their order, and the random number of
a token depends on (seed, choice, position) only. It knows logits and ids; text and models are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from minicpm import native
from minicpm.errors import GenerationError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Ceilings of what a request may carry: each is far beyond use and keeps one token's work bounded.
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 32
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIASES = 1024
MAX_SEED = (1 << 64) - 1

# Scores (float32) that are worked on together: 4 MB, which a second-level cache holds or nearly so.
_SCORES_AT_ONCE = 1 << 20

_TOO_LARGE = "the model's logits are too large for this temperature; try a higher one"


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Raises ValueError for a value out of range.

    Defaults: temperature and top_p of the release's README example (0.8, 0.8); repetition_penalty 1.02, the low end
    of the 1.02-1.05 its authors recommend; everything else is off. temperature 0 takes the most likely token.
    """

    max_tokens: int | None = None  # None: until the model stops or the context is full
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.02  # over prompt and answer; 1: off
    presence_penalty: float = 0.0  # over the answer only, as in OpenAI's API
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None  # None: another one for every request
    stop: tuple[str, ...] = ()  # also takes one string or a list
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # how many alternatives to report per token; 0: the chosen token's alone

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            self._set("max_tokens", _whole("max_tokens", self.max_tokens, 1, 1 << 31))
        self._set("temperature", _temperature(self.temperature))
        self._set("top_p", _number("top_p", self.top_p, 0.0, 1.0))
        self._set("top_k", _whole("top_k", self.top_k, 0, 1 << 31, hint=" (0 turns it off)"))
        self._set("min_p", _number("min_p", self.min_p, 0.0, 1.0))
        self._set("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0.01, 10.0))
        self._set("presence_penalty", _number("presence_penalty", self.presence_penalty, -2.0, 2.0))
        self._set("frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0))
        self._set("logit_bias", _logit_bias(self.logit_bias))
        if self.seed is not None:
            self._set("seed", _whole("seed", self.seed, 0, MAX_SEED))
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _stop_token_ids(self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos must be true or false, got {self.ignore_eos!r}")
        if self.logprobs is not None:
            self._set("logprobs", _whole("logprobs", self.logprobs, 0, MAX_LOGPROBS))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token; log-probabilities are of the model's raw distribution, before any penalty or temperature.

    `logprob` is None unless SamplingParams.logprobs asked; `top_logprobs` are (id, logprob), best first.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one request, one after another, and remembers which ids it has seen."""

    def __init__(self, params: SamplingParams, seed: int, prompt_ids: Iterable[int] = (), *, choice: int = 0):
        self.params = params
        self._key = (_whole("seed", seed, 0, MAX_SEED), _whole("choice", choice, 0, MAX_SEED))
        self._isa = None if native.why_missing() else native.isa()
        self._native_draw = None if self._isa is None else native.extension().draw
        # What nothing looks at isn't counted.
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

        Raises GenerationError when the logits hold NaN or infinity, or leave nothing to choose.
        """
        (sampled,) = sample_together([Draw(self, logits, position)])
        if not isinstance(sampled, SampledToken):
            raise sampled
        return sampled

    def accept(self, token_id: int) -> None:
        """Count a token of the answer that was chosen elsewhere; `sample` does this for its own."""
        if self._context is not None:
            self._context.add(token_id)
        if self._answer is not None:
            self._answer.add(token_id)

    @np.errstate(over="ignore")
    def warped_scores(self, logits: Floats) -> Floats:
        """Scores (V,) that the next token is drawn from: after all warpers, -inf where it cannot come from."""
        scores = _checked_logits(logits).copy()
        _penalize(scores[None], [self])
        if self.params.temperature == 0:
            ids = np.array([scores.argmax()], np.int64)
        else:
            scores /= np.float32(self.params.temperature)
            ids = _Ranking(scores, self.params).kept_ids()
        warped = np.full_like(scores, -np.inf)
        warped[ids] = scores[ids]
        return warped

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
            raise GenerationError(_TOO_LARGE)
        return token_id

    def _add_answer_penalties(self, scores: Floats) -> None:
        """Presence and frequency penalty and the biases, in place, in scores (V,)."""
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

    Only tokens that `allowed`, where given, returns (V,) can be chosen: the others score -inf before all else.
    """

    sampler: Sampler
    logits: Floats
    position: int
    allowed: Callable[[], npt.NDArray[np.bool_]] | None = None


def sample_together(draws: Sequence[Draw]) -> list[SampledToken | GenerationError]:
    """Choose the tokens of several requests at once: each the one, or the error, that it gives alone."""
    results: list[SampledToken | GenerationError] = []
    # Copies of all logits of a step would be as large again as those.
    together = max(1, _SCORES_AT_ONCE // max(1, len(draws[0].logits))) if draws else 1
    for start in range(0, len(draws), together):
        results += _sample_few(draws[start : start + together])
    return results


@np.errstate(over="ignore", invalid="ignore")  # scores beyond float32 become infinite, which is looked at
def _sample_few(draws: Sequence[Draw]) -> list[SampledToken | GenerationError]:
    scores = np.array([draw.logits for draw in draws], np.float32)  # (B, V), to be overwritten
    is_sound = np.isfinite(scores.max(axis=1, initial=-np.inf)).tolist() if scores.ndim == 2 else [False] * len(draws)
    results: list[SampledToken | GenerationError | None] = [None] * len(draws)
    for index, draw in enumerate(draws):
        try:
            if not is_sound[index]:
                _checked_logits(draw.logits)
            if draw.allowed is not None:
                _mask(scores[index], draw.allowed())
        except GenerationError as error:
            results[index] = error
    _penalize(scores, [draw.sampler for draw in draws])
    for index, draw in enumerate(draws):
        if results[index] is None:
            results[index] = _sampled(draw, scores[index])
    return [result for result in results if result is not None]


def _sampled(draw: Draw, scores: Floats) -> SampledToken | GenerationError:
    """Choose from penalized scores (V,), and count what was chosen."""
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
        raise GenerationError("the model gives no chance to any token that may come next; loosen the answer's form")


def _penalize(scores: Floats, samplers: Sequence[Sampler]) -> None:
    """Penalties and biases, in place and in Hugging Face's order, in scores (B, V) of as many samplers."""
    vocab_size = scores.shape[1]
    flat = scores.reshape(-1)
    places: dict[float, list[Integers]] = {}  # requests mostly have the same penalty
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


def draw_reference(scores: Floats, params: SamplingParams, seed: int, choice: int, position: int) -> int:
    """What csrc/sampling.cc computes, in numpy: the oracle of it, and the fallback without a compiler.

    Draws from penalized scores (V,), which are divided by the temperature in place.
    """
    scores /= np.float32(params.temperature)
    return _Ranking(scores, params).draw(uniform53(seed, choice, position))


def uniform53(seed: int, choice: int, position: int) -> int:
    """The random number of one token: a whole number below 2**53; divided by 2**53 it is uniform in [0, 1).

    Philox 4x64 with 10 rounds, key (seed, choice), counter (position, 0, 0, 0): the first of its four words,
    without the low 11 bits.
    """
    # numpy counts up before it generates, so it is started one block earlier.
    counter = (position - 1) & ((1 << 256) - 1)
    word = np.random.Philox(key=seed | choice << 64, counter=counter).random_raw()
    return int(word) >> 11


# --- Weights and ranks ---------------------------------------------------------------------------------------

# A token's weight is exp(score - best score) in units of 2**-35, rounded down (0 below: one in 3e10). float64 holds
# sums of such whole numbers exactly, whatever their order, for every vocabulary of up to 2**18.
_ONE = 1 << 35
_BUCKETS_PER_NAT = 64
_BUCKETS = 25 * _BUCKETS_PER_NAT  # exp(-24.3) is the smallest weight of 1

_CHUNK = 1 << 14

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # 9 bits: its product with a whole number is exact
_LN2_LOW = np.float32(-2.12194440e-4)
# Minimax polynomial of exp on [-ln 2 / 2, ln 2 / 2] after 1 + r, highest power first (Cephes expf).
_EXP_POLYNOMIAL = tuple(
    map(np.float32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
)


def _weights(scores: Floats, best: np.float32) -> Doubles:
    """exp(score - best) in units of 2**-35, rounded down, for scores (V,) <= best.

    Single-precision multiplications and additions alone, each rounded by itself, so every machine gives these bits;
    exp of the C library or of numpy does not. In place, because a fresh array costs more than a sum.
    """
    r = scores - best
    np.maximum(r, np.float32(-30.0), out=r)
    n = r * _LOG2_E
    np.rint(n, out=n)
    scratch = n * _LN2_HIGH
    r -= scratch
    np.multiply(n, _LN2_LOW, out=scratch)
    r -= scratch
    series = r * _EXP_POLYNOMIAL[0]
    for coefficient in _EXP_POLYNOMIAL[1:-1]:
        series += coefficient
        series *= r
    series += _EXP_POLYNOMIAL[-1]
    np.multiply(r, r, out=scratch)
    series *= scratch
    series += r
    series += np.float32(1)
    exponents = n.astype(np.int32)
    exponents += 127 + 35
    exponents <<= 23
    series *= exponents.view(np.float32)
    np.floor(series, out=series)
    return series.astype(np.float64)


def _buckets(scores: Floats, best: np.float32) -> Integers:
    """How far below the best each score is, in 64ths of a nat, from 0 to the last bucket."""
    depth = best - scores
    depth *= np.float32(_BUCKETS_PER_NAT)
    np.minimum(depth, np.float32(_BUCKETS - 1), out=depth)
    return depth.astype(np.int64)


def _chunks(scores: Floats) -> Iterator[tuple[int, Floats]]:
    """(first id, scores) of parts that stay in the cache; temporaries as large as a vocabulary cost page faults."""
    for start in range(0, len(scores), _CHUNK):
        yield start, scores[start : start + _CHUNK]


def _ids_in_bucket(scores: Floats, best: np.float32, bucket: int) -> Integers:
    return np.concatenate([start + np.flatnonzero(_buckets(chunk, best) == bucket) for start, chunk in _chunks(scores)])


def _top_k_ids(scores: Floats, k: int) -> Integers:
    """Ids of the k best scores (V,), ascending, with all that equal the k-th: Hugging Face's warper keeps them too."""
    best = scores.max()
    counts = sum(np.bincount(_buckets(chunk, best), minlength=_BUCKETS) for _, chunk in _chunks(scores))
    up_to = np.cumsum(counts)
    bucket = int(np.searchsorted(up_to, k))
    of_bucket = scores[_ids_in_bucket(scores, best, bucket)]
    worse = int(up_to[bucket]) - k
    kth = np.partition(of_bucket, worse)[worse]
    return np.concatenate([start + np.flatnonzero(chunk >= kth) for start, chunk in _chunks(scores)])


class _Ranking:
    """Scores (V,) as if sorted by (-score, id), cut by top_k, top_p and min_p, without sorting them all.

    The weights of buckets of equal width in score are summed; only a bucket in which a question falls is sorted.
    """

    def __init__(self, scores: Floats, params: SamplingParams):
        self._ids = _top_k_ids(scores, params.top_k) if 0 < params.top_k < len(scores) else None
        self._scores = scores if self._ids is None else scores[self._ids]
        self._best = self._scores.max()
        if np.isinf(self._best):
            raise GenerationError(_TOO_LARGE)
        sums = np.zeros(_BUCKETS)
        for _, chunk in _chunks(self._scores):
            sums += np.bincount(_buckets(chunk, self._best), _weights(chunk, self._best), _BUCKETS)
        self._weight_up_to = np.cumsum(sums)
        self._is_cut = params.top_p < 1.0 or params.min_p > 0.0
        self._kept_weight = self._cut(params)

    def draw(self, uniform: int) -> int:
        """The id at the fraction `uniform` / 2**53 of the kept weight."""
        rank = self._at((uniform * self._kept_weight) >> 53)[0]
        return rank if self._ids is None else int(self._ids[rank])

    def kept_ids(self) -> Integers:
        """Ids (n,) that `draw` may give, and those that weigh nothing where neither top_p nor min_p removes them."""
        kept = self._scores > -np.inf
        if self._is_cut:
            last, _ = self._at(self._kept_weight - 1)
            kept = self._scores > self._scores[last]
            kept[: last + 1] |= self._scores[: last + 1] == self._scores[last]
        indices = np.flatnonzero(kept)
        return indices if self._ids is None else self._ids[indices]

    def _cut(self, params: SamplingParams) -> int:
        """Weight that top_p and min_p leave: both keep a beginning of the ranking, so the shorter one wins."""
        kept = int(self._weight_up_to[-1])
        if params.top_p < 1.0:
            kept = self._at(max(0, math.ceil(params.top_p * kept) - 1))[1]
        if params.min_p > 0.0:
            near = [
                chunk[chunk >= self._best + np.float32(math.log(params.min_p) - 0.01)]
                for _, chunk in _chunks(self._scores)
            ]
            weights = _weights(np.concatenate(near), self._best)
            kept = min(kept, int(weights[weights >= params.min_p * _ONE].sum()))
        return kept

    def _at(self, weight: int) -> tuple[int, int]:
        """Index of the first score whose accumulated weight is above `weight`, and that accumulated weight."""
        bucket = int(np.searchsorted(self._weight_up_to, weight, side="right"))
        indices = _ids_in_bucket(self._scores, self._best, bucket)
        # They ascend already, so a stable sort leaves ties in the order of their ids.
        indices = indices[np.argsort(-self._scores[indices], kind="stable")]
        before = self._weight_up_to[bucket - 1] if bucket else 0.0
        weight_up_to = before + np.cumsum(_weights(self._scores[indices], self._best))
        rank = int(np.searchsorted(weight_up_to, weight, side="right"))
        return int(indices[rank]), int(weight_up_to[rank])


class _TokenCounts:
    """How often each id occurred, as arrays, so that a token costs the same however long the text already is."""

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
        """Ids (n,) seen so far; ValueError if one is no index into the logits."""
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


def _checked_logits(logits: Floats) -> Floats:
    logits = np.asarray(logits, np.float32)
    if logits.ndim != 1 or not len(logits):
        raise ValueError(f"logits must have the shape (vocab,), got {logits.shape}")
    best = logits.max()
    if np.isnan(best):
        first = int(np.isnan(logits).argmax())
        raise GenerationError(
            f"the model computed NaN for {int(np.isnan(logits).sum()):,} of {len(logits):,} logits (first: token "
            f"{first}); its weights are damaged or its number format overflowed, try dtype float32"
        )
    if np.isinf(best):
        what = "infinity for a logit" if best > 0 else "-inf for every logit, so there is no token to choose"
        raise GenerationError(f"the model computed {what}; its weights are damaged or its number format overflowed")
    return logits


def scored_token(logits: Floats, token_id: int, num_top: int) -> SampledToken:
    """A token with its log-probability under logits (V,) float32, and the `num_top` likeliest ones with theirs.

    Raises GenerationError when the logits hold NaN or infinity.
    """
    best = _checked_logits(logits).max()
    total = sum(float(np.exp(chunk - best).sum(dtype=np.float64)) for _, chunk in _chunks(logits))
    log_sum = float(best) + math.log(total)
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        ids = _top_k_ids(logits, min(num_top, len(logits)))
        ordered = ids[np.argsort(-logits[ids], kind="stable")][:num_top]
        top = tuple((int(i), float(logits[i]) - log_sum) for i in ordered)
    return SampledToken(token_id, float(logits[token_id]) - log_sum, top)


# --- Checks of parameters ------------------------------------------------------------------------------------


def _number(name: str, value: object, low: float, high: float) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r:.80}")
    return float(value)


def _temperature(value: object) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (value == 0 or 0.001 <= value <= 100):  # type: ignore[operator]
        raise ValueError(f"temperature must be 0 (the most likely token) or from 0.001 to 100, got {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def _whole(name: str, value: object, low: int, high: int, *, hint: str = "") -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}{hint}, got {value!r:.80}")
    return int(value)


def _logit_bias(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) > MAX_LOGIT_BIASES:
        raise ValueError(f"logit_bias must map at most {MAX_LOGIT_BIASES} token ids to numbers, got {value!r:.80}")
    return {
        _whole("a token id in logit_bias", token_id, 0, (1 << 31) - 1): _number("a logit_bias", bias, -100.0, 100.0)
        for token_id, bias in value.items()
    }


def _stop_strings(value: object) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, Sequence) or len(stops) > MAX_STOP_STRINGS:
        raise ValueError(f"stop must be a string or at most {MAX_STOP_STRINGS} of them, got {value!r:.80}")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise ValueError(f"a stop string must have 1 to {MAX_STOP_CHARACTERS} characters, got {stop!r:.80}")
    return tuple(stops)


def _stop_token_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) > MAX_STOP_TOKEN_IDS:
        raise ValueError(f"stop_token_ids must be a list of at most {MAX_STOP_TOKEN_IDS} ids, got {value!r:.80}")
    return tuple(_whole("a stop token id", token_id, 0, (1 << 31) - 1) for token_id in value)


# What the 2024 callers used, by the names of golden/sampling. None of them is our default.
PRESETS_2024: Mapping[str, SamplingParams] = MappingProxyType(
    {
        # model.chat(): transformers' implicit top_k of 50 applied.
        "minicpm_chat": SamplingParams(temperature=0.3, top_p=0.8, top_k=50, repetition_penalty=1.0),
        "hf_demo": SamplingParams(temperature=0.5, top_p=0.8, repetition_penalty=1.02),
        "minicpmv_sampling": SamplingParams(temperature=0.6, top_p=0.8, top_k=100, repetition_penalty=1.0),
        "minicpmv2_sampling": SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05),
        "omnilmm": SamplingParams(temperature=0.6, top_p=0.9, top_k=30, repetition_penalty=1.1),
    }
)
