"""Names that earlier versions exported and this package no longer uses; `minicpm.sampling` warns when one is read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from minicpm.sampling.params import SamplingParams

# Parameters of the 2024 callers, by the names of golden/sampling. None of them is our default.
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
