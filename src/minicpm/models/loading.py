"""`load_model`: from a checkpoint in any published form to a model whose weights are the file's own pages.

Nothing is copied where the dtype fits: parameters are views of the memory map, so that a second process shares them
and a model is never held twice. Safer than `from_pretrained`: files are read by `minicpm.formats` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minicpm.errors import ModelError
from minicpm.formats.config import DecoderConfig
from minicpm.formats.tensor import FLOAT_DTYPES, TensorView
from minicpm.models.configuration import MiniCPMConfig
from minicpm.models.modeling import MiniCPMForCausalLM

if TYPE_CHECKING:
    from minicpm.formats.checkpoint import Checkpoint

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_model(
    source: str | Path | Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
) -> MiniCPMForCausalLM:
    """The model of a folder or an opened checkpoint, in evaluation mode.

    dtype: "float32", "float16", "bfloat16" or their torch.dtype; "auto" keeps the stored one. With the stored dtype on
    the CPU the parameters are views of the (private, writable) memory map: as long as nobody writes to them they cost
    no memory of this process. Raises FormatError for damaged files and ModelError when config.json and the weights do
    not belong together.
    """
    from minicpm.formats.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(Path(source)) if isinstance(source, str | Path) else source
    config = checkpoint.config
    _require_fitting_tensors(config, checkpoint)
    wanted = _dtype(dtype) or _dtype(checkpoint.tensors[EMBEDDING].dtype)
    assert wanted is not None
    hf_config = MiniCPMConfig.from_decoder_config(config.with_dtype(str(wanted).removeprefix("torch.")))
    if attn_implementation is not None:
        hf_config._attn_implementation = attn_implementation
    with torch.device("meta"):
        model = MiniCPMForCausalLM(hf_config)
    state = {name: _tensor(checkpoint.read(name), wanted, device) for name in config.parameter_shapes()}
    # strict=False only for the tied head, which parameter_shapes() leaves out; everything else was checked above.
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.generation_config.eos_token_id = hf_config.eos_token_id
    return model.eval()


def _require_fitting_tensors(config: DecoderConfig, checkpoint: Checkpoint) -> None:
    """One sentence for all that is missing, superfluous, mis-shaped or of a wrong type."""
    wanted, stored = config.parameter_shapes(), checkpoint.tensors
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    # A tied head may be stored beside its embedding, as torch.save does.
    allowed = {HEAD} | {name for name in stored if name.endswith(".rotary_emb.inv_freq")}
    problems += [f"{name} is not part of the model" for name in stored if name not in wanted and name not in allowed]
    for name, shape in wanted.items():
        if name in stored and tuple(stored[name].shape) != shape:
            problems.append(f"{name} has shape {list(stored[name].shape)} instead of {list(shape)}")
        elif name in stored and stored[name].dtype not in FLOAT_DTYPES:
            problems.append(f"{name} is stored as {stored[name].dtype} instead of {' or '.join(FLOAT_DTYPES)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"the weights do not fit config.json: {'; '.join(problems[:3])}{more}")


def _tensor(view: TensorView, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    stored = _dtype(view.dtype)
    assert stored is not None
    tensor = torch.frombuffer(view.buffer, dtype=stored).view(view.shape)
    return tensor.to(device=device, dtype=dtype)


def _dtype(name: str | torch.dtype) -> torch.dtype | None:
    """The torch.dtype of a name, None for "auto"."""
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name == "auto":
        return None
    if name not in FLOAT_DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(FLOAT_DTYPES)}, got {name!r}")
    found: Any = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
