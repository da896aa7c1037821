"""Granite: the same mathematics under IBM's names, known to vLLM, llama.cpp, mlx-lm and PEFT without our classes.

Only config.json differs; the weights stay byte for byte what they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minicpm.errors import ModelError, brief
from minicpm.formats.config import MUP_KEYS, DecoderConfig
from minicpm.formats.llama import SHARED_KEYS

MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    """A Granite config.json as a MiniCPM configuration; ModelError if its multipliers are no MiniCPM's."""
    known = {key: raw[key] for key in SHARED_KEYS if key in raw}
    known["tie_word_embeddings"] = raw.get("tie_word_embeddings", False)  # Granite's default
    plain = DecoderConfig.from_dict({"model_type": "minicpm", **known})
    multipliers = {name: _multiplier(raw, name) for name in MULTIPLIERS}
    expected = plain.head_dim**-0.5
    if not math.isclose(multipliers["attention_multiplier"], expected, rel_tol=1e-6):
        found = raw.get("attention_multiplier")
        raise ModelError(f"attention_multiplier is {found}, MiniCPM's is 1/sqrt(head_dim) = {expected:.6g}")
    return replace(
        plain,
        scale_emb=simple(multipliers["embedding_multiplier"]),
        scale_depth=scale_depth_of(multipliers["residual_multiplier"], plain.num_hidden_layers),
        dim_model_base=_dim_model_base(multipliers["logits_scaling"], plain.hidden_size),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """config.json for Granite readers."""
    raw = {key: value for key, value in config.to_dict().items() if key not in MUP_KEYS}
    raw.update(
        architectures=["GraniteForCausalLM"],
        model_type="granite",
        mlp_bias=False,
        embedding_multiplier=config.scale_emb,
        residual_multiplier=config.residual_scale,
        attention_multiplier=config.head_dim**-0.5,
        logits_scaling=config.hidden_size / config.dim_model_base,
    )
    return raw


def _multiplier(raw: dict[str, Any], name: str) -> float:
    value = raw.get(name, 1.0)  # Granite's default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ModelError(f"{name} must be a positive number, got {brief(value)}")
    return float(value)


def scale_depth_of(
    residual_multiplier: float, num_hidden_layers: int, rounded: Callable[[float], object] = float
) -> float:
    """The shortest number that gives exactly this multiplier: 1.4, where 0.2213... * sqrt(40) ends in ...0001.

    `rounded` is what the multiplier was stored as.
    """
    root = math.sqrt(num_hidden_layers)
    product = residual_multiplier * root
    for digits in range(1, 18):
        candidate = float(f"{product:.{digits}g}")
        if rounded(candidate / root) == rounded(residual_multiplier):
            return simple(candidate)
    return product


def _dim_model_base(logits_scaling: float, hidden_size: int) -> int:
    base = round(hidden_size / logits_scaling)
    if base < 1 or not math.isclose(hidden_size / base, logits_scaling, rel_tol=1e-9):
        raise ModelError(
            f"logits_scaling {logits_scaling} is not hidden_size {hidden_size} over a whole number "
            "(MiniCPM's dim_model_base)"
        )
    return base


def simple(value: float) -> float:
    """12 for 12.0, as a config.json writes it."""
    return int(value) if value.is_integer() else value
