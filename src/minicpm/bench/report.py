"""A measurement as a row that can be published: one JSON object with the figures, the device and the files' hashes.

A row identifies no person. Rows may come from strangers: `read_report` refuses damaged ones and impossible figures,
above all more bytes read per second than the memory's bandwidth allows.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from minicpm.bench.device import MAX_NAME, UNSHOWABLE, Device
from minicpm.bench.measure import Measurement, Speed, Spread, as_record
from minicpm.errors import FormatError, MiniCPMError, brief
from minicpm.files import read_json_object, sha256_of, write_text
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.compressed_tensors import is_linear
from minicpm.formats.llama import EMBEDDING
from minicpm.progress import Progress, Silent
from minicpm.quant.format import PRESETS

VERSION = 1
MAX_BYTES = 100_000
MAX_ITEMS = 1000
# A step that reads more than this fits into no processor's cache, so memory bandwidth bounds it.
BEYOND_CACHES_BYTES = 256_000_000
# Bandwidth is sampled between the windows; on a busy machine it may be higher within one.
TOLERANCE = 1.15
# Plausible bytes and operations per second of any device that can run a model.
BANDWIDTHS, INTEGER_RATES = (1e7, 1e13), (1e6, 1e16)
KINDS = ("prefill", "decode", "batch")


@dataclass(frozen=True)
class WeightFile:
    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Model:
    name: str
    sha256: str  # of the weights: the file's, or that of sha256sum's output for several files
    weights: tuple[WeightFile, ...]
    precision: str  # a preset, bits and group sizes of other quantizations, or a dtype
    weight_bytes_per_step: int
    cache_bytes_per_token: int


@dataclass(frozen=True)
class Figures:
    """Median, best and worst of several windows."""

    median: float
    best: float
    worst: float


@dataclass(frozen=True)
class Point:
    """`minicpm.bench.measure.Speed` without its windows."""

    kind: str
    size: int
    tokens_per_s: Figures
    bytes_per_step: int | None
    of_bandwidth: float | None
    of_integer_peak: float | None


@dataclass(frozen=True)
class Report:
    version: int
    date: str
    minicpm: str
    python: str
    device: Device
    model: Model
    backend: str
    isa: str | None
    threads: int | None
    read_bandwidth: Figures  # bytes per second
    integer_peak: Figures | None  # operations per second
    load_s: float
    first_token_s: float
    peak_rss_bytes: int | None
    peak_rss_tokens: int
    speeds: tuple[Point, ...]


def make_report(
    measured: Measurement,
    checkpoint: Checkpoint,
    *,
    device: Device,
    name: str,
    versions: tuple[str, str],
    load_s: float,
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """The row of a measurement; `versions` are the package's and Python's. Reads the weights for their hash.

    Raises ValueError without a bandwidth, MiniCPMError if `read_report` would refuse the row: something disturbed the
    measurement.
    """
    if measured.read_bandwidth is None:
        raise ValueError("a report needs the memory's bandwidth, which is measured beside decoding on the CPU")
    weights = tuple(_weight_files(checkpoint.weight_files, progress or Silent()))
    report = Report(
        version=VERSION,
        date=datetime.now(UTC).date().isoformat(),
        minicpm=versions[0],
        python=versions[1],
        device=device,
        model=Model(
            name=name,
            sha256=_sha256_of(weights),
            weights=weights,
            precision=precision(checkpoint, dtype),
            weight_bytes_per_step=measured.weight_bytes_per_step,
            cache_bytes_per_token=measured.cache_bytes_per_token,
        ),
        backend=measured.backend,
        isa=measured.isa,
        threads=measured.threads,
        read_bandwidth=_figures(measured.read_bandwidth),
        integer_peak=None if measured.integer_peak is None else _figures(measured.integer_peak),
        load_s=_rounded(load_s),
        first_token_s=_rounded(measured.first_token_s),
        peak_rss_bytes=measured.peak_rss_bytes,
        peak_rss_tokens=measured.peak_rss_tokens,
        speeds=tuple(map(_point, measured.speeds)),
    )
    try:
        _parsed(Report, as_record(report), "")
        check(report)
    except ValueError as error:
        raise MiniCPMError(f"the figures are impossible ({error}); measure again while nothing else runs") from error
    return report


def write_report(path: Path, report: Report) -> None:
    """Write the row whole or not at all; replaces an existing file."""
    write_text(path, json.dumps(as_record(report), indent=1, ensure_ascii=False) + "\n")


def read_report(path: Path) -> Report:
    """The row in a file. Raises FormatError, with the reason, for a damaged row or impossible figures."""
    raw = read_json_object(path, MAX_BYTES, unique_keys=True)
    try:
        if raw.get("version") != VERSION:
            raise ValueError(f"version is {brief(raw.get('version'))}, expected {VERSION}")
        report: Report = _parsed(Report, raw, "")
        check(report)
    except ValueError as error:
        raise FormatError(path, f"is not a row of `minicpm bench --report`: {error}") from error
    return report


def precision(checkpoint: Checkpoint, dtype: str = "auto") -> str:
    """The precision of the weights: a preset's name, bits and group sizes of other quantizations, or a dtype."""
    packings = checkpoint.packings
    if not packings:
        return checkpoint.config.dtype if dtype == "auto" else dtype
    linear = {packings.get(name) for name in checkpoint.config.parameter_shapes() if is_linear(name)}
    for preset in PRESETS.values():
        if linear == {preset.linear} and packings.get(EMBEDDING) == preset.outer:
            return preset.name
    kinds = sorted({(packing.bits, packing.group_size) for packing in packings.values()})
    return ", ".join(f"{bits} bits by {size}" for bits, size in kinds)


# --- Making ------------------------------------------------------------------------------------------------------


def _weight_files(paths: Sequence[Path], progress: Progress) -> list[WeightFile]:
    found = [
        WeightFile(path.name, path.stat().st_size, sha256) for path, sha256 in zip(paths, sha256_of(paths, progress))
    ]
    return sorted(found, key=lambda file: file.name)


def _sha256_of(weights: Sequence[WeightFile]) -> str:
    if len(weights) == 1:
        return weights[0].sha256
    return hashlib.sha256("".join(f"{file.sha256}  {file.name}\n" for file in weights).encode()).hexdigest()


def _point(speed: Speed) -> Point:
    parts = (None if part is None else _rounded(part) for part in (speed.of_bandwidth, speed.of_integer_peak))
    return Point(speed.kind, speed.size, _figures(speed.tokens_per_s), speed.bytes_per_step, *parts)


def _figures(spread: Spread) -> Figures:
    return Figures(*map(_rounded, (spread.median, spread.best, spread.worst)))


def _rounded(value: float) -> float:
    """Round to four digits, the accuracy of these measurements."""
    return float(f"{value:.4g}")


# --- Reading -----------------------------------------------------------------------------------------------------


def _parsed(kind: Any, value: object, where: str) -> Any:
    """Convert a JSON value to `kind`: a dataclass, a tuple of one kind, str, int or float, each optionally or None."""
    options = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if value is None and NoneType in options:
        return None
    (kind,) = (option for option in options if option is not NoneType)
    if is_dataclass(kind):
        return _parsed_fields(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise ValueError(f"{where} is {brief(value)}, expected a list of at most {MAX_ITEMS}")
        return tuple(_parsed(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 64 else math.inf
    if type(value) is not kind:
        raise ValueError(f"{where} is {brief(value)}, expected {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, expected a finite number")
    if isinstance(value, str):
        check_text(value, where)
    return value


def _parsed_fields(kind: Any, value: object, where: str) -> Any:
    hints = get_type_hints(kind)
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {brief(value)}, expected an object")
    for difference, problem in (
        (hints.keys() - value.keys(), "lacks"),
        (value.keys() - hints.keys(), "has an unknown"),
    ):
        if difference:
            raise ValueError(f"{where or 'it'} {problem} {brief(min(difference))}")
    return kind(**{name: _parsed(hint, value[name], f"{where}.{name}".strip(".")) for name, hint in hints.items()})


def check_text(text: str, where: str) -> None:
    """Raise ValueError for a text that a table cannot show, or that is a file path."""
    if not text.strip() or len(text) > MAX_NAME or not text.isprintable() or UNSHOWABLE.search(text):
        raise ValueError(f"{where} is {brief(text)}, expected 1 to {MAX_NAME} characters without | < > ` [ ] or \\")
    if text.startswith(("/", "~", "./", "../")):
        raise ValueError(f"{where} is {brief(text)}, a path; expected a name")


# --- Plausibility ------------------------------------------------------------------------------------------------


def check(report: Report) -> None:
    """Raise ValueError for a row with impossible figures."""
    _check_date(report.date)
    _check_model(report.model)
    _check_device(report)
    _check_figures("read_bandwidth", report.read_bandwidth, BANDWIDTHS)
    if report.integer_peak is not None:
        _check_figures("integer_peak", report.integer_peak, INTEGER_RATES)
    points = [(point.kind, point.size) for point in report.speeds]
    if len(set(points)) != len(points) or "decode" not in {kind for kind, _ in points}:
        raise ValueError("speeds must have every point once, and decoding among them")
    for point in report.speeds:
        try:
            _check_point(point, report)
        except ValueError as error:
            raise ValueError(f"{point.kind} of {point.size}: {error}") from error


def _check_date(text: str) -> None:
    day = date.fromisoformat(text)
    if day > datetime.now(UTC).date() + timedelta(days=1):
        raise ValueError(f"date {text} is in the future")


def _check_model(model: Model) -> None:
    names = [file.name for file in model.weights]
    if not names or names != sorted(set(names)):
        raise ValueError("model.weights must have one file or more, sorted by name")
    for sha256 in (model.sha256, *(file.sha256 for file in model.weights)):
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"{brief(sha256)} is not a SHA-256")
    if model.sha256 != _sha256_of(model.weights):
        raise ValueError("model.sha256 does not match model.weights")
    sizes = (*(file.nbytes for file in model.weights), model.weight_bytes_per_step, model.cache_bytes_per_token)
    if min(sizes) < 1:
        raise ValueError("a size of the model is below 1 byte")


def _check_device(report: Report) -> None:
    device, rss = report.device, report.peak_rss_bytes
    for name, number in (("logical_processors", device.logical_processors), ("threads", report.threads)):
        if number is not None and not 1 <= number <= 1 << 16:
            raise ValueError(f"{name} is {brief(number)}, expected 1 or more")
    if rss is not None and device.memory_bytes is not None and not 0 < rss <= device.memory_bytes:
        raise ValueError(f"peak_rss_bytes is {brief(rss)}, the device has {brief(device.memory_bytes)} bytes of memory")
    if min(report.load_s, report.first_token_s) < 0 or report.peak_rss_tokens < 0:
        raise ValueError("load_s, first_token_s and peak_rss_tokens must not be negative")


def _check_figures(name: str, figures: Figures, bounds: tuple[float, float] = (0, math.inf)) -> None:
    least, most = bounds
    if not least < figures.worst <= figures.median <= figures.best < most:
        raise ValueError(
            f"{name} has worst {figures.worst:g}, median {figures.median:g} and best {figures.best:g}; "
            f"expected these in order, above {least:g} and below {most:g}"
        )


def _check_point(point: Point, report: Report) -> None:
    if point.kind not in KINDS or point.size < (point.kind != "decode"):
        raise ValueError(f"expected one of {', '.join(KINDS)}, and a size")
    _check_figures("tokens_per_s", point.tokens_per_s)
    if min(part for part in (point.of_bandwidth, point.of_integer_peak, 1) if part is not None) <= 0:
        raise ValueError("a share of a peak must be above 0")
    if point.kind == "prefill":
        _check_absent("bytes_per_step", point.bytes_per_step)
        _check_absent("of_bandwidth", point.of_bandwidth)
        return
    _check_absent("of_integer_peak", point.of_integer_peak)
    depth, tokens = (point.size, 1) if point.kind == "decode" else (0, point.size)
    model = report.model
    expected = model.weight_bytes_per_step + depth * model.cache_bytes_per_token
    if point.bytes_per_step != expected or point.of_bandwidth is None:
        raise ValueError(f"a step reads {brief(point.bytes_per_step)} bytes, expected {expected}, and of_bandwidth")
    read = point.tokens_per_s.median / tokens * expected
    best = report.read_bandwidth.best
    if expected >= BEYOND_CACHES_BYTES and (read > TOLERANCE * best or point.of_bandwidth > TOLERANCE):
        raise ValueError(
            f"{point.tokens_per_s.median:g} tokens/s would read {read / 1e9:.1f} GB/s, "
            f"{100 * point.of_bandwidth:.0f} % of the memory's bandwidth, which is {best / 1e9:.1f} GB/s at best"
        )


def _check_absent(name: str, value: object) -> None:
    if value is not None:
        raise ValueError(f"{name} is {brief(value)}, expected null")
