"""Checkpoints of a run: complete or absent, verified by hash, resumed bit for bit.

    RUN/checkpoints/step-00000100/   config.json  model.safetensors  optimizer.safetensors  state.json

A checkpoint is written under a hidden name, synced to disk and renamed. Nothing is pickled. No other state influences a
run: the step determines the learning rate, a seed the data order, and the model uses no other random numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minicpm.errors import FormatError, MiniCPMError, TrainingError
from minicpm.export.destination import copy_file, new_folder
from minicpm.export.hf_folder import plan_floats, write_folder
from minicpm.files import is_disk_full, json_text, sha256_of, write_text
from minicpm.formats.config import CONFIG_FILE, DecoderConfig, read_config_json
from minicpm.formats.generation import GENERATION_FILE
from minicpm.formats.safetensors import SafetensorsFile, SafetensorsWriter, write_order
from minicpm.formats.sequential import writing
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.formats.text_sources import TOKENIZER_FILES
from minicpm.models import MiniCPMForCausalLM
from minicpm.train.averaging import WeightAverage

LAYOUT = 1
KEPT = 2
STEP_FOLDER = re.compile(r"step-(\d{8,})")
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
HASHED = (WEIGHTS, OPTIMIZER, CONFIG_FILE)  # STATE holds their hashes and its own
RNG = "rng."  # names of random-number states inside OPTIMIZER
EMA = "ema."  # names of averaged weights inside OPTIMIZER

Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Progress:
    """The progress of a run: its steps, the tokens seen and trained on, and the position in the data."""

    step: int
    tokens: int
    trained_tokens: int
    data: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, path: Path, tell: Callable[[str], None] = lambda _: None):
        self.path, self._tell = path, tell

    def steps(self) -> list[int]:
        """Steps of the existing checkpoints, the newest first."""
        if not self.path.is_dir():
            return []
        found = [STEP_FOLDER.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir()]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def save(
        self,
        progress: Progress,
        model: MiniCPMForCausalLM,
        optimizers: Optimizers,
        average: WeightAverage | None = None,
    ) -> bool:
        """Write a checkpoint and remove all but the newest `KEPT`. False, with a message, if the disk is full."""
        try:
            with new_folder(self.folder(progress.step)) as partial:
                _write(partial, progress, model, optimizers, average)
        except OSError as error:
            if not is_disk_full(error):
                raise
            last = next(iter(self.steps()), None)
            kept = "there is no checkpoint yet" if last is None else f"the one of step {last} is intact"
            self._tell(
                f"{self.path}: the disk is full: no checkpoint was written at step {progress.step}, {kept}; training "
                "continues, so make room before it ends"
            )
            return False
        for step in self.steps()[KEPT:]:
            shutil.rmtree(self.folder(step), ignore_errors=True)
        return True

    def load_newest(
        self,
        model: MiniCPMForCausalLM,
        optimizers: Optimizers,
        check: Callable[[Progress], None] = lambda _: None,
        average: WeightAverage | None = None,
    ) -> Progress | None:
        """Load the newest complete checkpoint into model, optimizers and average; None if there is no checkpoint.

        A damaged one is reported and renamed to `.damaged`, and the one before it is loaded. Raises TrainingError if
        all are damaged. `check` may refuse a checkpoint by an exception of its own before anything is changed.
        """
        steps = self.steps()
        for step in steps:
            folder = self.folder(step)
            try:
                return load(folder, model, optimizers, check, average)
            except FormatError as error:
                self._tell(f"the checkpoint of step {step} is damaged and was renamed ({error})")
                aside = folder.with_name(f"{folder.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        if steps:
            raise TrainingError(f"{self.path}: every checkpoint is damaged; start a new run in another folder")
        return None


def load(
    folder: Path,
    model: MiniCPMForCausalLM,
    optimizers: Optimizers,
    check: Callable[[Progress], None] = lambda _: None,
    average: WeightAverage | None = None,
) -> Progress:
    """Load the checkpoint in `folder` into model, optimizers and average.

    A checkpoint without averaged weights starts the average at its weights. Raises FormatError if any bit of it has
    changed.
    """
    state = read_state(folder)
    weights, moments = _read_tensors(folder / WEIGHTS), _read_tensors(folder / OPTIMIZER)
    progress = Progress(state["step"], state["tokens"], state["trained_tokens"], state["data"])
    check(progress)
    own = dict(model.named_parameters())
    if {name: tuple(t.shape) for name, t in weights.items()} != {name: tuple(p.shape) for name, p in own.items()}:
        raise TrainingError(f"{folder}: the checkpoint is of a model of another shape")
    if state["optimizers"] != [type(optimizer).__name__ for optimizer in optimizers]:
        made_by = " and ".join(state["optimizers"])
        raise TrainingError(f"{folder}: the checkpoint was made by {made_by}; continue with the same --optimizer")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    for number, optimizer in enumerate(optimizers):
        _restore_optimizer(optimizer, f"{number}.", own, moments)
    if average is not None:
        average.load({name.removeprefix(EMA): t for name, t in moments.items() if name.startswith(EMA)})
    torch.set_rng_state(moments[f"{RNG}cpu"])
    if torch.cuda.is_available() and f"{RNG}cuda" in moments:
        torch.cuda.set_rng_state(moments[f"{RNG}cuda"])
    return progress


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json, after every file is compared with its hash. Raises FormatError if one differs."""
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        files: Mapping[str, str] = state["files"]
        if state["layout"] != LAYOUT or set(files) != set(HASHED):
            raise FormatError(path, f"layout {state['layout']!r}, expected {LAYOUT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(path, f"not a complete checkpoint state ({type(error).__name__})") from error
    if _digest_of(state) != state.get("digest"):
        raise FormatError(path, "differs from what was written")
    for name, digest in files.items():
        if not (folder / name).is_file() or sha256_of([folder / name]) != [digest]:
            raise FormatError(folder / name, "missing, or differs from what was written")
    return dict(state)


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint at `path`: a checkpoint's folder, or the newest of a run. TrainingError if there is none."""
    path = Path(path).expanduser()
    if (path / STATE).is_file():
        return path
    checkpoints = CheckpointFolder(path / "checkpoints")
    steps = checkpoints.steps()
    if not steps:
        raise TrainingError(f"{path}: no checkpoint; give the folder of a run, or of one of its checkpoints")
    return checkpoints.folder(steps[0])


def save_model(model: MiniCPMForCausalLM, destination: Path, dtype: str, small_files: Path) -> None:
    """Write an ordinary Hugging Face folder: weights in `dtype`, config.json, and the tokenizer files of `small_files`.

    It is read back before it is moved to `destination`; a model there is replaced.
    """
    config = model.config.to_decoder_config().with_dtype(dtype)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids) or None}
    plan = plan_floats(config, _tokenizer_files(small_files), {GENERATION_FILE: json_text(generation)})

    def content(info: TensorInfo) -> Iterable[memoryview]:
        yield _view(info.name, tensors[info.name].to(getattr(torch, info.dtype))).buffer

    write_folder(destination, plan, content, label="saving", overwrite=True)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the tokenizer's files and chat template from one folder to another."""
    for path in _tokenizer_files(source):
        copy_file(path, destination / path.name)


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def averaged_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights in a checkpoint's folder by parameter name; empty if the run keeps none."""
    read_state(folder)
    tensors = _read_tensors(folder / OPTIMIZER)
    return {name.removeprefix(EMA): tensor for name, tensor in tensors.items() if name.startswith(EMA)}


def load_weights(folder: Path, model: MiniCPMForCausalLM, average: WeightAverage) -> None:
    """Load only the weights and averaged weights of a checkpoint. Raises FormatError if any bit of it has changed."""
    averages = averaged_weights(folder)
    weights = _read_tensors(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    average.load(averages)


def _write(
    folder: Path,
    progress: Progress,
    model: MiniCPMForCausalLM,
    optimizers: Optimizers,
    average: WeightAverage | None,
) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    _write_tensors(folder / WEIGHTS, {name: parameter.detach() for parameter, name in names.items()})
    moments: dict[str, torch.Tensor] = {f"{RNG}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        moments[f"{RNG}cuda"] = torch.cuda.get_rng_state()
    for number, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                moments[f"{number}.{names[parameter]}.{key}"] = value
    if average is not None:
        moments |= {f"{EMA}{name}": tensor for name, tensor in average.tensors.items()}
    _write_tensors(folder / OPTIMIZER, moments)
    write_text(folder / CONFIG_FILE, json_text(model.config.to_decoder_config().to_dict()))
    state: dict[str, Any] = {
        "layout": LAYOUT,
        "step": progress.step,
        "tokens": progress.tokens,
        "trained_tokens": progress.trained_tokens,
        "optimizers": [type(optimizer).__name__ for optimizer in optimizers],
        "data": progress.data,
        "files": dict(zip(HASHED, sha256_of([folder / name for name in HASHED]))),
    }
    write_text(folder / STATE, json_text({**state, "digest": _digest_of(state)}))


def _restore_optimizer(
    optimizer: torch.optim.Optimizer,
    prefix: str,
    parameters: Mapping[str, torch.nn.Parameter],
    moments: Mapping[str, torch.Tensor],
) -> None:
    names = {parameter: name for name, parameter in parameters.items()}
    blank = optimizer.state_dict()
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {names[parameter]: number for number, parameter in enumerate(ordered)}
    values: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in moments.items():
        name, _, field = key.removeprefix(prefix).rpartition(".")
        if key.startswith(prefix) and name in numbers:
            values.setdefault(numbers[name], {})[field] = tensor
    optimizer.load_state_dict({"state": values, "param_groups": blank["param_groups"]})


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    infos = write_order([TensorInfo(name, _dtype_name(t), tuple(t.shape)) for name, t in tensors.items()])
    with writing(SafetensorsWriter(path, infos)) as writer:
        for info in infos:
            writer.write(info.name, [_view(info.name, tensors[info.name]).buffer])


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    file = SafetensorsFile(path)
    try:
        return {name: _tensor(file.read(name)) for name in file.tensors}
    finally:
        file.close()


def _view(name: str, tensor: torch.Tensor) -> TensorView:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return TensorView(name, _dtype_name(tensor), tuple(tensor.shape), flat.view(torch.uint8).numpy().data)


def _tensor(view: TensorView) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, view.dtype)
    return torch.frombuffer(view.buffer, dtype=dtype).reshape(view.shape).clone()


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest_of(state: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in state.items() if key != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_decoder_config(path: Path) -> DecoderConfig:
    """The configuration in a config.json file. Raises ModelError if it is not a MiniCPM."""
    try:
        return DecoderConfig.from_dict(read_config_json(path))
    except FormatError:
        raise
    except MiniCPMError as error:
        raise type(error)(f"{path}: {error}") from error
