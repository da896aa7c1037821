"""The Hugging Face folder: config.json beside model.safetensors or pytorch_model.bin, in one file or in shards.

Finds and checks the weight files of a folder, and plans new ones. It knows the names of files, not of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, ModelError, brief
from minicpm.files import is_plain_name, read_json_object
from minicpm.formats.config import DecoderConfig
from minicpm.formats.folder import ModelFolder
from minicpm.formats.mapped import TensorFile
from minicpm.formats.recognition import ADAPTER_FILE, adapter
from minicpm.formats.safetensors import SafetensorsFile, write_order
from minicpm.formats.tensor import TensorInfo
from minicpm.formats.torch_bin import TorchFile

MAX_INDEX_BYTES, MAX_SHARDS = 16 << 20, 4096
DEFAULT_SHARD_BYTES = 5 * 10**9  # huggingface_hub's and transformers' own

UNUSED_SUFFIXES = {".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz", ".distcp", ".part"}

# The files to look for, in transformers' order.
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SHARD = re.compile(r"(?:model|pytorch_model)-(\d{5})-of-(\d{5})\.(?:safetensors|bin)")


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.from_dict(raw)


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return config.to_dict()


def open_weights(folder: ModelFolder) -> dict[str, TensorFile]:
    """Stored tensor name -> the opened file that holds it. The caller closes the files."""
    for whole, index in zip(WHOLE_FILES, INDEX_FILES):
        if folder.has(whole):
            file = open_weight_file(folder.file(whole))
            return dict.fromkeys(file.tensors, file)
        if folder.has(index):
            return _open_shards(folder, folder.file(index))
    if shards := _shards_without_index(folder):
        return _open_all(folder, shards)
    if folder.has(ADAPTER_FILE):
        raise FormatError(folder.path, adapter(folder.path))
    raise FormatError(folder.path, f"no weights; expected one of {', '.join(WHOLE_FILES + INDEX_FILES)}{_hint(folder)}")


def open_weight_file(path: Path) -> TensorFile:
    """Open one file in the format of its suffix."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _hint(folder: ModelFolder) -> str:
    names = sorted(path.name for path in folder.path.iterdir())
    renamed = [name for name in names if name.endswith((".safetensors", ".bin")) and not is_training_state(name)]
    if len(renamed) == 1:
        suffix = Path(renamed[0]).suffix
        wanted = next(name for name in WHOLE_FILES if name.endswith(suffix))
        return f" (found {brief(renamed[0])}; if it holds the whole model, name it {wanted})"
    if renamed:
        return f" (found {', '.join(map(brief, renamed[:3]))}, but no index that says which tensor is in which file)"
    found = sorted({Path(name).suffix for name in names} & UNUSED_SUFFIXES)
    return f" (found {', '.join(found)} files, which this format does not use)" if found else ""


def is_training_state(name: str) -> bool:
    """Whether a trainer's file is not one of weights."""
    return name in ("training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.safetensors")


def _shards_without_index(folder: ModelFolder) -> list[str]:
    """The shards of a model whose index is missing: their names show whether the set is complete.

    Raises FormatError if some are missing. Shards in several forms or numbers are left to the caller's error.
    """
    matches = [match for path in folder.path.iterdir() if (match := SHARD.fullmatch(path.name))]
    if not matches:
        return []
    wholes = {(match[2], Path(match[0]).suffix) for match in matches}
    if len(wholes) > 1:
        return []
    count = int(matches[0][2])
    numbers = {int(match[1]) for match in matches}
    missing = [number for number in range(1, min(count, MAX_SHARDS) + 1) if number not in numbers]
    if missing or len(numbers) != count:
        shown = ", ".join(map(str, missing[:5])) + (" and more" if len(missing) > 5 else "")
        raise FormatError(folder.path, f"shard {shown} of {count} is missing, and so is the index; download it again")
    return sorted(match[0] for match in matches)


def _open_all(folder: ModelFolder, names: Sequence[str]) -> dict[str, TensorFile]:
    """The tensors of files that no index lists."""
    stored: dict[str, TensorFile] = {}
    try:
        for name in names:
            file = open_weight_file(folder.file(name))
            doubled = next((tensor for tensor in file.tensors if tensor in stored), None)
            stored.update(dict.fromkeys(file.tensors, file))
            if doubled is not None:
                raise FormatError(file.path, f"{brief(doubled)} is in another shard as well")
    except BaseException:
        for file in set(stored.values()):
            file.close()
        raise
    return stored


def _open_shards(folder: ModelFolder, index_path: Path) -> dict[str, TensorFile]:
    weight_map = _read_weight_map(index_path)
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise FormatError(index_path, f"names {len(names)} files, more than any model's ({MAX_SHARDS})")
    paths = {name: folder.file(name) for name in names}  # every path is checked before a file is opened
    files: dict[str, TensorFile] = {}
    try:
        for name, path in paths.items():
            files[name] = open_weight_file(path)
        for name, file in files.items():
            _require_listed(index_path, weight_map, name, file)
        for tensor, name in weight_map.items():
            if tensor not in files[name].tensors:
                raise FormatError(index_path, f"{brief(tensor)} should be in {name}, which does not hold it")
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return {tensor: files[name] for tensor, name in weight_map.items()}


def _read_weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path, MAX_INDEX_BYTES, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(path, "weight_map must be an object from tensor names to files")
    suffix = ".safetensors" if path.name.startswith("model.safetensors") else ".bin"
    for tensor, name in weight_map.items():
        if not is_plain_name(name) or not name.endswith(suffix):
            problem = (
                f"weight_map[{brief(tensor)}] is {brief(name)}, expected the name of a {suffix} file in this folder"
            )
            raise FormatError(path, problem)
    return weight_map


def _require_listed(index_path: Path, weight_map: dict[str, str], name: str, file: TensorFile) -> None:
    for tensor in file.tensors:
        listed = weight_map.get(tensor)
        if listed is None:
            raise FormatError(index_path, f"{brief(tensor)} is in {name} but not in weight_map")
        if listed != name:
            raise FormatError(index_path, f"{brief(tensor)} is in {name} as well as in {listed}")


# --- writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedFile:
    """A weight file to be written, and its tensors in order."""

    name: str
    tensors: tuple[TensorInfo, ...]


def plan_files(tensors: Sequence[TensorInfo], max_shard_bytes: int, as_bin: bool = False) -> list[PlannedFile]:
    """Divide tensors into files of at most `max_shard_bytes`. A larger tensor gets a file of its own."""
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in tensors:
        if shards[-1] and filled + info.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += info.nbytes
    stem, suffix = ("pytorch_model", ".bin") if as_bin else ("model", ".safetensors")
    if len(shards) == 1:
        return [PlannedFile(stem + suffix, _ordered(shards[0], as_bin))]
    total = len(shards)
    return [
        PlannedFile(f"{stem}-{number:05d}-of-{total:05d}{suffix}", _ordered(shard, as_bin))
        for number, shard in enumerate(shards, start=1)
    ]


def _ordered(shard: list[TensorInfo], as_bin: bool) -> tuple[TensorInfo, ...]:
    return tuple(shard if as_bin else write_order(shard))


def index_of(files: Sequence[PlannedFile]) -> tuple[str, dict[str, Any]] | None:
    """File name and content of the index that shards need; None for a single file."""
    if len(files) == 1:
        return None
    weight_map = {info.name: planned.name for planned in files for info in planned.tensors}
    total = sum(info.nbytes for planned in files for info in planned.tensors)
    name = INDEX_FILES[0] if files[0].name.endswith(".safetensors") else INDEX_FILES[1]
    return name, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def require_no_quantization(raw: dict[str, Any]) -> None:
    """Raise ModelError for quantized weights in a format that this version cannot read."""
    quantization = raw.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise ModelError(
            f"its weights are quantized ({brief(method or 'quantization_config is set')}); "
            "float32, float16 or bfloat16 weights are needed here; the native and numpy backends run INT4 and INT8 ones"
        )
