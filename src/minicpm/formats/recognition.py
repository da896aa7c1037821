"""What a folder or its weights are if they are no model that this package reads, in a sentence with what to do.

Only names of files, small JSON files and names of tensors are looked at. Every answer is a clause for an error message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, brief
from minicpm.files import file_in, has_entry, read_json_object
from minicpm.formats.config import CONFIG_FILE
from minicpm.formats.tensor import TensorInfo

ADAPTER_FILE = "adapter_config.json"
MAX_SMALL_FILE_BYTES = 1 << 20
MAX_ENTRIES = 10_000
FLOAT_ADVICE = "use the model in floating point, or a GGUF file of it"
CHECKPOINT = re.compile(r"(?:checkpoint|step|iter|epoch)[-_]?(\d+)")
ADAPTER_PARTS = ("lora_A", "lora_B", "base_layer", "modules_to_save")


def folder_without_config(folder: Path) -> str | None:
    """What a folder without config.json is and what to give instead; None if nothing is recognised."""
    names = _names(folder)
    if ADAPTER_FILE in names:
        return adapter(folder)
    if "run.json" in names and ("final" in names or "checkpoints" in names):
        return f"is the folder of a training run; {_run_advice(folder)}"
    if folder.name == "checkpoints" and has_entry(folder.parent, "run.json"):
        return f"holds the checkpoints of a training run; {_run_advice(folder.parent)}"
    if "snapshots" in names and "refs" in names:
        return _cached_repository(folder)
    repositories = sorted(name for name in names if name.startswith("models--"))
    if repositories:
        return f"is a cache of downloaded models; give the name of one, e.g. {_repository_name(repositories[0])}"
    if sharded := _sharded_training_state(names):
        return sharded
    numbers = {name: int(match[1]) for name in names if (match := CHECKPOINT.fullmatch(name))}
    if checkpoints := _models_below(folder, numbers):
        newest = folder / max(checkpoints, key=lambda name: numbers[name])
        return f"is the output of a trainer with {_count(checkpoints, 'checkpoint')}; give one of them: {newest}"
    if models := _models_below(folder, names):
        one = "give that folder" if len(models) == 1 else "give one of these folders"
        return f"holds no {CONFIG_FILE}; {_listed(models)} below it {'does' if len(models) == 1 else 'do'}: {one}"
    if "params.json" in names and any(name.endswith(".pth") for name in names):
        return "holds Meta's own files (params.json, *.pth); give the folder of the model in Hugging Face's format"
    return None


def adapter(folder: Path) -> str:
    """What to do with the folder of a PEFT adapter."""
    base = _small_json(folder, ADAPTER_FILE).get("base_model_name_or_path")
    of = f" of {brief(base)}" if isinstance(base, str) and base else ""
    return (
        f"is a PEFT adapter{of} ({ADAPTER_FILE}), not a whole model; merge it into its model "
        "(merge_and_unload() in PEFT, then save_pretrained()) and give the merged folder"
    )


def weights_of_other_tools(infos: Mapping[str, TensorInfo]) -> str | None:
    """What the tensors are by their names and dtypes, and what to do; None if nothing is recognised."""
    ends = {name.rpartition(".")[2] for name in infos}
    parts = [part for part in ADAPTER_PARTS if any(f".{part}." in name for name in infos)]
    if "base_layer" in parts or "modules_to_save" in parts:
        return (
            f"the weights hold a model and a PEFT adapter side by side ({', '.join(parts)}); merge them with "
            "merge_and_unload() in PEFT and save the result"
        )
    if parts:
        return "the weights are those of a PEFT adapter; merge it into its model (merge_and_unload()) and save that"
    method = _quantization(infos, ends)
    if method is not None:
        return f"the weights are quantized by {method}; {FLOAT_ADVICE}"
    if any(name.endswith((".weight_scale", ".weight_scale_inv", ".weight_zero_point")) for name in infos):
        return f"the weights are quantized to 8 bits, each with a weight_scale; {FLOAT_ADVICE}"
    if ends & {"_flat_param", "flat_param"}:
        return "the weights are FSDP's flat parameters; save the model again with a full state dict (FULL_STATE_DICT)"
    return None


def _quantization(infos: Mapping[str, TensorInfo], ends: set[str]) -> str | None:
    """The method whose names the tensors have; `ends` are the last parts of all names."""
    if "qweight" in ends:
        return f"{'GPTQ' if 'g_idx' in ends else 'AWQ or GPTQ'} (qweight, qzeros, scales)"
    if any(name.endswith((".absmax", ".quant_map", ".SCB")) or ".quant_state." in name for name in infos):
        return "bitsandbytes"
    if ends & {"codebooks", "codes", "Qidxs", "SU", "SV"}:
        return "a method with codebooks (AQLM, QuIP)"
    if "scales" in ends and any(info.dtype == "uint32" for info in infos.values()):
        return "MLX (uint32 codes with scales and biases)"
    if ends & {"W_q", "weight_q", "qmeta"}:
        return "HQQ"
    if ends & {"_data", "_scale", "_qdata"}:
        return "quanto or torchao"
    return None


def _run_advice(run: Path) -> str:
    final = run / "final"
    if has_entry(final, CONFIG_FILE):
        return f"give its model: {final}"
    return f"it has not finished, so it has no model yet: continue it with --resume, and then give {final}"


def _cached_repository(folder: Path) -> str:
    """A folder of the Hugging Face cache: models--OWNER--NAME with blobs, refs and snapshots."""
    name = _repository_name(folder.name) if folder.name.startswith("models--") else None
    snapshots = _models_below(folder / "snapshots", _names(folder / "snapshots"))
    ways = [f"the name {name}"] if name else []
    ways += [f"the snapshot {folder / 'snapshots' / snapshot}" for snapshot in snapshots[:1]]
    advice = f"give {' or '.join(ways)}" if ways else "none of its snapshots is whole; download the model again"
    return f"is a folder of the Hugging Face cache, which holds a model in snapshots/; {advice}"


def _repository_name(folder_name: str) -> str:
    return "/".join(folder_name.split("--")[1:])


def _sharded_training_state(names: list[str]) -> str | None:
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        return (
            "is a DeepSpeed checkpoint, whose weights lie in parts for each process; join them with DeepSpeed's "
            f"zero_to_fp32.py and give a folder with the result and {CONFIG_FILE}"
        )
    if any(name.endswith(".distcp") for name in names) or "pytorch_model_fsdp_0" in names:
        return (
            "is a distributed (FSDP) checkpoint, whose weights lie in parts for each process; join them (accelerate "
            f"merge-weights) and give a folder with the result and {CONFIG_FILE}"
        )
    return None


def _models_below(folder: Path, names: Iterable[str]) -> list[str]:
    """Those subfolders that hold a config.json or a GGUF file, hidden ones left out, by name."""
    found = []
    for name in sorted(names):
        below = folder / name
        if not name.startswith(".") and below.is_dir():
            inside = _names(below)
            if CONFIG_FILE in inside or any(entry.endswith(".gguf") for entry in inside):
                found.append(name)
    return found


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [entry.name for entry, _ in zip(folder.iterdir(), range(MAX_ENTRIES))]


def _small_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json_object(file_in(folder, name), MAX_SMALL_FILE_BYTES)
    except (FormatError, OSError):
        return {}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(brief, names[:3])) + more


def _count(names: list[str], word: str) -> str:
    return f"{len(names)} {word}{'' if len(names) == 1 else 's'}"
