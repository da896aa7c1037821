"""Convert a model to another format, tensor by tensor. The result is checked, then moved into place at once.

    convert("MiniCPM-2B-dpo-bf16", "out", to="vllmcpm")

It needs some tens of megabytes of memory whatever the model's size, or the largest weight in float32 if the source is
quantized. hf_folder.py writes the folder, checks it and moves it into place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm.export.dequantized import open_dequantized
from minicpm.export.destination import check_places
from minicpm.export.hf_folder import FolderPlan, companion_files, released, write_folder
from minicpm.export.small_files import small_files
from minicpm.files import json_text
from minicpm.formats import granite, hf, llama, vllmcpm
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.derive import Derived, chain, unchanged
from minicpm.formats.hf import DEFAULT_SHARD_BYTES, PlannedFile
from minicpm.formats.tensor import FLOAT_DTYPES, TensorInfo
from minicpm.progress import Progress

TARGETS = ("hf", "llama", "granite", "vllmcpm")
# Unit roundoff of a dtype, and the smallest step near zero.
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


@dataclass(frozen=True)
class Conversion:
    """The result of `convert` or `write_gguf`."""

    source: Path
    destination: Path
    source_format: str
    format: str
    dtype: str
    tensors: int
    nbytes: int  # of all files
    files: tuple[str, ...]
    dequantized: str | None = None  # the kinds of the source's quantized weights, if they became floats


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    as_bin: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model `source`, a folder or a GGUF file, to the new folder `destination` in the format `to`.

    `dtype` is float32, float16 or bfloat16; None keeps each tensor's own. Quantized weights become floats; None is then
    float32, which holds the same numbers. `as_bin` writes pytorch_model.bin instead of
    safetensors. A source in llama format that records its constants is unfolded for any other format. Raises ValueError
    for invalid arguments, ModelError and FormatError for other failures. Nothing half-written remains.
    """
    source, destination = Path(source), Path(destination)
    _check_arguments(source, destination, to, dtype, max_shard_bytes, as_bin, overwrite)
    with open_dequantized(source) as checkpoint, small_files(checkpoint) as beside:
        if checkpoint.dequantized and dtype is None:
            dtype = "float32"
        copies = companion_files(beside, to)
        plan, derived = _plan(checkpoint, to, dtype, max_shard_bytes, as_bin, copies)

        def content(info: TensorInfo) -> Iterable[memoryview]:
            made = derived[plan.published_name(info.name)]
            return released(checkpoint, made.source, made.factor, info.dtype)

        written = write_folder(destination, plan, content, label="converting", overwrite=overwrite, progress=progress)
    return Conversion(
        source,
        destination,
        checkpoint.format,
        to,
        plan.config.dtype,
        len(derived),
        written.nbytes,
        written.files,
        checkpoint.dequantized,
    )


def _check_arguments(
    source: Path,
    destination: Path,
    to: str,
    dtype: str | None,
    max_shard_bytes: int,
    as_bin: bool,
    overwrite: bool,
) -> None:
    if to not in TARGETS:
        raise ValueError(f"cannot convert to {to!r}; choose one of {', '.join(TARGETS)}")
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, got {dtype!r}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    if as_bin and to == "vllmcpm":
        raise ValueError("vLLM-CPM has its own file, pytorch_model.pt; leave the .bin option out")
    check_places(source, destination, overwrite)


# --- planning ----------------------------------------------------------------------------------------------------


def _plan(
    checkpoint: Checkpoint, to: str, dtype: str | None, max_shard_bytes: int, as_bin: bool, copies: Sequence[Path]
) -> tuple[FolderPlan, dict[str, Derived]]:
    """The plan of the new folder, and by published name how each of its tensors is derived from the source's."""
    config, derived, kept = checkpoint.config, unchanged(checkpoint.config.parameter_shapes()), None
    if checkpoint.folded_scales is not None:
        if to == "llama":
            kept = checkpoint.folded_scales
        else:
            config, derived = _unfolded(checkpoint, checkpoint.folded_scales)
    if to == "llama" and kept is None:
        kept = llama.scales_to_keep(config)
        derived = chain(derived, llama.fold(config))
        config = llama.folded_config(config)
    if dtype is not None:
        config = config.with_dtype(dtype)
    name_of = vllmcpm.stored_name if to == "vllmcpm" else str
    infos = [
        TensorInfo(name_of(made.name), dtype or source.dtype, source.shape)
        for made in derived
        for source in [checkpoint.tensors[made.source]]
    ]
    if to == "vllmcpm":
        files = [PlannedFile(vllmcpm.WEIGHTS_FILE, tuple(vllmcpm.stored_order(infos)))]
    else:
        files = hf.plan_files(infos, max_shard_bytes, as_bin)
    plan = FolderPlan(
        config,
        _config_text(config, to, kept),
        files,
        copies,
        form=to,
        published_name=vllmcpm.published_name if to == "vllmcpm" else str,
    )
    return plan, {made.name: made for made in derived}


def _config_text(config: DecoderConfig, to: str, kept: llama.FoldedScales | None) -> str:
    if to == "vllmcpm":
        return json.dumps(vllmcpm.write_config(config), indent=4)  # the same bytes as the 2024 script writes
    raw: dict[str, Any] = {
        "hf": lambda: hf.write_config(config),
        "granite": lambda: granite.write_config(config),
        "llama": lambda: llama.write_config(config, kept),
    }[to]()
    return json_text(raw)


def _unfolded(checkpoint: Checkpoint, kept: llama.FoldedScales) -> tuple[DecoderConfig, list[Derived]]:
    """The model before folding. It is tied again if its head still equals its embedding."""
    untied = kept.unfolded(checkpoint.config)
    unfolding = llama.unfold(untied)
    if checkpoint.config.tie_word_embeddings:
        unfolding = [derived for derived in unfolding if derived.name != llama.HEAD]
    elif not (kept.tie_word_embeddings and _head_follows_embedding(checkpoint, untied)):
        return untied, unfolding
    tied = DecoderConfig.from_dict({**untied.to_dict(), "tie_word_embeddings": True})
    return tied, [derived for derived in unfolding if derived.name != llama.HEAD]


def _head_follows_embedding(checkpoint: Checkpoint, config: DecoderConfig) -> bool:
    """Whether unfolding gives the same head and embedding, up to rounding. Training may have made them differ."""
    embedding, head = checkpoint.read(llama.EMBEDDING), checkpoint.read(llama.HEAD)
    if embedding.dtype != head.dtype:
        return False
    relative = 2.1 * ROUNDOFF[head.dtype]  # both were rounded once
    absolute = SMALLEST[head.dtype] * (1 / config.logit_scale + 1 / config.scale_emb)
    pairs = zip(
        _float_blocks(checkpoint, llama.EMBEDDING, 1 / config.scale_emb),
        _float_blocks(checkpoint, llama.HEAD, 1 / config.logit_scale),
    )
    return all(bool(np.all(np.abs(one - other) <= relative * np.abs(one) + absolute)) for one, other in pairs)


def _float_blocks(checkpoint: Checkpoint, name: str, factor: float) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    for block in released(checkpoint, name, 1.0, "float32"):
        yield np.frombuffer(block, np.float32).astype(np.float64) * factor
