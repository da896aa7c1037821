"""From logits to a token: parameters, penalties, random numbers and draws."""

from minicpm.sampling.draw import (
    MAX_LOGPROBS,
    PRESETS_2024,
    Draw,
    SampledToken,
    Sampler,
    SamplingParams,
    draw_reference,
    sample_together,
    scored_token,
    uniform53,
)

__all__ = [
    "MAX_LOGPROBS",
    "PRESETS_2024",
    "Draw",
    "SampledToken",
    "Sampler",
    "SamplingParams",
    "draw_reference",
    "sample_together",
    "scored_token",
    "uniform53",
]
