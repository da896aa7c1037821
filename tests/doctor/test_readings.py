"""The readings in which a model is run: on which engine, on how many texts, and without a trace in the packed files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from broken_models import broken_gguf, nano_gguf
from minicpm import LLM, native
from minicpm.doctor import measured
from minicpm.doctor.faults import Correction
from minicpm.doctor.measured import measure
from minicpm.engine.backends import packed
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.hub import embedded, packed_files

needs_native = pytest.mark.skipif(native.why_missing() is not None, reason="no native engine")
IDS = [1, 300, 7, 1200, 45, 45, 6, 2000]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GGUF file of a trained model."""
    return nano_gguf(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="module")
def disordered(nano: Path) -> Path:
    """The same model with rows of q and k in the wrong order."""
    return broken_gguf(nano, nano.with_name("broken.gguf"), "row-order")


@needs_native
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_native_engine_gives_the_bits_of_numpy_in_every_reading(
    disordered: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    with open_checkpoint(disordered if kind == "gguf" else embedded.folder(), allow_quantized=True) as checkpoint:
        readings = measured._readings(checkpoint.config)
        found = [measured._losses(checkpoint, reading, [IDS])[0] for reading in readings]
        monkeypatch.setattr(native, "why_missing", lambda: "not today")
        assert isinstance(measured._backend(checkpoint, readings[0]), NumpyBackend)
        expected = [measured._losses(checkpoint, reading, [IDS])[0] for reading in readings]
    assert np.array_equal(found, expected)
    assert len({tuple(losses) for losses in found}) == len(readings)


def test_the_other_order_of_wrong_rows_is_the_sound_model(nano: Path, disordered: Path):
    """To the last bit: codes and scales of a row stay together."""
    found = []
    for path, reorders in ((nano, False), (disordered, True), (disordered, False)):
        with open_checkpoint(path, allow_quantized=True) as checkpoint:
            found.append(measured._losses(checkpoint, Correction(checkpoint.config, reorders), [IDS])[0])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def texts_of_readings(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bool, set[int]]:
    """How many texts the readings with the files' own constants (True) and with others (False) were run on."""
    monkeypatch.setattr(measured, "MOST_TOKENS", 64)
    losses, texts = measured._losses, dict[Correction, int]()

    def counted(checkpoint: Checkpoint, reading: Correction, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        texts[reading] = texts.get(reading, 0) + len(rows)
        return losses(checkpoint, reading, rows)

    monkeypatch.setattr(measured, "_losses", counted)
    assert measure(path, can_reorder_rows=True).faults == ()
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        own = Correction(checkpoint.config, reorders_rows=False)
        assert set(texts) == set(measured._readings(checkpoint.config))
    return {
        is_own: {count for reading, count in texts.items() if (reading == own) is is_own} for is_own in (True, False)
    }


def test_a_reading_that_is_far_worse_on_the_first_text_is_not_run_on_the_others(monkeypatch: pytest.MonkeyPatch):
    assert texts_of_readings(embedded.folder(), monkeypatch) == {True: {3}, False: {1}}


def test_a_reading_that_is_a_little_worse_is_run_on_all_texts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured, "HOPELESS_NATS", 100.0)
    assert texts_of_readings(embedded.folder(), monkeypatch) == {True: {3}, False: {3}}


def test_a_text_that_no_reading_knows_rules_none_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured, "KNOWN_NATS", 0.0)
    assert texts_of_readings(embedded.folder(), monkeypatch) == {True: {3}, False: {3}}


@needs_native
def test_packed_files_are_neither_read_nor_written(disordered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They hold the file's own order of rows; a reading has another one."""
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path))
    monkeypatch.setattr(packed, "SMALLEST_FILE_BYTES", 0)
    path = packed_files.path_of(disordered)
    for is_there in (False, True):
        if is_there:
            LLM(disordered, backend="native")
        assert path.exists() is is_there
        before = path.read_bytes() if is_there else b""
        found = measure(disordered, can_reorder_rows=True)
        assert [fault.name for fault in found.faults] == ["row-order"]
        assert (path.read_bytes() if path.exists() else b"") == before
