"""MiniCPMConfig: DecoderConfig in transformers' clothes.

Whatever comes from a file passes through `minicpm.formats.config.DecoderConfig`, which knows the family, checks the
numbers and drops every key it does not know. What remains here is transformers' own vocabulary around it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig

from minicpm.errors import ModelError
from minicpm.formats import config as decoder
from minicpm.formats.config import DecoderConfig

# Keys beside DecoderConfig's that a config.json may set: labels of a classifier, and how to train or decode.
NEUTRAL_KEYS = ("attention_dropout", "id2label", "label2id", "problem_type", "pretraining_tp", "use_cache")
ARCHITECTURES = ("MiniCPMForCausalLM", "MiniCPMForSequenceClassification", "MiniCPMModel")
# Quantizers of transformers that read numbers and names only, no classes and no code.
QUANTIZATION_METHODS = ("awq", "bitsandbytes", "compressed-tensors", "gptq")


@strict
class MiniCPMConfig(LlamaConfig):
    """Configuration of MiniCPM-2B, -1B and -2B-128k: LlamaConfig plus the three muP constants.

    `scale_emb` multiplies token embeddings, `scale_depth` sets `residual_scale`, `dim_model_base` sets `logit_scale`.
    Defaults are those of the 2024 config class.
    """

    model_type = "minicpm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers reads a list)

    vocab_size: int = DecoderConfig.vocab_size
    hidden_size: int = DecoderConfig.hidden_size
    intermediate_size: int = DecoderConfig.intermediate_size
    num_hidden_layers: int = DecoderConfig.num_hidden_layers
    num_attention_heads: int = DecoderConfig.num_attention_heads
    max_position_embeddings: int = DecoderConfig.max_position_embeddings
    rms_norm_eps: float = DecoderConfig.rms_norm_eps
    tie_word_embeddings: bool = DecoderConfig.tie_word_embeddings
    scale_emb: float | int = DecoderConfig.scale_emb
    scale_depth: float | int = DecoderConfig.scale_depth
    dim_model_base: int = DecoderConfig.dim_model_base

    @property
    def residual_scale(self) -> float:
        """Factor of every attention and MLP branch before it joins the residual stream."""
        return decoder.residual_scale(self.scale_depth, self.num_hidden_layers)

    @property
    def logit_scale(self) -> float:
        """Factor of the final hidden state before the head. vLLM's transformers backend reads this very name."""
        return decoder.logit_scale(self.hidden_size, self.dim_model_base)

    def to_decoder_config(self) -> DecoderConfig:
        """The same model for the rooms that know no transformers; ModelError for values no MiniCPM can have."""
        raw = {name: getattr(self, name) for name in DecoderConfig.__dataclass_fields__ if hasattr(self, name)}
        raw.pop("rope_scaling", None)  # transformers' alias of rope_parameters
        raw["dtype"] = self.dtype or DecoderConfig.dtype
        for name in ("hidden_act", "attention_bias", "mlp_bias", "head_dim", "rope_parameters"):
            raw[name] = getattr(self, name)
        return DecoderConfig.from_dict({"model_type": self.model_type, **raw})

    @classmethod
    def from_decoder_config(cls, config: DecoderConfig) -> MiniCPMConfig:
        return cls(**_constructor_arguments(config.to_dict()))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config from the content of a config.json; only known keys are taken. ModelError as for DecoderConfig."""
        return super().from_dict(trusted_keys(config_dict), **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> MiniCPMConfig:
        # The inherited one hands the file's keys to the constructor unchecked.
        return cls.from_dict(json.loads(Path(json_file).read_bytes()))


def trusted_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the content of a config.json: known keys with possible values, nothing else.

    Gone are auto_map, `_`-keys (CVE-2026-4372: `_attn_implementation_internal` ran code), nested configs, weight
    redirections and generation settings. Raises ModelError for another family or impossible values.
    """
    checked = DecoderConfig.from_dict(raw).to_dict()
    if raw.get("dtype") is None and raw.get("torch_dtype") is None:
        del checked["torch_dtype"]  # transformers then asks the weights
    names = [name for name in decoder.architecture_names(raw) if name in ARCHITECTURES]
    checked["architectures"] = names or checked["architectures"]
    checked |= {key: raw[key] for key in NEUTRAL_KEYS if raw.get(key) is not None}
    if raw.get("quantization_config") is not None:
        checked["quantization_config"] = _checked_quantization(raw["quantization_config"])
    return _constructor_arguments(checked)


def _constructor_arguments(raw: dict[str, Any]) -> dict[str, Any]:
    """DecoderConfig.to_dict()'s keys in the words of transformers 5."""
    arguments = dict(raw)
    del arguments["model_type"]
    scaling = arguments.pop("rope_scaling") or {"type": "default"}
    arguments["rope_parameters"] = {"rope_type": scaling["type"], "rope_theta": float(arguments.pop("rope_theta"))}
    if "factor" in scaling:
        arguments["rope_parameters"]["factor"] = float(scaling["factor"])
    if "torch_dtype" in arguments:
        arguments["dtype"] = arguments.pop("torch_dtype")
    return arguments


def _checked_quantization(raw: object) -> dict[str, Any]:
    method = raw.get("quant_method") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or method not in QUANTIZATION_METHODS:
        known = ", ".join(QUANTIZATION_METHODS)
        raise ModelError(f"quantization_config names the method {method!r}; supported in a config.json are {known}")
    return dict(raw)
