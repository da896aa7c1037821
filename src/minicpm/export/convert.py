"""Convert a model folder to another form: tensor by tensor, checked after writing, in place all at once or not at all.

    convert("MiniCPM-2B-dpo-bf16", "out", to="vllmcpm")

Memory grows by some tens of megabytes whatever the model's size. The new folder grows under a hidden name beside its
destination; it is made durable, read back and compared, and only then renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm.errors import FormatError, ModelError
from minicpm.files import write_text
from minicpm.formats import granite, hf, llama, vllmcpm
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.derive import Derived, chain, stream, unchanged
from minicpm.formats.folder import ModelFolder, check_destination, copy_file, new_folder
from minicpm.formats.generation import GENERATION_FILE
from minicpm.formats.hf import DEFAULT_SHARD_BYTES, PlannedFile
from minicpm.formats.tensor import FLOAT_DTYPES, TensorInfo
from minicpm.formats.text_sources import TOKENIZER_FILES
from minicpm.progress import Progress, Silent

TARGETS = ("hf", "llama", "granite", "vllmcpm")
# "LICENSE.txt", "MiniCPM Model License.md", "NOTICE": they travel with the weights.
LICENCE_WORDS = ("license", "licence", "notice")
MAX_SMALL_FILE_BYTES = 256 << 20
# Room for directories and whatever the file system adds.
DISK_RESERVE_BYTES = 16 << 20
# Unit roundoff of a dtype, and the smallest step near zero.
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


@dataclass(frozen=True)
class Conversion:
    """What `convert` has done."""

    source: Path
    destination: Path
    source_format: str
    format: str
    dtype: str
    tensors: int
    nbytes: int  # of all files
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """Everything about the new folder that is known before a tensor is read."""

    config: DecoderConfig
    config_text: str
    derived: dict[str, Derived]  # by published name
    stored: dict[str, str]  # stored name -> published name
    files: list[PlannedFile]
    copies: list[Path]

    @property
    def weight_bytes(self) -> int:
        return sum(info.nbytes for planned in self.files for info in planned.tensors)


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
    """Write the model in folder `source` to the new folder `destination` in the form `to`.

    `dtype` is float32, float16 or bfloat16; None keeps each tensor's own. `as_bin` writes pytorch_model.bin instead of
    safetensors. A llama-format source that keeps its constants is unfolded on the way to any other form. Raises
    ValueError for arguments that cannot be, ModelError and FormatError for the rest; nothing half-written remains.
    """
    source, destination = Path(source), Path(destination)
    progress = progress or Silent()
    _check_arguments(source, destination, to, dtype, max_shard_bytes, as_bin, overwrite)
    with open_checkpoint(source) as checkpoint:
        plan = _plan(checkpoint, to, dtype, max_shard_bytes, as_bin)
        require_disk(destination, plan.weight_bytes, plan.copies)
        try:
            with new_folder(destination, overwrite) as folder:
                checksums = _write(folder, plan, checkpoint, progress)
                _check(folder, to, plan, checksums, progress)
                names = tuple(sorted(path.name for path in folder.iterdir()))
                nbytes = sum((folder / name).stat().st_size for name in names)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                problem = f"{destination}: the disk is full; the model needs {plan.weight_bytes} bytes"
                raise ModelError(f"{problem}, nothing was kept") from error
            raise
    return Conversion(source, destination, checkpoint.format, to, plan.config.dtype, len(plan.derived), nbytes, names)


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


def check_places(source: Path, destination: Path, overwrite: bool) -> None:
    """ValueError or ModelError unless `source` is a folder and a new one may come to stand at `destination`."""
    ModelFolder(source)
    inside, outside = destination.resolve(), source.resolve()
    if inside == outside:
        raise ValueError(f"{destination}: source and destination are the same folder; name another destination")
    if inside.is_relative_to(outside):
        raise ValueError(f"{destination}: the destination lies inside the source folder; choose a place outside it")
    if outside.is_relative_to(inside):
        raise ValueError(f"{destination}: the source folder lies inside the destination; choose another destination")
    check_destination(destination, overwrite)


# --- planning ----------------------------------------------------------------------------------------------------


def _plan(checkpoint: Checkpoint, to: str, dtype: str | None, max_shard_bytes: int, as_bin: bool) -> _Plan:
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
    by_name = {made.name: made for made in derived}
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
    return _Plan(
        config=config,
        config_text=_config_text(config, to, kept),
        derived=by_name,
        stored={name_of(name): name for name in by_name},
        files=files,
        copies=companion_files(checkpoint, to),
    )


def _config_text(config: DecoderConfig, to: str, kept: llama.FoldedScales | None) -> str:
    if to == "vllmcpm":
        return json.dumps(vllmcpm.write_config(config), indent=4)  # byte for byte the 2024 script's
    raw: dict[str, Any] = {
        "hf": lambda: hf.write_config(config),
        "granite": lambda: granite.write_config(config),
        "llama": lambda: llama.write_config(config, kept),
    }[to]()
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def companion_files(checkpoint: Checkpoint, to: str) -> list[Path]:
    """The small files that go along unchanged into the form `to`: tokenizer, licence, generation settings."""
    folder = ModelFolder(checkpoint.path)
    wanted = set(TOKENIZER_FILES) if to == "vllmcpm" else {*TOKENIZER_FILES, GENERATION_FILE}
    names = sorted(path.name for path in checkpoint.path.iterdir() if path.name in wanted or is_licence(path.name))
    copies = [folder.file(name) for name in names]
    for path in copies:
        if path.stat().st_size > MAX_SMALL_FILE_BYTES:
            raise FormatError(path, f"{path.stat().st_size} bytes are absurd for this file; nothing was converted")
    return copies


def is_licence(name: str) -> bool:
    """True for the name of a file with the terms of the weights."""
    lower = name.lower()
    return any(word in lower for word in LICENCE_WORDS) and not lower.endswith((".py", ".json"))


def _unfolded(checkpoint: Checkpoint, kept: llama.FoldedScales) -> tuple[DecoderConfig, list[Derived]]:
    """The model before folding; it is tied again if its head still follows from its embedding."""
    untied = kept.unfolded(checkpoint.config)
    unfolding = llama.unfold(untied)
    if checkpoint.config.tie_word_embeddings:
        unfolding = [derived for derived in unfolding if derived.name != llama.HEAD]
    elif not (kept.tie_word_embeddings and _head_follows_embedding(checkpoint, untied)):
        return untied, unfolding
    tied = DecoderConfig.from_dict({**untied.to_dict(), "tie_word_embeddings": True})
    return tied, [derived for derived in unfolding if derived.name != llama.HEAD]


def _head_follows_embedding(checkpoint: Checkpoint, config: DecoderConfig) -> bool:
    """True unless somebody trained the folded head apart from the folded embedding."""
    embedding, head = checkpoint.read(llama.EMBEDDING), checkpoint.read(llama.HEAD)
    if embedding.dtype != head.dtype:
        return False
    relative = 2.1 * ROUNDOFF[head.dtype]  # each of the two was rounded once
    absolute = SMALLEST[head.dtype] * (1 / config.logit_scale + 1 / config.scale_emb)
    pairs = zip(
        _float_blocks(checkpoint, llama.EMBEDDING, 1 / config.scale_emb),
        _float_blocks(checkpoint, llama.HEAD, 1 / config.logit_scale),
    )
    return all(bool(np.all(np.abs(one - other) <= relative * np.abs(one) + absolute)) for one, other in pairs)


def _float_blocks(checkpoint: Checkpoint, name: str, factor: float) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    for block in _released(checkpoint, name, 1.0, "float32"):
        yield np.frombuffer(block, np.float32).astype(np.float64) * factor


def require_disk(destination: Path, weight_bytes: int, copies: list[Path]) -> None:
    """ModelError unless weights and copied files fit on the destination's disk."""
    needed = weight_bytes + sum(path.stat().st_size for path in copies) + DISK_RESERVE_BYTES
    parent = destination.resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ModelError(
            f"{destination}: needs {needed} bytes of disk, {free} are free; make room or choose another disk"
        )


# --- writing and checking ----------------------------------------------------------------------------------------


def _write(folder: Path, plan: _Plan, checkpoint: Checkpoint, progress: Progress) -> dict[str, int]:
    """Write everything but the rename; returns the CRC-32 of every tensor by published name."""
    for path in plan.copies:
        copy_file(path, folder / path.name)
    target = {info.name: info for planned in plan.files for info in planned.tensors}

    def content(stored: str) -> Iterable[memoryview]:
        made = plan.derived[plan.stored[stored]]
        return _watched(_released(checkpoint, made.source, made.factor, target[stored].dtype), progress, target[stored])

    checksums: dict[str, int] = {}
    progress.begin("converting", plan.weight_bytes)
    try:
        for stored, checksum in hf.write_weights(folder, plan.files, content):
            checksums[plan.stored[stored]] = checksum
    finally:
        progress.end()
    index = None if plan.files[0].name == vllmcpm.WEIGHTS_FILE else hf.index_of(plan.files)
    if index is not None:
        name, raw = index
        write_text(folder / name, json.dumps(raw, indent=2) + "\n")
    write_text(folder / "config.json", plan.config_text)
    return checksums


def _released(checkpoint: Checkpoint, name: str, factor: float, dtype: str) -> Iterator[memoryview]:
    """A source tensor's derived bytes in blocks, giving its pages back behind the reader."""
    for block in stream(checkpoint.read(name), factor, dtype):
        yield block
        checkpoint.release(name)


def _watched(chunks: Iterable[memoryview], progress: Progress, info: TensorInfo) -> Iterator[memoryview]:
    for chunk in chunks:
        yield chunk
        progress.advance(chunk.nbytes)


def _check(folder: Path, to: str, plan: _Plan, checksums: dict[str, int], progress: Progress) -> None:
    """Open what was written as a stranger would, and compare it with what was meant."""
    for planned in plan.files:
        forget_cached_pages(folder / planned.name)
    progress.begin("checking", plan.weight_bytes)
    try:
        with open_checkpoint(folder) as written:
            if written.format != to or written.config != plan.config:
                raise FormatError(folder / "config.json", "reads back as another model; please report this as a bug")
            expected = {plan.stored[info.name]: info for planned in plan.files for info in planned.tensors}
            for name, info in written.tensors.items():
                if (info.dtype, info.shape) != (expected[name].dtype, expected[name].shape):
                    raise FormatError(folder, f"{name} reads back as {info.dtype} {list(info.shape)}")
                checksum = 0
                for block in _watched(_released(written, name, 1.0, info.dtype), progress, info):
                    checksum = zlib.crc32(block, checksum)
                if checksum != checksums[name]:
                    raise FormatError(
                        folder, f"{name} reads back with other bytes than were written; is the disk failing?"
                    )
    finally:
        progress.end()


def forget_cached_pages(path: Path) -> None:
    """Let the check read from the disk rather than from memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
