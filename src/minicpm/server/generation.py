"""Shared by chat and plain completions: options to SamplingParams, usage, log-probabilities."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minicpm.engine.request import Completion
from minicpm.sampling import SampledToken, SamplingParams
from minicpm.server import responses
from minicpm.server.errors import APIError
from minicpm.server.model import ServedModel
from minicpm.server.requests import Body, Generation, ignored_fields

_OPTIONS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
)
# JavaScript reads numbers as doubles; a seed it cannot hold would not give the answer again.
_SEED_BITS = 53


def sampling_params(request: Generation, model: ServedModel, **more: Any) -> SamplingParams:
    """The model's own defaults, changed by what the request gives; `more` are options under other names there.

    Raises APIError naming the field that is out of range.
    """
    given = {name: value for name in _OPTIONS if (value := getattr(request, name)) is not None}
    given |= {name: value for name, value in more.items() if value is not None}
    given["seed"] = secrets.randbits(_SEED_BITS) if request.seed is None else request.seed % (1 << 64)
    given["ignore_eos"] = request.ignore_eos
    if request.logit_bias is not None:
        given["logit_bias"] = _biases(request.logit_bias, model.vocab_size)
    try:
        return replace(model.sampling, **given)
    except ValueError as error:
        raise _named(error, request, [*_OPTIONS, *more]) from None


def _named(error: ValueError, request: Generation, names: Sequence[str]) -> APIError:
    """The error of an option with the field that the client gave it in."""
    message, subject = str(error), str(error).partition(" must ")[0]
    # The longest first: stop is a part of stop_token_ids.
    by_length = sorted(names, key=len, reverse=True)
    field = next(
        (name for name in by_length if name in subject or name.removesuffix("s").replace("_", " ") in subject), None
    )
    if field == "max_tokens" and request.max_tokens is None:
        field = "max_completion_tokens"
        message = message.replace("max_tokens", field)
    return APIError(400, message, param=field, code="invalid_value")


def _biases(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    for token_id in given:
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) < 10 and int(token_id) < vocab_size):
            raise APIError(
                400,
                f"logit_bias maps token ids from 0 to {vocab_size - 1:,}, written as strings, to numbers",
                param="logit_bias",
                code="invalid_value",
            )
    return {int(token_id): bias for token_id, bias in given.items()}


@dataclass(frozen=True)
class Head:
    """The fields that all chunks of one response begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    seed: int

    @classmethod
    def new(cls, prefix: str, name: str, model: ServedModel, params: SamplingParams) -> Head:
        assert params.seed is not None
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), name, model.fingerprint, params.seed)

    def fields(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "seed": self.seed,
        }


def usage(completions: Sequence[Completion], choices: int) -> responses.Usage:
    """The usage of all choices; a prompt that `choices` consecutive completions share counts once."""
    firsts = completions[::choices]
    prompt = sum(completion.usage.prompt_tokens for completion in firsts)
    answer = sum(completion.usage.completion_tokens for completion in completions)
    cached = sum(completion.usage.cached_tokens for completion in firsts)
    return responses.Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=prompt + answer,
        prompt_tokens_details=responses.PromptTokensDetails(cached_tokens=cached),
    )


def note_usage(notes: dict[str, str], used: responses.Usage) -> None:
    """For the access log."""
    notes["prompt"] = str(used.prompt_tokens)
    notes["cached"] = str(used.prompt_tokens_details.cached_tokens)
    notes["completion"] = str(used.completion_tokens)


def note_ignored(notes: dict[str, str], body: Body) -> None:
    """For the access log: the fields of other programs, which change nothing here."""
    if names := ignored_fields(body):
        notes["ignored"] = ",".join(names)


def top_logprobs(model: ServedModel, token: SampledToken) -> list[responses.TopLogprob]:
    return [_top(model, token_id, logprob) for token_id, logprob in token.top_logprobs]


def token_logprob(model: ServedModel, token: SampledToken) -> responses.TokenLogprob:
    assert token.logprob is not None
    own = _top(model, token.token_id, token.logprob)
    return responses.TokenLogprob(**dict(own), top_logprobs=top_logprobs(model, token))


def _top(model: ServedModel, token_id: int, logprob: float) -> responses.TopLogprob:
    data = model.tokenizer.token_bytes(token_id)
    return responses.TopLogprob(token=data.decode("utf-8", "replace"), bytes=list(data), logprob=logprob)
