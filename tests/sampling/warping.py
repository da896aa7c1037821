"""Scores after all warpers, for comparison with Hugging Face's and the golden ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minicpm.sampling import Sampler
from minicpm.sampling.draw import penalize
from minicpm.sampling.reference import Ranking

Floats = npt.NDArray[np.float32]


@np.errstate(over="ignore")
def warped_scores(sampler: Sampler, logits: Floats) -> Floats:
    """Scores (V,) that the next token is drawn from, -inf where it cannot come from."""
    scores = np.array(logits, np.float32)
    penalize(scores[None], [sampler])
    if sampler.params.temperature == 0:
        ids = np.array([scores.argmax()], np.int64)
    else:
        scores /= np.float32(sampler.params.temperature)
        ids = Ranking(scores, sampler.params).kept_ids()
    warped = np.full_like(scores, -np.inf)
    warped[ids] = scores[ids]
    return warped
