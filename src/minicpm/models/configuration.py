"""MiniCPMConfig: DecoderConfig in transformers' clothes.

Whatever comes from a file passes through `minicpm.formats.config.DecoderConfig`, which knows the family, checks the
numbers and drops every key it does not know. What a caller passes to the constructor, or changes before a model is made
or saved, passes the same check: whatever can be saved can be loaded. What remains here is transformers' own vocabulary.
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

# Keys beside DecoderConfig's that a config.json may set: labels of a classifier, how to train or decode, and what a
# call returns.
NEUTRAL_KEYS = (
    "attention_dropout",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "use_cache",
)
# What a caller may set in the place of what a file says: `from_pretrained(folder, rope_theta=1e6)`.
SHAPE_KEYS = ("hidden_act", "attention_bias", "mlp_bias", "head_dim", "rope_scaling", "rope_parameters")
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

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_attention_heads == 0:
            raise ModelError("num_attention_heads is 0")  # transformers divides by it
        # As they were given: transformers makes one object of them, without a word where they contradict each other.
        given = {name: kwargs.get(name) for name in ("rope_scaling", "rope_theta", "partial_rotary_factor")}
        given["rope_parameters"] = self.rope_parameters  # type: ignore[has-type]
        DecoderConfig.from_dict({"model_type": self.model_type, **given})
        super().__post_init__(**kwargs)
        self.num_key_value_heads = self._checked("float32").num_key_value_heads
        # Written one way, whatever the caller wrote: a config is equal to its saved self.
        self.rope_parameters = self.checked_rope_parameters()

    def validate_architecture(self) -> None:
        """Raise ModelError for what no MiniCPM can have; transformers calls it for a new config and before saving."""
        self._checked("float32")

    def to_decoder_config(self) -> DecoderConfig:
        """The same model for the rooms that know no transformers; ModelError for values no MiniCPM can have."""
        return self._checked(self.dtype or DecoderConfig.dtype)

    def checked_rope_parameters(self) -> dict[str, Any]:
        """rope_parameters in transformers' words, whatever a caller put there; ModelError for impossible values."""
        return dict(_constructor_arguments(self._checked("float32").to_dict())["rope_parameters"])

    def _checked(self, dtype: object) -> DecoderConfig:
        names = (*DecoderConfig.__dataclass_fields__, *SHAPE_KEYS)
        raw = {name: getattr(self, name) for name in names if hasattr(self, name)}
        del raw["rope_scaling"]  # transformers' alias of rope_parameters
        if isinstance(self.rope_parameters, dict) and self.rope_parameters.get("rope_theta") is None:
            raise ModelError("rope_parameters has no rope_theta; MiniCPM-2B has 10000, MiniCPM-2B-128k 1000000")
        return DecoderConfig.from_dict(raw | {"model_type": self.model_type, "dtype": dtype})

    @classmethod
    def from_decoder_config(cls, config: DecoderConfig) -> MiniCPMConfig:
        return cls(**_constructor_arguments(config.to_dict()))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config from the content of a config.json; only known keys are taken. ModelError as for DecoderConfig.

        Keywords take the place of what the file says about the same and are checked with the rest of it.
        """
        names = {*DecoderConfig.__dataclass_fields__, *SHAPE_KEYS} - {"dtype"}
        changes = {name: kwargs.pop(name) for name in names if name in kwargs}
        return super().from_dict(trusted_keys(_changed(config_dict, changes)), **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> MiniCPMConfig:
        # The inherited one hands the file's keys to the constructor unchecked.
        return cls.from_dict(json.loads(Path(json_file).read_bytes()))


def trusted_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the content of a config.json: known keys with possible values, nothing else.

    Gone are auto_map, `_`-keys (CVE-2026-4372: `_attn_implementation_internal` ran code), nested configs, weight
    redirections and generation settings. Raises ModelError for another family or impossible values.
    """
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    is_float64 = str(dtype).removeprefix("torch.") == "float64"
    # A model trained in float64 is transformers' affair alone.
    checked = DecoderConfig.from_dict(raw | {"dtype": "float32"} if is_float64 else raw).to_dict()
    if dtype is None:
        del checked["torch_dtype"]  # transformers then asks the weights
    elif is_float64:
        checked["torch_dtype"] = "float64"
    if raw.get("architectures") is None:
        del checked["architectures"]
    else:
        names = [name for name in decoder.architecture_names(raw) if name in ARCHITECTURES]
        checked["architectures"] = names or checked["architectures"]
    checked |= {key: raw[key] for key in NEUTRAL_KEYS if raw.get(key) is not None}
    if raw.get("quantization_config") is not None:
        checked["quantization_config"] = _checked_quantization(raw["quantization_config"])
    return _constructor_arguments(checked)


def _changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json with a caller's keywords in the place of what it says about the same."""
    raw = dict(raw)
    if {"hidden_size", "num_attention_heads"} & changes.keys():
        raw.pop("head_dim", None)
    ropes = [changes[key] or {} for key in ("rope_scaling", "rope_parameters") if key in changes]
    if ropes:
        theta = DecoderConfig.from_dict(raw | {"dtype": "float32"}).rope_theta
        raw = {key: value for key, value in raw.items() if key not in ("rope_scaling", "rope_parameters", "rope_theta")}
        if not any(isinstance(rope, dict) and "rope_theta" in rope for rope in ropes):
            raw["rope_theta"] = theta
    if "rope_theta" in changes:
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(raw.get(key), dict):
                raw[key] = {name: value for name, value in raw[key].items() if name != "rope_theta"}
    return raw | changes


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
