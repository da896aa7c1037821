"""From logits to a token: parameters, penalties, random numbers, draws and log-probabilities.

`params` has the parameters and their defaults, `draw` the penalties and the draw of a step, `reference` the definition
of a draw in numpy, and `logprobs` the log-probabilities.
"""

from __future__ import annotations

import warnings

from minicpm.sampling.draw import Draw, Sampler, sample_together
from minicpm.sampling.logprobs import SampledToken, scored_token
from minicpm.sampling.params import MAX_LOGPROBS, SamplingParams
from minicpm.sampling.reference import draw_reference, uniform53

__all__ = [
    "MAX_LOGPROBS",
    "Draw",
    "SampledToken",
    "Sampler",
    "SamplingParams",
    "draw_reference",
    "sample_together",
    "scored_token",
    "uniform53",
]


def __getattr__(name: str) -> object:
    if name != "PRESETS_2024":
        raise AttributeError(f"module 'minicpm.sampling' has no attribute {name!r}")
    warnings.warn(
        "minicpm.sampling.PRESETS_2024 is deprecated; write the SamplingParams that you want",
        DeprecationWarning,
        stacklevel=2,
    )
    from minicpm.sampling.deprecated import PRESETS_2024

    return PRESETS_2024
