"""Writes every model folder of the package: tensor by tensor, read back, and moved into place.

    plan = plan_floats(config, copies=companion_files(folder))
    written = write_folder(destination, plan, content, label="converting")

Callers give the content of the folder (a `FolderPlan`) and yield each tensor's bytes; memory holds only what they
yield. The layout is Hugging Face's: weights in one file or in shards with an index, config.json and small files.
vLLM-CPM's layout differs only in names.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minicpm.errors import FormatError
from minicpm.export.destination import copy_file, forget_cached_pages, new_folder, report_full_disk, require_disk
from minicpm.files import json_text, write_text
from minicpm.formats import hf
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.compressed_tensors import Packing
from minicpm.formats.config import CONFIG_FILE, DecoderConfig
from minicpm.formats.derive import stream
from minicpm.formats.folder import ModelFolder
from minicpm.formats.generation import GENERATION_FILE
from minicpm.formats.hf import DEFAULT_SHARD_BYTES, PlannedFile
from minicpm.formats.safetensors import SafetensorsWriter
from minicpm.formats.sequential import writing
from minicpm.formats.tensor import TensorInfo
from minicpm.formats.text_sources import TOKENIZER_FILES
from minicpm.formats.torch_bin import TorchWriter
from minicpm.progress import Progress, Silent, task, watched

# "LICENSE.txt", "MiniCPM Model License.md" and "NOTICE" are copied with the weights.
LICENCE_WORDS = ("license", "licence", "notice")
MAX_SMALL_FILE_BYTES = 256 << 20

Content = Callable[[TensorInfo], Iterable[memoryview]]  # the bytes of a stored tensor, in chunks


@dataclass(frozen=True)
class FolderPlan:
    """Everything about a new model folder except the content of its tensors."""

    config: DecoderConfig
    config_text: str
    files: Sequence[PlannedFile]  # of weights; tensors are written in this order
    copies: Sequence[Path] = ()  # small files that are copied unchanged
    texts: Mapping[str, str] = field(default_factory=dict)  # other small files, by name
    packings: Mapping[str, Packing] = field(default_factory=dict)  # by published name
    form: str = "hf"
    published_name: Callable[[str], str] = str  # of a stored tensor

    @property
    def infos(self) -> list[TensorInfo]:
        return [info for planned in self.files for info in planned.tensors]

    @property
    def weight_bytes(self) -> int:
        return sum(info.nbytes for info in self.infos)


@dataclass(frozen=True)
class WrittenFolder:
    """The files at the destination."""

    files: tuple[str, ...]
    nbytes: int  # of all files


def plan_floats(
    config: DecoderConfig, copies: Sequence[Path] = (), texts: Mapping[str, str] | None = None
) -> FolderPlan:
    """The plan of a Hugging Face folder with every weight in the configuration's dtype."""
    infos = [TensorInfo(name, config.dtype, shape) for name, shape in config.parameter_shapes().items()]
    files = hf.plan_files(infos, DEFAULT_SHARD_BYTES)
    return FolderPlan(config, json_text(hf.write_config(config)), files, copies, texts or {})


def companion_files(path: Path, form: str = "hf") -> list[Path]:
    """The small files of a folder that are copied unchanged for `form`: tokenizer, licence, generation settings."""
    folder = ModelFolder(path)
    wanted = set(TOKENIZER_FILES) if form == "vllmcpm" else {*TOKENIZER_FILES, GENERATION_FILE}
    names = sorted(path.name for path in path.iterdir() if path.name in wanted or is_licence(path.name))
    copies = [folder.file(name) for name in names]
    for path in copies:
        if path.stat().st_size > MAX_SMALL_FILE_BYTES:
            raise FormatError(path, f"{path.stat().st_size} bytes are too many for this file; nothing was converted")
    return copies


def is_licence(name: str) -> bool:
    """Whether a file name is that of a licence or notice."""
    lower = name.lower()
    return any(word in lower for word in LICENCE_WORDS) and not lower.endswith((".py", ".json"))


def write_folder(
    destination: Path,
    plan: FolderPlan,
    content: Content,
    *,
    label: str,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> WrittenFolder:
    """Write the planned folder, compare what is on the disk with the plan, and move it to `destination`.

    `label` names the work for `progress`. Raises ValueError if the destination cannot be used, ModelError if the disk
    is too full or another process writes there, FormatError if a file reads back differently. After an error nothing
    half-written remains, and the destination is unchanged.
    """
    progress = progress or Silent()
    require_disk(destination, plan.weight_bytes, plan.copies)
    with report_full_disk(destination, plan.weight_bytes), new_folder(destination, overwrite) as folder:
        checksums = write_files(folder, plan, content, label=label, progress=progress)
        _check(folder, plan, checksums, progress)
        names = tuple(sorted(path.name for path in folder.iterdir()))
        return WrittenFolder(names, sum((folder / name).stat().st_size for name in names))


def write_files(
    folder: Path, plan: FolderPlan, content: Content, *, label: str, progress: Progress | None = None
) -> dict[str, int]:
    """Write all files of the plan into an empty folder, unchecked; return each tensor's CRC-32 by stored name."""
    progress = progress or Silent()
    for path in plan.copies:
        copy_file(path, folder / path.name)
    checksums: dict[str, int] = {}
    with task(progress, label, plan.weight_bytes):
        for planned in plan.files:
            checksums.update(_write_weights(folder / planned.name, planned, content, progress))
    if (index := hf.index_of(plan.files)) is not None:
        name, raw = index
        write_text(folder / name, json_text(raw))
    for name, text in {CONFIG_FILE: plan.config_text, **plan.texts}.items():
        write_text(folder / name, text)
    return checksums


def released(checkpoint: Checkpoint, name: str, factor: float = 1.0, dtype: str | None = None) -> Iterator[memoryview]:
    """A tensor times `factor`, rounded to `dtype` (None: its own), in blocks; pages that were read are released."""
    view = checkpoint.read(name)
    for block in stream(view, factor, dtype or view.dtype):
        yield block
        checkpoint.release(name)


def _write_weights(path: Path, planned: PlannedFile, content: Content, progress: Progress) -> dict[str, int]:
    is_safe = path.suffix == ".safetensors"
    opened = SafetensorsWriter(path, planned.tensors) if is_safe else TorchWriter(path, planned.tensors)
    with writing(opened) as writer:
        return {info.name: writer.write(info.name, watched(content(info), progress)) for info in planned.tensors}


def _check(folder: Path, plan: FolderPlan, checksums: Mapping[str, int], progress: Progress) -> None:
    """Open the written folder like any other model, and compare it with the plan."""
    for planned in plan.files:
        forget_cached_pages(folder / planned.name)
    expected = {plan.published_name(info.name): info for info in plan.infos}
    with task(progress, "checking", plan.weight_bytes), open_checkpoint(folder, allow_quantized=True) as written:
        if (written.format, written.config, written.packings) != (plan.form, plan.config, dict(plan.packings)):
            raise FormatError(folder / CONFIG_FILE, "reads back as another model; please report this as a bug")
        for name, info in written.tensors.items():
            wanted = expected[name]
            if (info.dtype, info.shape) != (wanted.dtype, wanted.shape):
                raise FormatError(folder, f"{name} reads back as {info.dtype} {list(info.shape)}")
            checksum = 0
            for block in watched(released(written, name), progress):
                checksum = zlib.crc32(block, checksum)
            if checksum != checksums[wanted.name]:
                raise FormatError(folder, f"{name} reads back with other bytes than were written; is the disk failing?")
