"""`from_pretrained` of quantized folders that transformers cannot place: `load_model` behind transformers' keywords.

compressed-tensors packs `embed_tokens` and `lm_head` of these folders as well. transformers ties the float weights of
the two, which are then missing, so such a folder takes our own road. The others (preset int4-hf) stay with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from minicpm.errors import ModelError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.compressed_tensors import METHOD
from minicpm.formats.config import CONFIG_FILE, read_config_json
from minicpm.formats.generation import GENERATION_FILE
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.models.configuration import MiniCPMConfig
from minicpm.models.loading import load_model
from minicpm.models.modeling import MiniCPMForCausalLM, MiniCPMModel, MiniCPMPreTrainedModel

# Keywords of from_pretrained that say how files are found and read; there is nothing to decide about a local folder.
READING_KEYWORDS = {
    "adapter_kwargs", "cache_dir", "code_revision", "force_download", "ignore_mismatched_sizes", "local_files_only",
    "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder", "offload_state_dict", "proxies", "revision",
    "subfolder", "token", "use_safetensors", "weights_only", "_commit_hash", "_from_auto", "_from_pipeline",
}  # fmt: skip
NOTHING_MISSING = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def has_packed_embedding(folder: Path) -> bool:
    """True for a compressed-tensors folder whose embedding or head is packed; False for whatever is no such folder."""
    if not (folder / CONFIG_FILE).is_file():
        return False
    quantization = read_config_json(folder / CONFIG_FILE).get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        return False
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return EMBEDDING in checkpoint.packings or HEAD in checkpoint.packings


def load_packed(
    cls: type[MiniCPMPreTrainedModel],
    folder: Path,
    *,
    config: MiniCPMConfig | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    generation_config: GenerationConfig | None = None,
    output_loading_info: bool = False,
    **kwargs: Any,
) -> Any:
    """The model of `cls` over a folder's codes and scales, in evaluation mode; ModelError for what they cannot be."""
    if cls not in (MiniCPMForCausalLM, MiniCPMModel):
        raise ModelError(
            f"{folder} holds INT4 or INT8 codes, and {cls.__name__} needs floating-point weights; load the model that "
            "was quantized"
        )
    unknown = [name for name, value in kwargs.items() if name not in READING_KEYWORDS and value is not None]
    if unknown:
        raise ModelError(
            f"{', '.join(unknown)} cannot be used with {folder}, whose weights are INT4 or INT8 codes; it takes dtype, "
            "device_map, attn_implementation and config"
        )
    attention = attn_implementation or (config._attn_implementation if config is not None else None)
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        model = load_model(
            checkpoint,
            dtype=dtype or torch_dtype or "auto",
            device=_device(device_map),
            attn_implementation=attention,
            config=config,
        )
    if generation_config is None and (folder / GENERATION_FILE).is_file():
        generation_config = GenerationConfig.from_pretrained(folder)
        generation_config.eos_token_id = model.generation_config.eos_token_id
    model.generation_config = generation_config or model.generation_config
    chosen = model if cls is MiniCPMForCausalLM else model.model
    return (chosen, {name: [] for name in NOTHING_MISSING}) if output_loading_info else chosen


def _device(device_map: Any) -> torch.device:
    if device_map is None:
        return torch.get_default_device()
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device_map, dict) and len(set(map(str, device_map.values()))) == 1:
        return torch.device(next(iter(device_map.values())))
    if isinstance(device_map, str | int | torch.device):
        return torch.device(device_map)
    raise ModelError(f"device_map {device_map!r} spreads a quantized model over devices; pass one device")
