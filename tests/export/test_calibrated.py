"""`quantize_folder` with a calibrated method: what is written, how it goes on after a failure, what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicpm.errors import ModelError
from minicpm.export import calibrated
from minicpm.export.quantize import CalibrationText, Quantization, quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.models.calibration import CalibrationRun
from minicpm.quant.format import read_weight
from small_models import WIDE, random_weights, write_model

CALIBRATED_BLOCK = calibrated._calibrated_block
TEXT = CalibrationText([list(np.random.default_rng(row).integers(0, 203, 64)) for row in range(12)], "random ids")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    return write_model(tmp_path / "wide", WIDE, random_weights(WIDE, std=0.1))


def quantize(source: Path, destination: Path, text: CalibrationText = TEXT, **options: object) -> Quantization:
    return quantize_folder(source, destination, method="gptq", calibration=text, **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def output_error(source: Path, made: Path) -> dict[str, float]:
    """Of each block matrix: squared error of its outputs for the inputs of the float model, relative."""
    found = {}
    with open_checkpoint(source) as plain, open_checkpoint(made, allow_quantized=True) as rounded:
        weights = {name: plain.read(name).float32().copy() for name in plain.config.parameter_shapes()}
        run = CalibrationRun(plain.config, weights["model.embed_tokens.weight"], TEXT.rows)
        for block in range(plain.config.num_hidden_layers):
            parts = {name: values for name, values in weights.items() if f".layers.{block}." in name}
            for names, statistics in run.block(block, parts):
                for name in names:
                    error = read_weight(rounded, name).dequantize() - weights[name]
                    whole = np.sum((weights[name] @ statistics.moments) * weights[name])
                    found[name] = float(np.sum((error @ statistics.moments) * error) / whole)
    return found


@pytest.mark.parametrize("preset", ["int4", "int4-small", "int4-hf"])
def test_outputs_lose_less_than_by_rounding_to_nearest_at_the_same_size(wide: Path, tmp_path: Path, preset: str):
    plain = quantize_folder(wide, tmp_path / "rtn", preset=preset, equalize=False)
    done = quantize(wide, tmp_path / "gptq", preset=preset, equalize=False)
    assert done.method == "gptq" and done.nbytes == plain.nbytes
    before, after = output_error(wide, tmp_path / "rtn"), output_error(wide, tmp_path / "gptq")
    assert np.median([after[name] / before[name] for name in before]) < 0.9
    assert sorted(content(tmp_path / "rtn")) == sorted(content(tmp_path / "gptq"))
    assert not list(tmp_path.glob(".*"))


def test_a_killed_run_goes_on_and_writes_the_same_bytes(wide: Path, tmp_path: Path):
    quantize(wide, tmp_path / "expected")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from test_calibrated import quantize\n"
        "from minicpm.export import calibrated\n"
        "write = calibrated._write_weights\n"
        "def killed(folder, block, weights):\n"
        "    if block == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(folder, block, weights)\n"
        "calibrated._write_weights = killed\n"
        "quantize(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    killed = subprocess.run(
        [sys.executable, "-c", script, wide, tmp_path / "out"], env={**os.environ, "PYTHONPATH": paths}
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".out.calibration" / "block-0.npz").is_file() and not (tmp_path / "out").exists()
    quantize(wide, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "expected")
    assert not (tmp_path / ".out.calibration").exists()


def test_only_blocks_of_the_same_work_are_taken(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quantize(wide, tmp_path / "out")
    blocks = interrupt_at(99, monkeypatch)
    quantize(wide, tmp_path / "out")
    assert blocks == [1]
    interrupt_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quantize(wide, tmp_path / "other")
    blocks = interrupt_at(99, monkeypatch)
    quantize(wide, tmp_path / "other", CalibrationText(TEXT.rows[1:], "other ids"))
    assert blocks == [0, 1]


def interrupt_at(block: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt calibration before a block; the blocks that were begun."""
    begun: list[int] = []

    def interrupted(source: calibrated.Source, state: CalibrationRun, index: int) -> dict[str, object]:
        if index == block:
            raise KeyboardInterrupt
        begun.append(index)
        return CALIBRATED_BLOCK(source, state, index)  # type: ignore[return-value]

    monkeypatch.setattr(calibrated, "_calibrated_block", interrupted)
    return begun


def test_nothing_stays_if_no_block_was_done(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt_at(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quantize(wide, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


def test_a_matrix_that_is_not_finite_is_named(tmp_path: Path):
    weights = random_weights(WIDE)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp"):
        quantize(write_model(tmp_path / "wide", WIDE, weights), tmp_path / "out", equalize=False)


def test_text_and_method_have_to_agree(wide: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="method gptq takes a text"):
        quantize_folder(wide, tmp_path / "out", method="gptq")
    with pytest.raises(ValueError, match="method rtn takes no text"):
        quantize_folder(wide, tmp_path / "out", method="rtn", calibration=TEXT)
