"""Codes and scales of a model's matrices, calibrated block by block on texts.

    with work_folder(Path("model-int4"), key) as folder:
        weights = calibrate(source, rows, folder)
        weights.read("model.layers.0.mlp.up_proj.weight")  # an IntWeight

A block's weights and the hidden states behind it are on the disk before the next block begins, so a run that was
interrupted or killed goes on there and gives the same bytes. Memory holds one block in float32 on each of two paths,
the hidden states of the texts, and the moments of the widest input.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minicpm.errors import MissingExtra, ModelError
from minicpm.files import json_text, naming_full_disk, write_text
from minicpm.formats.compressed_tensors import Packing
from minicpm.formats.config import DecoderConfig
from minicpm.formats.llama import EMBEDDING
from minicpm.progress import Progress, Silent, task
from minicpm.quant import gptq, rtn
from minicpm.quant.format import WEIGHT_TYPES, Floats, IntWeight

if TYPE_CHECKING:
    from minicpm.models.calibration import CalibrationRun, InputStatistics

KEY_FILE = "calibration.json"  # what the work is of; written first


@dataclass(frozen=True)
class Source:
    """A model of floats and the packing of each weight that is rounded, by published name."""

    config: DecoderConfig
    packings: Mapping[str, Packing]
    values: Callable[[str], Floats]  # a weight as float32, as it is to be rounded

    def names(self, block: int) -> list[str]:
        prefix = f"model.layers.{block}."
        return [name for name in self.config.parameter_shapes() if name.startswith(prefix)]


def work_place(destination: Path) -> Path:
    """Where the blocks wait of a model that is to be written to `destination`."""
    destination = destination.resolve()
    return destination.parent / f".{destination.name}.calibration"


@contextlib.contextmanager
def work_folder(destination: Path, key: Mapping[str, object]) -> Iterator[Path]:
    """A hidden folder beside `destination` with what an earlier run for the same `key` has left there, else empty.

    It is removed when the block succeeds, and after an error before the first block of the model was done.
    """
    text = json_text(key)
    folder = work_place(destination)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and not _is_of(folder, text):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    try:
        with naming_full_disk(folder):
            write_text(folder / KEY_FILE, text)
            yield folder
    except BaseException:
        if _done(folder) == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_of(folder: Path, text: str) -> bool:
    try:
        return (folder / KEY_FILE).read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def calibrate(
    source: Source, rows: Sequence[Sequence[int]], folder: Path, progress: Progress | None = None
) -> CalibratedWeights:
    """Round every matrix of the blocks by GPTQ for the inputs that it will have on texts, rows of ids.

    Raises ModelError for weights or hidden states that are not finite, MissingExtra without torch.
    """
    try:
        from minicpm.models.calibration import CalibrationRun
    except ImportError:
        raise MissingExtra("calibration", "torch") from None
    embedding = source.values(EMBEDDING)
    packing = source.packings.get(EMBEDDING)
    rounded = None if packing is None else rtn.quantize(embedding, packing).dequantize()
    run = CalibrationRun(source.config, embedding, rows, rounded)
    del embedding, rounded
    first, blocks = _done(folder), source.config.num_hidden_layers
    if first:
        _read_states(folder, first, run)
    shapes = source.config.parameter_shapes()
    nbytes = {block: sum(2 * int(np.prod(shapes[name])) for name in source.names(block)) for block in range(blocks)}
    with task(progress or Silent(), "calibrating", sum(nbytes.values())):
        if progress:
            progress.advance(sum(nbytes[block] for block in range(first)))
        for block in range(first, blocks):
            _write_weights(folder, block, _calibrated_block(source, run, block))
            _write_states(folder, block + 1, run)
            if progress:
                progress.advance(nbytes[block])
    return CalibratedWeights(folder, source)


def _calibrated_block(source: Source, run: CalibrationRun, block: int) -> dict[str, IntWeight]:
    made: dict[str, IntWeight] = {}
    floats = {name: source.values(name) for name in source.names(block)}
    for names, statistics in run.block(block, floats):
        for name in names:
            try:
                made[name] = _rounded(floats[name], source.packings[name], statistics)
            except ModelError as error:
                raise ModelError(f"{name}: {error}") from error
        run.replace({name: made[name].dequantize() for name in names})
    return made


def _rounded(weight: Floats, packing: Packing, statistics: InputStatistics) -> IntWeight:
    return gptq.quantize(weight, packing, statistics.moments)


class CalibratedWeights:
    """The weights of a work folder in which every block is done."""

    def __init__(self, folder: Path, source: Source):
        self._folder, self._source = folder, source

    def read(self, name: str) -> IntWeight:
        """A matrix of a block, by its published name."""
        packing, (_, K) = self._source.packings[name], self._source.config.parameter_shapes()[name]
        with np.load(self._folder / _weights_file(int(name.split(".")[2]))) as saved:
            packed, scales = saved[f"{name}.packed"], saved[f"{name}.scales"]
        return WEIGHT_TYPES[packing.bits](packed, scales, K, packing.group_size)


# --- the folder --------------------------------------------------------------------------------------------------


def _done(folder: Path) -> int:
    """How many blocks are done."""
    return max((int(path.stem.removeprefix("states-")) for path in folder.glob("states-*.npz")), default=0)


def _weights_file(block: int) -> str:
    return f"block-{block}.npz"


def _write_weights(folder: Path, block: int, weights: Mapping[str, IntWeight]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        arrays |= {f"{name}.packed": weight.packed, f"{name}.scales": weight.scales}
    _write(folder / _weights_file(block), arrays)


def _write_states(folder: Path, done: int, run: CalibrationRun) -> None:
    """The hidden states behind `done` blocks; those before are not needed any more."""
    arrays: dict[str, np.ndarray] = {}
    for row, (plain, changed) in enumerate(zip(run.floats, run.replaced)):
        arrays |= {f"float.{row}": plain.numpy(), f"replaced.{row}": changed.numpy()}
    _write(folder / f"states-{done}.npz", arrays)
    (folder / f"states-{done - 1}.npz").unlink(missing_ok=True)


def _read_states(folder: Path, done: int, run: CalibrationRun) -> None:
    with np.load(folder / f"states-{done}.npz") as saved:
        run.restore(
            [saved[f"float.{row}"] for row in range(len(run.floats))],
            [saved[f"replaced.{row}"] for row in range(len(run.floats))],
        )


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
