"""vLLM-CPM: what the 2024 release converted to for its fork of vLLM, with BMTrain's names in one pytorch_model.pt.

The 2024 script always wrote dim_model_base 256, a context of 4096, a tied head and bf16, whatever the model said, and
dropped lm_head. Here the file says what is true; for MiniCPM-2B in bfloat16 that is the same, byte for byte.
"""

from __future__ import annotations

import math
import re
from typing import Any

from minicpm.errors import FormatError, ModelError
from minicpm.formats.config import DecoderConfig
from minicpm.formats.folder import ModelFolder
from minicpm.formats.mapped import TensorFile
from minicpm.formats.tensor import TensorInfo
from minicpm.formats.torch_bin import TorchFile

WEIGHTS_FILE = "pytorch_model.pt"
DTYPE_WORDS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

OUTER_NAMES = {
    "model.embed_tokens.weight": "input_embedding.weight",
    "model.norm.weight": "encoder.output_layernorm.weight",
    "lm_head.weight": "lm_head.weight",
}
# In the order of the 2024 script.
LAYER_NAMES = {
    "input_layernorm.weight": "self_att.layernorm_before_attention.weight",
    "self_attn.q_proj.weight": "self_att.self_attention.project_q.weight",
    "self_attn.k_proj.weight": "self_att.self_attention.project_k.weight",
    "self_attn.v_proj.weight": "self_att.self_attention.project_v.weight",
    "self_attn.o_proj.weight": "self_att.self_attention.attention_out.weight",
    "post_attention_layernorm.weight": "ffn.layernorm_before_ffn.weight",
    "mlp.gate_proj.weight": "ffn.ffn.w_in.w_0.weight",
    "mlp.up_proj.weight": "ffn.ffn.w_in.w_1.weight",
    "mlp.down_proj.weight": "ffn.ffn.w_out.weight",
}
PUBLISHED_OUTER = {stored: published for published, stored in OUTER_NAMES.items()}
PUBLISHED_LAYER = {stored: published for published, stored in LAYER_NAMES.items()}
PUBLISHED = re.compile(r"model\.layers\.(\d+)\.(.+)")
STORED = re.compile(r"encoder\.layers\.(\d+)\.(.+)")

# Its key -> config.json's.
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "dim_model": "hidden_size",
    "dim_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "base": "rope_theta",
    "orig_max_length": "max_position_embeddings",
    "tie_lm_head": "tie_word_embeddings",
    "activate_fn": "hidden_act",
    "dim_head": "head_dim",
    "scale_emb": "scale_emb",
    "scale_depth": "scale_depth",
    "dim_model_base": "dim_model_base",
}
# transformers' own keys; the 2024 file leaves them to their defaults.
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    """A CPMDragonfly config.json as a MiniCPM configuration; ModelError for what MiniCPM has not."""
    missing = [key for key in CONFIG_KEYS if key not in raw]
    if missing:
        raise ModelError(f"a vLLM-CPM config.json lacks {', '.join(missing)}")
    if raw.get("qk_norm", False):
        raise ModelError("qk_norm is set; MiniCPM does not normalise queries and keys")
    known = {ours: raw[theirs] for theirs, ours in CONFIG_KEYS.items()}
    known.update({key: raw[key] for key in TOKEN_KEYS if key in raw})
    known["model_type"] = "minicpm"
    kind = raw.get("rope_scaling_type", "")
    if kind:
        known["rope_scaling"] = {"type": kind, "factor": raw.get("rope_scaling_factor")}
    if not raw.get("scale", True):
        known.update(scale_emb=1.0, dim_model_base=known["hidden_size"])
    depth = known["scale_depth"]
    if isinstance(depth, int | float) and depth <= 0 and isinstance(known["num_hidden_layers"], int):
        # "Not above 0" means branches without a factor.
        known["scale_depth"] = math.sqrt(max(1, min(known["num_hidden_layers"], 1 << 20)))
    return DecoderConfig.from_dict(known)


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """config.json in the order of the 2024 script."""
    scaling = config.rope_scaling
    raw: dict[str, Any] = {
        "_dtype": DTYPE_WORDS[config.dtype],
        "activate_fn": "silu",
        "architectures": ["CPMDragonflyForCausalLM"],
        "model_type": "cpm_dragonfly",
        "base": _whole(config.rope_theta),
        "dim_ff": config.intermediate_size,
        "dim_head": config.head_dim,
        "dim_model": config.hidden_size,
        "dim_model_base": config.dim_model_base,
        "dropout_p": 0.0,
        "eps": config.rms_norm_eps,
        "init_std": config.initializer_range,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "num_layers": config.num_hidden_layers,
        "orig_max_length": config.max_position_embeddings,
        "pose_prob": 0.0,
        "pose_scaling_factor": 1.0,
        "qk_norm": False,
        "rope_scaling_factor": 1 if scaling is None else scaling.factor,
        "rope_scaling_type": "" if scaling is None else scaling.type,
        "scale": True,
        "scale_depth": config.scale_depth,
        "scale_emb": config.scale_emb,
        "tie_lm_head": config.tie_word_embeddings,
        "tp": 0,
        "transformers_version": "4.35.0",
        "vocab_size": config.vocab_size,
    }
    defaults, ids = DecoderConfig().to_dict(), config.to_dict()
    raw.update({key: ids[key] for key in TOKEN_KEYS if ids[key] != defaults[key]})
    return raw


def open_weights(folder: ModelFolder) -> dict[str, TensorFile]:
    """Stored tensor name -> the one opened file; FormatError unless the folder has exactly one *.pt."""
    names = sorted(path.name for path in folder.path.iterdir() if path.suffix == ".pt")
    if len(names) != 1:
        found = ", ".join(names) if names else "none"
        raise FormatError(folder.path, f"a vLLM-CPM folder holds exactly one *.pt file, found {found}")
    file = TorchFile(folder.file(names[0]))
    return dict.fromkeys(file.tensors, file)


def published_name(stored: str) -> str:
    """The published checkpoint's name of a tensor; an unknown name stays as it is."""
    if layer := STORED.fullmatch(stored):
        number, rest = layer.groups()
        return f"model.layers.{number}.{PUBLISHED_LAYER[rest]}" if rest in PUBLISHED_LAYER else stored
    return PUBLISHED_OUTER.get(stored, stored)


def stored_name(published: str) -> str:
    """vLLM-CPM's name of a published tensor; KeyError for a tensor that MiniCPM has not."""
    if layer := PUBLISHED.fullmatch(published):
        number, rest = layer.groups()
        return f"encoder.layers.{number}.{LAYER_NAMES[rest]}"
    return OUTER_NAMES[published]


def stored_order(tensors: list[TensorInfo]) -> list[TensorInfo]:
    """Tensors with stored names in the order of the 2024 script: embedding, final norm, layers, head."""
    outer = {"input_embedding.weight": 0, "encoder.output_layernorm.weight": 1, "lm_head.weight": 3}
    return sorted(tensors, key=lambda info: outer.get(info.name, 2))


def _whole(value: float) -> float:
    """10000 rather than 10000.0, as the 2024 script wrote it."""
    return int(value) if float(value).is_integer() else value
