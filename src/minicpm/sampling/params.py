"""The sampling parameters: their defaults, ranges and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

# Limits of a request: each is far above practical use and bounds the work per token.
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 32
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIASES = 1024
MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Raises ValueError for a value out of range.

    Defaults: temperature and top_p of the release's README example (0.8, 0.8); repetition_penalty 1.02, the low end
    of the authors' recommended 1.02-1.05; everything else is off. temperature 0 takes the most likely token.
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
    seed: int | None = None  # None: a random one for every request
    stop: tuple[str, ...] = ()  # also takes one string or a list
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # alternatives to report per token; 0: only the chosen token's log-probability

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            self._set("max_tokens", whole_number("max_tokens", self.max_tokens, 1, 1 << 31))
        self._set("temperature", _temperature(self.temperature))
        self._set("top_p", _number("top_p", self.top_p, 0.0, 1.0))
        self._set("top_k", whole_number("top_k", self.top_k, 0, 1 << 31, hint=" (0 turns it off)"))
        self._set("min_p", _number("min_p", self.min_p, 0.0, 1.0))
        self._set("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0.01, 10.0))
        self._set("presence_penalty", _number("presence_penalty", self.presence_penalty, -2.0, 2.0))
        self._set("frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0))
        self._set("logit_bias", _logit_bias(self.logit_bias))
        if self.seed is not None:
            self._set("seed", whole_number("seed", self.seed, 0, MAX_SEED))
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _stop_token_ids(self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos must be true or false, got {self.ignore_eos!r}")
        if self.logprobs is not None:
            self._set("logprobs", whole_number("logprobs", self.logprobs, 0, MAX_LOGPROBS))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _number(name: str, value: object, low: float, high: float) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r:.80}")
    return float(value)


def _temperature(value: object) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (value == 0 or 0.001 <= value <= 100):  # type: ignore[operator]
        raise ValueError(f"temperature must be 0 (the most likely token) or from 0.001 to 100, got {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def whole_number(name: str, value: object, low: int, high: int, *, hint: str = "") -> int:
    """`value` as an int. Raises ValueError with its name unless it is a whole number from `low` to `high`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}{hint}, got {value!r:.80}")
    return int(value)


def _logit_bias(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) > MAX_LOGIT_BIASES:
        raise ValueError(f"logit_bias must map at most {MAX_LOGIT_BIASES} token ids to numbers, got {value!r:.80}")
    return {
        whole_number("a token id in logit_bias", token_id, 0, (1 << 31) - 1): _number(
            "a logit_bias", bias, -100.0, 100.0
        )
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
    return tuple(whole_number("a stop token id", token_id, 0, (1 << 31) - 1) for token_id in value)
