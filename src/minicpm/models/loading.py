"""`load_model`: from a checkpoint in any published form to a model whose weights are the file's own pages.

Nothing is copied where the dtype fits: parameters are views of the memory map, so that a second process shares them
and a model is never held twice. Safer than `from_pretrained`: files are read by `minicpm.formats` only.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch

from minicpm.errors import ModelError
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.compressed_tensors import PACKED, SCALE
from minicpm.formats.llama import EMBEDDING
from minicpm.formats.tensor import FLOAT_DTYPES
from minicpm.models.configuration import MiniCPMConfig
from minicpm.models.modeling import MiniCPMForCausalLM
from minicpm.models.quantized import QuantizedEmbedding, QuantizedLinear
from minicpm.quant.format import IntWeight, read_weight


def load_model(
    source: str | Path | Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    config: MiniCPMConfig | None = None,
) -> MiniCPMForCausalLM:
    """The model of a folder or an opened checkpoint, in evaluation mode.

    dtype: "float32", "float16", "bfloat16" or their torch.dtype; "auto" keeps the stored one. With the stored dtype on
    the CPU the parameters are views of the (private, writable) memory map: as long as nobody writes to them they cost
    no memory of this process. Quantized weights of a checkpoint opened with `allow_quantized` stay codes and scales
    (models/quantized.py). config: used instead of the checkpoint's own, to change what is not in the weights.
    Raises what open_checkpoint raises: FormatError for damaged, missing or mis-shaped weights, ModelError for what is
    no MiniCPM; and ModelError for a config whose weights have other shapes.
    """
    if not isinstance(source, Checkpoint):
        with open_checkpoint(source) as checkpoint:  # views outlive the files they were read from
            return load_model(
                checkpoint, dtype=dtype, device=device, attn_implementation=attn_implementation, config=config
            )
    wanted = _dtype(source.config.dtype if dtype == "auto" else dtype)
    config = MiniCPMConfig.from_decoder_config(source.config) if config is None else deepcopy(config)
    if config.to_decoder_config().parameter_shapes() != source.config.parameter_shapes():
        raise ModelError(f"the given config has other shapes than the weights of {source.path}")
    config.dtype = wanted
    config._attn_implementation = attn_implementation
    with torch.device("meta"):
        model = MiniCPMForCausalLM(config)
    _place_quantized(model, source, wanted, torch.device(device))
    names = [name for name in source.config.parameter_shapes() if name not in source.packings]
    state = {name: _tensor(source, name, wanted, device) for name in names}
    # A tied head is not among the checkpoint's tensors; that everything else is, open_checkpoint has made sure of.
    model.load_state_dict(state, strict=not config.tie_word_embeddings, assign=True)
    if EMBEDDING not in source.packings:
        model.tie_weights()
    ends = source.eos_token_ids
    model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else next(iter(ends), None)
    return model.eval()


def _place_quantized(model: MiniCPMForCausalLM, source: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Put layers over codes and scales in the places of those whose weights are packed."""
    for name in source.packings:
        weight = read_weight(source, name)
        assert isinstance(weight, IntWeight)
        layer = QuantizedLinear.of(weight, device)
        source.release(name + PACKED)
        source.release(name + SCALE)
        if name != EMBEDDING:
            model.set_submodule(name.removesuffix(".weight"), layer)
            continue
        model.model.embed_tokens = QuantizedEmbedding(layer, model.config.scale_emb, dtype)
        if model.config.tie_word_embeddings:
            model.lm_head = layer


def _tensor(source: Checkpoint, name: str, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    view = source.read(name)
    stored = torch.frombuffer(view.buffer, dtype=_dtype(view.dtype)).view(view.shape)
    tensor = stored.to(device=device, dtype=dtype)
    if tensor is not stored:
        source.release(name)  # a copy was made: its source need not stay in memory beside it
    return tensor


def _name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if _name(dtype) not in FLOAT_DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(FLOAT_DTYPES)}, got {dtype!r}")
    found: torch.dtype = getattr(torch, _name(dtype))
    return found
