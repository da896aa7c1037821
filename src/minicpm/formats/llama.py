"""The llama-format of 2024: MiniCPM's constants multiplied into the weights, for engines that only know Llama.

Folding is exact arithmetic and one rounding: harmless in float32, about 40 % of bfloat16's own error in bfloat16.
A folder that we write keeps the constants in its config, so that the way back can divide them out again. A folder
without them (the published ones) is read as what it is: a MiniCPM whose scales are all 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from minicpm.errors import ModelError, brief
from minicpm.formats.config import MUP_KEYS, DecoderConfig
from minicpm.formats.derive import Derived

# The extra object in config.json; Llama readers ignore it.
KEPT_KEY = "minicpm_scales_folded_into_weights"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Keys that mean the same to Llama and to MiniCPM.
SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "head_dim",
)


@dataclass(frozen=True)
class FoldedScales:
    """The constants that went into the weights, and whether the head was the embedding."""

    scale_emb: float
    scale_depth: float
    dim_model_base: int
    tie_word_embeddings: bool

    def unfolded(self, config: DecoderConfig) -> DecoderConfig:
        """The configuration of the model before folding, with a head of its own."""
        return replace(
            config,
            scale_emb=self.scale_emb,
            scale_depth=self.scale_depth,
            dim_model_base=self.dim_model_base,
            tie_word_embeddings=False,
        )


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    """A Llama config.json as a MiniCPM configuration that computes the same: every scale is 1."""
    _require_plain_llama(raw)
    known = {key: raw[key] for key in SHARED_KEYS if key in raw}
    # Llama's default is an untied head, MiniCPM's a tied one.
    known["tie_word_embeddings"] = raw.get("tie_word_embeddings", False)
    return unit_scales(DecoderConfig.from_dict({"model_type": "minicpm", **known}))


def _require_plain_llama(raw: dict[str, Any]) -> None:
    """Raise ModelError for a variant of Llama that this version would compute wrongly."""
    window = raw.get("sliding_window")
    if window is not None and raw.get("use_sliding_window", True):
        raise ModelError(f"sliding_window is {brief(window)}, but this version computes full attention only")
    layer_types = raw.get("layer_types") or []
    if isinstance(layer_types, list) and any(kind != "full_attention" for kind in layer_types):
        raise ModelError("layer_types has layers without full attention, which this version cannot compute")
    rope = raw.get("rope_parameters")
    rotated = raw.get("partial_rotary_factor", rope.get("partial_rotary_factor") if isinstance(rope, dict) else None)
    if rotated not in (None, 1):
        raise ModelError(f"partial_rotary_factor is {brief(rotated)}, but this version rotates whole heads only")
    if raw.get("rope_interleaved"):
        raise ModelError("rope_interleaved is true, but this version rotates the halves of a head only")


def unit_scales(config: DecoderConfig) -> DecoderConfig:
    return replace(
        config, scale_emb=1.0, scale_depth=math.sqrt(config.num_hidden_layers), dim_model_base=config.hidden_size
    )


def kept_scales(raw: dict[str, Any]) -> FoldedScales | None:
    """The constants that a folder written by `convert` keeps; None in a published one, and where all of them are 1."""
    kept = raw.get(KEPT_KEY)
    if kept is None:
        return None
    if not isinstance(kept, dict) or kept.keys() != {*MUP_KEYS, "tie_word_embeddings"}:
        raise ModelError(f"{KEPT_KEY} must hold exactly {', '.join(MUP_KEYS)} and tie_word_embeddings")
    scales = FoldedScales(**kept)
    if not isinstance(scales.tie_word_embeddings, bool):
        raise ModelError(f"{KEPT_KEY}: tie_word_embeddings must be true or false")
    config = read_config(raw)
    unfolded = scales.unfolded(config)  # refuses impossible values
    has_unit_scales = unfolded == replace(unit_scales(unfolded), tie_word_embeddings=False)
    return None if has_unit_scales and scales.tie_word_embeddings == config.tie_word_embeddings else scales


def scales_to_keep(config: DecoderConfig) -> FoldedScales:
    return FoldedScales(config.scale_emb, config.scale_depth, config.dim_model_base, config.tie_word_embeddings)


def folded_config(config: DecoderConfig) -> DecoderConfig:
    """Configuration of the folded model: unit scales, and a head of its own unless there was nothing to fold."""
    is_tied = config.tie_word_embeddings and config.scale_emb == config.logit_scale == 1.0
    return replace(unit_scales(config), tie_word_embeddings=is_tied)


def write_config(folded: DecoderConfig, kept: FoldedScales | None) -> dict[str, Any]:
    """config.json of a folded model."""
    raw = {key: value for key, value in folded.to_dict().items() if key not in MUP_KEYS}
    raw.update(architectures=["LlamaForCausalLM"], model_type="llama", mlp_bias=False, pretraining_tp=1)
    if kept is not None:
        raw[KEPT_KEY] = {
            "scale_emb": kept.scale_emb,
            "scale_depth": kept.scale_depth,
            "dim_model_base": kept.dim_model_base,
            "tie_word_embeddings": kept.tie_word_embeddings,
        }
    return raw


def fold(config: DecoderConfig) -> list[Derived]:
    """Every tensor of the folded model from those of the MiniCPM `config`."""
    folded = [Derived(name, name, _factor(config, name)) for name in config.parameter_shapes()]
    if config.tie_word_embeddings and not folded_config(config).tie_word_embeddings:
        folded.append(Derived(HEAD, EMBEDDING, config.logit_scale))
    return folded


def unfold(config: DecoderConfig) -> list[Derived]:
    """Every tensor of the MiniCPM `config` from those of its folded form."""
    return [Derived(name, name, 1.0 / _factor(config, name)) for name in config.parameter_shapes()]


def _factor(config: DecoderConfig, name: str) -> float:
    if name == EMBEDDING:
        return config.scale_emb
    if name == HEAD:
        return config.logit_scale
    if name.endswith((".self_attn.o_proj.weight", ".mlp.down_proj.weight")):
        return config.residual_scale
    return 1.0
