"""Log-probabilities of a chosen token and of the likeliest alternatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minicpm.errors import GenerationError
from minicpm.sampling.reference import chunks, top_k_ids

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token; log-probabilities are of the model's raw distribution, before any penalty or temperature.

    `logprob` is None unless SamplingParams.logprobs is set; `top_logprobs` are (id, logprob), best first.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def scored_token(logits: Floats, token_id: int, num_top: int) -> SampledToken:
    """A token with its log-probability under logits (V,) float32, and the `num_top` likeliest ones with theirs.

    Raises GenerationError if the logits hold NaN or infinity.
    """
    best = checked_logits(logits).max()
    total = sum(float(np.exp(chunk - best).sum(dtype=np.float64)) for _, chunk in chunks(logits))
    log_sum = float(best) + math.log(total)
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        ids = top_k_ids(logits, min(num_top, len(logits)))
        ordered = ids[np.argsort(-logits[ids], kind="stable")][:num_top]
        top = tuple((int(i), float(logits[i]) - log_sum) for i in ordered)
    return SampledToken(token_id, float(logits[token_id]) - log_sum, top)


def checked_logits(logits: Floats) -> Floats:
    """Logits (V,) as float32. Raises GenerationError for NaN, infinity or only -inf, ValueError for another shape."""
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
