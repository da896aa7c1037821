"""config.json of a MiniCPM decoder: recognised, checked, and the home of the muP scalings.

The real 2024 file has no model_type, no tie_word_embeddings and no rope_theta, so a family is recognised
by its architectures, by model_type, or by the muP keys. Only known keys are taken over: nothing in the file
can steer a library to foreign code (auto_map, `_`-prefixed keys and nested configs are dropped).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from minicpm.errors import FormatError, ModelError, brief
from minicpm.files import read_json_object
from minicpm.formats.tensor import FLOAT_DTYPES

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 1 << 20
# Far above any member of the family (2B: 2304 / 5760 / 40 / 122753), far below what exhausts a machine.
MAX_HIDDEN_SIZE, MAX_LAYERS, MAX_HEADS, MAX_VOCAB_SIZE, MAX_POSITIONS = (
    1 << 16,
    1 << 10,
    1 << 10,
    1 << 22,
    1 << 24,
)

MUP_KEYS = ("scale_emb", "scale_depth", "dim_model_base")
# Supported values of rope_scaling and rope_parameters.
ROPE_KEYS = ("rope_type", "type", "factor", "rope_theta")


def residual_scale(scale_depth: float, num_hidden_layers: int) -> float:
    """Factor of every attention and MLP branch; L is the configured depth, also in truncated models."""
    return scale_depth / math.sqrt(num_hidden_layers)


def logit_scale(hidden_size: int, dim_model_base: int) -> float:
    """Factor of the final hidden state before the head."""
    return dim_model_base / hidden_size


def dynamic_rope_base(length: Any, *, theta: float, factor: float, trained_length: int, head_dim: int) -> Any:
    """Rotary base of dynamic NTK for texts of `length` tokens, a number or a float tensor of any shape.

    theta (f L / Lmax - (f - 1)) ** (D / (D - 2)) for L > Lmax, written so that nothing cancels: up to Lmax it is
    exactly theta in every precision, so equal bases as numbers are equal bases in the tensors of a model.
    """
    beyond = (length - trained_length) * (length > trained_length)
    return theta * (1.0 + factor * beyond / trained_length) ** (head_dim / (head_dim - 2))


@dataclass(frozen=True)
class RopeScaling:
    """Context extension: positions divided by `factor` (linear) or a base that grows past training length (dynamic)."""

    type: Literal["linear", "dynamic"]
    factor: float

    def __post_init__(self) -> None:
        if self.type not in ("linear", "dynamic"):
            raise ModelError(
                f"rope_scaling type {brief(self.type)} is not supported; MiniCPM has 'linear' and 'dynamic'"
            )
        if not (_is_number(self.factor) and 1.0 < self.factor <= 1024.0):
            raise ModelError(f"rope_scaling factor must be a number above 1, got {brief(self.factor)}")


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a MiniCPM decoder; defaults are those of the 2024 config class.

    Field names are config.json's. Raises ModelError for values no model can have.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0  # 0: as many as num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = True
    scale_emb: float = 1.0
    scale_depth: float = 1.0
    dim_model_base: int = 1
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        _check_int("vocab_size", self.vocab_size, MAX_VOCAB_SIZE)
        _check_int("hidden_size", self.hidden_size, MAX_HIDDEN_SIZE)
        _check_int("intermediate_size", self.intermediate_size, MAX_HIDDEN_SIZE * 8)
        _check_int("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)
        _check_int("num_attention_heads", self.num_attention_heads, MAX_HEADS)
        _check_int("num_key_value_heads", self.num_key_value_heads, MAX_HEADS)
        _check_int("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS)
        _check_int("dim_model_base", self.dim_model_base, MAX_HIDDEN_SIZE)
        for name in ("rms_norm_eps", "initializer_range", "rope_theta", "scale_emb", "scale_depth"):
            _check_positive(name, getattr(self, name))
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim {self.head_dim} is odd; rotary position embedding needs an even one")
        if self.head_dim == 2 and self.rope_scaling is not None and self.rope_scaling.type == "dynamic":
            raise ModelError("dynamic rope_scaling is undefined for head_dim 2")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ModelError(f"tie_word_embeddings must be true or false, got {brief(self.tie_word_embeddings)}")
        if self.dtype not in FLOAT_DTYPES:
            raise ModelError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, got {brief(self.dtype)}")
        for name in ("bos_token_id", "pad_token_id"):
            _check_token_id(name, getattr(self, name))
        for token_id in self.eos_token_ids:
            _check_token_id("eos_token_id", token_id)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def residual_scale(self) -> float:
        return residual_scale(self.scale_depth, self.num_hidden_layers)

    @property
    def logit_scale(self) -> float:
        return logit_scale(self.hidden_size, self.dim_model_base)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def context_length(self) -> int:
        """Positions the model is meant for: dynamic scaling stretches the trained ones by its factor."""
        if self.rope_scaling is None:
            return self.max_position_embeddings
        return int(self.max_position_embeddings * self.rope_scaling.factor)

    def rope_base(self, length: int) -> float:
        """Rotary base of a text of `length` tokens; only dynamic scaling past the trained positions changes it."""
        scaling = self.rope_scaling
        if scaling is None or scaling.type != "dynamic":
            return self.rope_theta
        base: float = dynamic_rope_base(
            length,
            theta=self.rope_theta,
            factor=scaling.factor,
            trained_length=self.max_position_embeddings,
            head_dim=self.head_dim,
        )
        return base

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Published tensor name -> shape of every stored parameter, in the order of the forward pass."""
        kv_size = self.num_key_value_heads * self.head_dim
        hidden, inter = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}"
            shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
            shapes[f"{layer}.self_attn.q_proj.weight"] = (hidden, hidden)
            shapes[f"{layer}.self_attn.k_proj.weight"] = (kv_size, hidden)
            shapes[f"{layer}.self_attn.v_proj.weight"] = (kv_size, hidden)
            shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
            shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
            shapes[f"{layer}.mlp.gate_proj.weight"] = (inter, hidden)
            shapes[f"{layer}.mlp.up_proj.weight"] = (inter, hidden)
            shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inter)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def to_dict(self) -> dict[str, Any]:
        """config.json of this model with nothing left to a reader's defaults."""
        eos = self.eos_token_id
        scaling = self.rope_scaling
        return {
            "architectures": ["MiniCPMForCausalLM"],
            "model_type": "minicpm",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dim_model_base": self.dim_model_base,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": None if scaling is None else {"type": scaling.type, "factor": scaling.factor},
            "rope_theta": self.rope_theta,
            "scale_depth": self.scale_depth,
            "scale_emb": self.scale_emb,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }

    def with_dtype(self, dtype: str) -> DecoderConfig:
        return replace(self, dtype=dtype)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> DecoderConfig:
        """Take the known keys of a MiniCPM config.json, the real 1,010-byte one or one transformers 5 wrote.

        Raises ModelError for another family, an unsupported feature or impossible values.
        """
        _require_minicpm_decoder(raw)
        known: dict[str, Any] = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        known["dtype"] = _dtype_name(raw.get("dtype") or raw.get("torch_dtype") or "float32")
        known["rope_theta"] = _rope_theta(raw, cls.rope_theta)
        known["rope_scaling"] = _rope_scaling(raw)
        if known.get("num_key_value_heads") is None:
            known["num_key_value_heads"] = 0
        if isinstance(known.get("eos_token_id"), list):
            known["eos_token_id"] = tuple(known["eos_token_id"])
        for key in ("attention_bias", "mlp_bias"):
            if raw.get(key):
                raise ModelError(f"{key} is true, but MiniCPM's projections have no biases")
        if raw.get("hidden_act", "silu") != "silu":
            raise ModelError(f"hidden_act {brief(raw['hidden_act'])} is not MiniCPM's 'silu'")
        config = cls(**known)
        head_dim = raw.get("head_dim")
        if head_dim is not None and head_dim != config.head_dim:
            raise ModelError(
                f"head_dim {brief(head_dim)} differs from hidden_size / num_attention_heads = {config.head_dim}; heads "
                "of another size are not supported"
            )
        return config


def read_config_json(path: Path) -> dict[str, Any]:
    """Read a config.json as a plain object; FormatError if it is missing, huge, not JSON or not an object."""
    if not path.is_file():
        raise FormatError(path, "no such file; a model folder holds config.json beside its weights")
    return read_json_object(path, MAX_CONFIG_BYTES)


def architecture_names(raw: dict[str, Any]) -> tuple[str, ...]:
    names = raw.get("architectures") or ()
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else (str(names),)


def _require_minicpm_decoder(raw: dict[str, Any]) -> None:
    names = architecture_names(raw)
    model_type = raw.get("model_type")
    if "num_experts" in raw or "num_local_experts" in raw:
        raise ModelError(
            "this is MiniCPM-MoE-8x2B (num_experts is set); mixture-of-experts models are not supported, "
            "use a dense MiniCPM-2B or MiniCPM-1B"
        )
    if model_type == "minicpmv" or "MiniCPMV" in names:
        raise ModelError("this is MiniCPM-V; this version runs the text models only")
    if model_type == "omnilmm" or "OmniLMMForCausalLM" in names:
        raise ModelError("this is OmniLMM; this version runs the text models only")
    if model_type == "minicpm3" or "MiniCPM3ForCausalLM" in names:
        raise ModelError("this is MiniCPM3, another architecture; transformers itself supports it")
    if model_type == "minicpm":
        return
    if model_type is None and "MiniCPMForCausalLM" in names and all(key in raw for key in MUP_KEYS):
        return
    found = f"model_type {brief(model_type)}, architectures {brief(list(names))}"
    raise ModelError(
        f"not a MiniCPM configuration ({found}); expected MiniCPMForCausalLM with {', '.join(MUP_KEYS)}, "
        "or LlamaForCausalLM"
    )


def _rope_objects(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rotary embedding's settings in a config.json: rope_scaling as in 2024, rope_parameters of transformers 5."""
    found = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if raw.get(key)}
    for key, rope in found.items():
        if not isinstance(rope, dict):
            raise ModelError(f"{key} must be null or an object, got {brief(rope)}")
    return found


def _rope_theta(raw: dict[str, Any], default: float) -> Any:
    given = [rope["rope_theta"] for rope in (raw, *_rope_objects(raw).values()) if rope.get("rope_theta") is not None]
    if any(theta != given[0] for theta in given):
        raise ModelError(f"rope_theta is given as {brief(given[0])} and as {brief(given[-1])}; keep the right one")
    return given[0] if given else default


def _rope_scaling(raw: dict[str, Any]) -> RopeScaling | None:
    if raw.get("partial_rotary_factor") not in (None, 1):
        raise ModelError("partial_rotary_factor is not 1, but MiniCPM rotates every dimension of a head")
    scalings = [_scaling_of(key, rope) for key, rope in _rope_objects(raw).items()]
    if any(scaling != scalings[0] for scaling in scalings):
        raise ModelError("rope_scaling and rope_parameters contradict each other; keep one of them")
    return scalings[0] if scalings else None


def _scaling_of(key: str, rope: dict[str, Any]) -> RopeScaling | None:
    """The scaling of one object; ModelError for rotations that MiniCPM does not use."""
    kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    if any(kind != kinds[0] for kind in kinds):
        raise ModelError(f"{key} has the rope_type {brief(kinds[0])} and the type {brief(kinds[1])}; keep one of them")
    if not kinds and rope.get("factor") is not None:
        raise ModelError(f"{key} has a factor but no type; MiniCPM has 'linear' and 'dynamic'")
    kind = kinds[0] if kinds else "default"
    scaling = None if kind == "default" else RopeScaling(kind, rope.get("factor"))  # type: ignore[arg-type]
    for name, value in rope.items():
        # transformers' linear and dynamic types do not read original_max_position_embeddings either.
        if value is None or name in (*ROPE_KEYS, "original_max_position_embeddings"):
            continue
        if name == "partial_rotary_factor" and value == 1:
            continue
        raise ModelError(
            f"{key} has {brief(name)}: {brief(value)}, which MiniCPM's rotary embedding has no place for; "
            f"expected {', '.join(ROPE_KEYS)}"
        )
    return scaling


def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_int(name: str, value: object, limit: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise ModelError(f"{name} must be a whole number from 1 to {limit}, got {brief(value)}")


def _check_positive(name: str, value: object) -> None:
    if not _is_number(value) or not value > 0:  # type: ignore[operator]
        raise ModelError(f"{name} must be a positive number, got {brief(value)}")


def _check_token_id(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31):
        raise ModelError(f"{name} must be a token id or null, got {brief(value)}")
