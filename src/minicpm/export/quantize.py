"""Quantize a model folder, tensor by tensor. The result is checked, then moved into place at once.

    quantize_folder("MiniCPM-2B-dpo-bf16", "MiniCPM-2B-int4", preset="int4")

Writes the canonical compressed-tensors folder. Memory holds the largest weight of the model and all scales.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minicpm import __version__
from minicpm.errors import ModelError
from minicpm.export.calibrated import CalibratedWeights, Source, calibrate, work_folder
from minicpm.export.dequantized import open_dequantized
from minicpm.export.destination import check_places, require_disk
from minicpm.export.hf_folder import FolderPlan, companion_files, write_folder
from minicpm.export.small_files import small_files
from minicpm.files import json_text
from minicpm.formats import hf
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.compressed_tensors import PACKED, SCALE, SHAPE, Packing, is_linear, write_quantization
from minicpm.formats.config import DecoderConfig
from minicpm.formats.hf import DEFAULT_SHARD_BYTES
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.progress import Progress
from minicpm.quant import rtn
from minicpm.quant.equalize import block_scales
from minicpm.quant.format import PRESETS, Floats, IntWeight, Preset
from minicpm.quant.rescaling import BlockScales, block_of

METHODS = ("rtn", "gptq")
DATA_FREE = ("rtn",)  # the others need texts


@dataclass
class KindReport:
    """Size and rounding error of all weights of one kind, e.g. every layer's `mlp.down_proj`."""

    kind: str
    bits: int  # of a code; 16 or 32 if the weight stays in floating point
    elements: int = 0
    nbytes: int = 0
    squared_error: float = 0.0
    squared_weight: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.elements

    @property
    def relative_rmse(self) -> float:
        """Root of summed squared errors over summed squared weights; 0 if nothing was rounded."""
        return math.sqrt(self.squared_error / self.squared_weight) if self.squared_weight else 0.0


@dataclass(frozen=True)
class Quantization:
    """The result of `quantize_folder`."""

    source: Path
    destination: Path
    preset: str
    method: str
    evened_channels: int  # equalized before rounding (equalize.py)
    source_bytes: int  # of the weights
    nbytes: int  # of the weights
    kinds: tuple[KindReport, ...]
    files: tuple[str, ...]
    dequantized: str | None = None  # the kinds of weights of a source that was quantized already


@dataclass(frozen=True)
class CalibrationText:
    """What a model is calibrated on."""

    rows: Sequence[Sequence[int]]  # texts as token ids
    origin: str  # in words, for reports

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.rows)

    def digest(self) -> str:
        """SHA-256 of all ids."""
        whole = hashlib.sha256()
        for row in self.rows:
            whole.update(np.array([len(row), *row], "<i8").tobytes())
        return whole.hexdigest()


@dataclass
class _Job:
    """The state of one run: the plan, and the results of weights that are quantized already."""

    checkpoint: Checkpoint
    plan: FolderPlan
    equalize: bool
    calibrated: CalibratedWeights | None = None  # of the blocks
    scales: dict[str, memoryview] = field(default_factory=dict)
    rescalings: dict[int, BlockScales] = field(default_factory=dict)  # by block, made when its first weight is read
    kinds: dict[str, KindReport] = field(default_factory=dict)

    @property
    def config(self) -> DecoderConfig:
        return self.plan.config


def quantize_folder(
    source: str | Path,
    destination: str | Path,
    *,
    preset: str = "int4",
    method: str = "rtn",
    calibration: CalibrationText | None = None,
    equalize: bool = True,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Write the model `source`, a folder or a GGUF file, to the new folder `destination` with the weights of a preset.

    The method `gptq` rounds the blocks' matrices for the inputs that they have on the texts of `calibration`, and needs
    torch; `rtn` rounds to nearest. A source that is quantized already is rounded a second time; the reported errors do
    not include those of the first. With `equalize`, outlier channels are first rescaled by powers of two, which leaves
    the model's results unchanged.

    Raises ValueError for invalid arguments, ModelError and FormatError for other failures, MissingExtra without torch.
    Nothing half-written remains, but the blocks that were calibrated before a failure do, in a hidden folder beside
    `destination`: the same call goes on behind them and then removes them.
    """
    source, destination = Path(source), Path(destination)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if (calibration is None) != (method in DATA_FREE):
        raise ValueError(f"method {method} takes {'no' if calibration else 'a'} text for calibration")
    check_places(source, destination, overwrite)
    with (
        open_dequantized(source) as checkpoint,
        small_files(checkpoint) as beside,
        contextlib.ExitStack() as until_written,
    ):
        _require_finite_norms(checkpoint)
        job = _Job(checkpoint, _plan(checkpoint, PRESETS[preset], max_shard_bytes, companion_files(beside)), equalize)
        if calibration is not None:
            require_disk(destination, 2 * job.plan.weight_bytes, job.plan.copies)  # the blocks are there twice
            folder = until_written.enter_context(
                work_folder(destination, _key(checkpoint, preset, method, equalize, calibration))
            )
            of_model = Source(job.config, job.plan.packings, lambda name: _values(job, name))
            job.calibrated = calibrate(of_model, calibration.rows, folder, progress)

        def content(info: TensorInfo) -> Iterable[memoryview]:
            yield _content(job, info)

        written = write_folder(
            destination, job.plan, content, label="quantizing", overwrite=overwrite, progress=progress
        )
        return Quantization(
            source,
            destination,
            preset,
            method,
            evened_channels=sum(scales.num_rescaled for scales in job.rescalings.values()),
            source_bytes=checkpoint.nbytes,
            nbytes=job.plan.weight_bytes,
            kinds=tuple(job.kinds.values()),
            files=written.files,
            dequantized=checkpoint.dequantized,
        )


def _key(
    checkpoint: Checkpoint, preset: str, method: str, equalize: bool, calibration: CalibrationText
) -> dict[str, object]:
    """What calibrated blocks depend on."""
    files = [path for path in (checkpoint.path, *sorted(checkpoint.path.glob("*"))) if path.is_file()]
    return {
        "version": __version__,
        "source": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files},
        "preset": preset,
        "method": method,
        "equalize": equalize,
        "calibration": calibration.digest(),
    }


def _require_finite_norms(checkpoint: Checkpoint) -> None:
    """Matrices are checked when they are rounded; norms are stored as they are."""
    for name, shape in checkpoint.config.parameter_shapes().items():
        if len(shape) == 1 and not np.isfinite(checkpoint.read(name).float32()).all():
            raise ModelError(
                f"{checkpoint.path}: {name} holds numbers that are not finite; take weights that were saved before "
                "training went wrong"
            )


def _plan(checkpoint: Checkpoint, preset: Preset, max_shard_bytes: int, copies: Sequence[Path]) -> FolderPlan:
    if checkpoint.folded_scales is not None:
        raise ModelError(f"{checkpoint.path}: its scales are multiplied into the weights; convert it --to hf first")
    config = checkpoint.config
    is_for_others = preset.outer is None
    if is_for_others and config.dtype == "float32":
        config = config.with_dtype("bfloat16")
    packings: dict[str, Packing] = {}
    infos: list[TensorInfo] = []
    for name, shape in config.parameter_shapes().items():
        packing = preset.linear if is_linear(name) else preset.outer if name in (EMBEDDING, HEAD) else None
        if packing is None:
            infos.append(TensorInfo(name, config.dtype if is_for_others else checkpoint.tensors[name].dtype, shape))
            continue
        if is_for_others and shape[1] % packing.group_size:
            raise ModelError(
                f"{name} has {shape[1]} input features, not a multiple of {packing.group_size}, "
                f"which vLLM and transformers need; choose a preset other than {preset.name}"
            )
        packings[name] = packing
        infos.extend(packing.stored(name, shape))
    raw = {**hf.write_config(config), "quantization_config": write_quantization(preset.linear, preset.outer)}
    return FolderPlan(
        config,
        json_text(raw),
        hf.plan_files(infos, max_shard_bytes),
        copies,
        packings=packings,
    )


def _content(job: _Job, info: TensorInfo) -> memoryview:
    """The bytes of one stored tensor.

    A file holds wider dtypes first, so a weight's codes come before its scales, which wait in `job.scales`.
    """
    stored = info.name
    if stored.endswith(SHAPE):
        shape = job.config.parameter_shapes()[stored.removesuffix(SHAPE)]
        return np.array(shape, "<i8").data.cast("B")
    if stored.endswith(PACKED):
        name = stored.removesuffix(PACKED)
        weight = _quantized(job, name)
        job.scales[name] = np.ascontiguousarray(weight.scales).data.cast("B")
        return np.ascontiguousarray(weight.packed).data.cast("B")
    if stored.endswith(SCALE):
        return job.scales.pop(stored.removesuffix(SCALE))
    if _scales_of(job, stored) is not None:
        view = TensorView.from_float32(stored, _values(job, stored), info.dtype)
    else:
        view = job.checkpoint.read(stored).cast(info.dtype)
        job.checkpoint.release(stored)
    if not np.isfinite(view.float32()).all():
        raise ModelError(f"{stored}: holds numbers that are not finite, or too large for {info.dtype}")
    _report(job, stored, info.nbytes, 32 if info.dtype == "float32" else 16, math.prod(info.shape))
    return view.buffer.cast("B")


def _scales_of(job: _Job, name: str) -> BlockScales | None:
    """The equalizing scales of a weight's block; None outside the blocks, or without `equalize`."""
    block = block_of(name)
    if block is None or not job.equalize:
        return None
    if block not in job.rescalings:
        scales = block_scales(lambda other: _read(job, other), job.config, block)
        job.rescalings[block] = replace(
            scales,
            attention=_storable(job, f"model.layers.{block}.input_layernorm.weight", scales.attention),
            mlp=_storable(job, f"model.layers.{block}.post_attention_layernorm.weight", scales.mlp),
        )
    return job.rescalings[block]


def _storable(job: _Job, name: str, scales: Floats) -> Floats:
    """The scales of a norm, 1 where its dtype cannot hold the product: float16 ends at 65504 and loses bits near 0."""
    dtype = next(info.dtype for info in job.plan.infos if info.name == name)
    values = _read(job, name)
    before = TensorView.from_float32(name, values, dtype).float32()
    after = TensorView.from_float32(name, values * scales, dtype).float32()
    return np.where(after == before * scales, scales, np.float32(1))


def _values(job: _Job, name: str) -> Floats:
    """A weight as float32, equalized."""
    scales = _scales_of(job, name)  # first: it reads the whole block
    values = _read(job, name)
    return values if scales is None else scales.apply(name, values, job.config)


def _read(job: _Job, name: str) -> Floats:
    values = job.checkpoint.read(name).float32()
    job.checkpoint.release(name)
    return values


def _quantized(job: _Job, name: str) -> IntWeight:
    values = _values(job, name)
    packing = job.plan.packings[name]
    try:
        if job.calibrated is not None and is_linear(name):
            weight = job.calibrated.read(name)
        else:
            weight = rtn.quantize(values, packing)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    report = _report(job, name, weight.nbytes, packing.bits, values.size)
    step = max(1, (1 << 20) // values.shape[1])
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        report.squared_error += _squared(weight.rows(part).dequantize() - values[part])
        report.squared_weight += _squared(values[part])
    return weight


def _report(job: _Job, name: str, nbytes: int, bits: int, elements: int) -> KindReport:
    kind = _kind_of(name)
    report = job.kinds.setdefault(kind, KindReport(kind, bits))
    report.nbytes += nbytes
    report.elements += elements
    return report


def _kind_of(name: str) -> str:
    """`model.layers.7.mlp.up_proj.weight` -> `mlp.up_proj`; all norms are one kind."""
    if "norm" in name:
        return "norms"
    return ".".join(name.removesuffix(".weight").split(".")[-2:]) if is_linear(name) else name.split(".")[-2]


def _squared(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())
