"""Rows of devices: their content, and the ones that are refused."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from minicpm.bench.device import Device
from minicpm.bench.measure import Measurement, Speed, Spread, step_weight_bytes
from minicpm.bench.report import Report, make_report, precision, read_report, write_report
from minicpm.errors import FormatError, MiniCPMError
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.quant.format import PRESETS
from small_models import EVEN, write_model

DEVICE = Device("A board", "maker,soc", "4x Cortex-A76", 4, 8_000_000_000, "Linux", "aarch64")
CACHE_BYTES = 1000


def measurement(weight_bytes: int, tokens_per_s: float = 100.0, bandwidth: float = 2e10) -> Measurement:
    def speed(kind: str, size: int, tokens: float) -> Speed:
        if kind == "prefill":
            return Speed(kind, size, Spread.of([tokens]), None, None, 0.5)
        read = weight_bytes + (size * CACHE_BYTES if kind == "decode" else 0)
        steps = tokens if kind == "decode" else tokens / size
        return Speed(kind, size, Spread.of([tokens, 1.01 * tokens]), read, steps * read / bandwidth, None)

    return Measurement(
        backend="native",
        isa="neondot",
        threads=4,
        weight_bytes_per_step=weight_bytes,
        cache_bytes_per_token=CACHE_BYTES,
        first_token_s=0.123456,
        peak_rss_bytes=2_000_000,
        peak_rss_tokens=1024,
        read_bandwidth=Spread.of([bandwidth, 0.9 * bandwidth]),
        integer_peak=Spread.of([1e11]),
        speeds=(speed("prefill", 128, 400), speed("decode", 0, tokens_per_s), speed("batch", 8, 4 * tokens_per_s)),
        verifications=(),
    )


def report_of(folder: Path, measured: Measurement | None = None) -> Report:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return make_report(
            measured or measurement(step_weight_bytes(checkpoint)),
            checkpoint,
            device=DEVICE,
            name="a-model",
            versions=("0.1.0", "3.11.2"),
            load_s=0.5,
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    quantize_folder(write_model(root / "source", EVEN), root / "int4")
    return root / "int4"


@pytest.fixture(scope="module")
def row(model: Path) -> dict[str, Any]:
    """As a file has it, made beyond caches: a quarter of a gigabyte a token, at 20 GB/s."""
    path = model.parent / "row.json"
    write_report(path, report_of(model))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found["model"]["weight_bytes_per_step"] = 500_000_000
    for point in found["speeds"][1:]:
        point["bytes_per_step"] = 500_000_000
        point["tokens_per_s"] = {"median": 36.0, "best": 38.0, "worst": 30.0}
        point["of_bandwidth"] = 0.9
    return found


def read(tmp_path: Path, row: object) -> Report:
    path = tmp_path / "row.json"
    path.write_text(row if isinstance(row, str) else json.dumps(row), encoding="utf-8")
    return read_report(path)


def test_a_row_is_read_as_it_was_written(model: Path, tmp_path: Path):
    report = report_of(model)
    write_report(tmp_path / "row.json", report)
    assert read_report(tmp_path / "row.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["row.json"]


def test_one_file_gives_its_own_hash_and_several_that_of_sha256sums_lines(model: Path, golden: Path):
    one = report_of(model).model
    content = (model / "model.safetensors").read_bytes()
    assert one.sha256 == one.weights[0].sha256 == hashlib.sha256(content).hexdigest()
    assert one.weights[0].nbytes == len(content)
    many = report_of(golden / "minicpm2b_untied_sharded").model
    assert len(many.weights) > 1
    lines = "".join(
        f"{hashlib.sha256((golden / 'minicpm2b_untied_sharded' / file.name).read_bytes()).hexdigest()}  {file.name}\n"
        for file in many.weights
    )
    assert many.sha256 == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_called_by_its_name(tmp_path: Path, preset: str):
    quantize_folder(write_model(tmp_path / "source", EVEN), tmp_path / "model", preset=preset)
    with open_checkpoint(tmp_path / "model", allow_quantized=True) as checkpoint:
        assert precision(checkpoint) == preset


def test_other_weights_are_called_by_what_they_are(golden: Path, tmp_path: Path):
    with open_checkpoint(golden / "minicpm2b_tied_bf16_bin") as checkpoint:
        assert precision(checkpoint) == "bfloat16"
        assert precision(checkpoint, "float32") == "float32"


def test_a_row_beyond_caches_is_believed_up_to_the_bandwidth(row: dict[str, Any], tmp_path: Path):
    assert read(tmp_path, row).speeds[1].tokens_per_s.median == 36


def at(row: dict[str, Any], where: str) -> tuple[Any, Any]:
    """The object that holds the dotted place, and its key in it."""
    *parents, last = (int(part) if part.isdecimal() else part for part in where.split("."))
    for part in parents:
        row = row[part]
    return row, last


def tomorrow(days: int) -> str:
    return (datetime.now(UTC).date() + timedelta(days=days)).isoformat()


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        ("version", 2, "version is 2, expected 1"),
        ("version", None, "version is None, expected 1"),
        ("date", "yesterday", "Invalid isoformat"),
        ("date", tomorrow(3), "is in the future"),
        ("device.name", "a | b", "without |"),
        ("device.name", "<script>", "without |"),
        ("device.name", "two\nlines", "without |"),
        ("device.name", "x" * 101, "1 to 100 characters"),
        ("device.soc", "", "1 to 100 characters"),
        ("device.memory_bytes", "much", "device.memory_bytes is 'much', expected int"),
        ("device.memory_bytes", 1_000, "the device has 1000 bytes of memory"),
        ("device.logical_processors", 0, "expected 1 or more"),
        ("threads", 1 << 40, "expected 1 or more"),
        ("threads", True, "threads is True, expected int"),
        ("model.name", "/home/somebody/model", "a path; expected a name"),
        ("model.name", "~/model", "a path; expected a name"),
        ("model.sha256", "0" * 64, "does not match model.weights"),
        ("model.sha256", "A" * 64, "is not a SHA-256"),
        ("model.weights", [], "one file or more"),
        ("model.weights.0.nbytes", 0, "below 1 byte"),
        ("model.weights.0", 7, "model.weights[0] is 7, expected an object"),
        ("model.weights", "all", "expected a list"),
        ("load_s", float("nan"), "load_s is nan, expected a finite number"),
        ("load_s", 10**400, "expected a finite number"),
        ("first_token_s", -1.0, "must not be negative"),
        ("read_bandwidth.best", 1.0, "expected these in order"),
        ("read_bandwidth.best", 1e14, "below 1e+13"),
        ("integer_peak", {"median": 1.0, "best": 1.0, "worst": 1.0}, "above 1e+06"),
        ("speeds", [], "decoding among them"),
        ("speeds.1.kind", "thought", "speeds must have every point once"),
        ("speeds.2.kind", "thought", "expected one of prefill, decode, batch"),
        ("speeds.2.size", 0, "and a size"),
        ("speeds.1.size", 10, "expected 500010000"),
        ("speeds.1.bytes_per_step", 400_000_000, "expected 500000000"),
        ("speeds.1.tokens_per_s.worst", 0.0, "expected these in order"),
        ("speeds.1.of_bandwidth", None, "and of_bandwidth"),
        ("speeds.1.of_bandwidth", -0.1, "must be above 0"),
        ("speeds.0.of_bandwidth", 0.1, "of_bandwidth is 0.1, expected null"),
        ("speeds.1.of_integer_peak", 0.1, "of_integer_peak is 0.1, expected null"),
        ("speeds.1.tokens_per_s", {"median": 62.0, "best": 62.0, "worst": 62.0}, "62 tokens/s would read 31.0 GB/s"),
        ("speeds.1.of_bandwidth", 1.2, "120 % of the memory's bandwidth"),
        ("a_field", 1, "it has an unknown 'a_field'"),
        ("device.serial", "4711", "device has an unknown 'serial'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_row_that_cannot_be_is_refused(
    row: dict[str, Any], tmp_path: Path, where: str, value: object, complaint: str
):
    wrong = copy.deepcopy(row)
    parent, key = at(wrong, where)
    parent[key] = value
    with pytest.raises(FormatError) as refused:
        read(tmp_path, wrong)
    assert complaint in str(refused.value)
    assert "row.json: is not a row of `minicpm bench --report`" in str(refused.value)


@pytest.mark.parametrize("where", ["isa", "device.soc", "model.weights.0.sha256", "speeds.0.tokens_per_s.best"])
def test_a_row_that_lacks_something_is_refused(row: dict[str, Any], tmp_path: Path, where: str):
    wrong = copy.deepcopy(row)
    parent, key = at(wrong, where)
    del parent[key]
    with pytest.raises(FormatError, match=f"lacks '{key}'"):
        read(tmp_path, wrong)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: f"[{text}]", "expected an object"),
        (lambda text: text.replace("{", '{"isa": "avx2",', 1), "a key appears twice"),
        (lambda text: text + " " * 200_000, "expected at most 100,000"),
    ],
    ids=["half", "a list", "twice", "large"],
)
def test_a_damaged_file_is_refused(row: dict[str, Any], tmp_path: Path, damage: Callable[[str], str], complaint: str):
    with pytest.raises(FormatError, match=complaint):
        read(tmp_path, damage(json.dumps(row)))


def test_no_row_is_made_of_a_measurement_that_was_disturbed(model: Path):
    """A clock that stood still, for instance."""
    with open_checkpoint(model, allow_quantized=True) as checkpoint:
        good = measurement(step_weight_bytes(checkpoint))
    slow = replace(good, first_token_s=-0.1)
    with pytest.raises(MiniCPMError, match="measure again while nothing else runs"):
        report_of(model, slow)
    with pytest.raises(ValueError, match="needs the memory's bandwidth"):
        report_of(model, replace(good, read_bandwidth=None))
