"""Finds the faults of a model's files and writes a repaired copy. Other rooms use only this module of `doctor`.

gguf.py and folder.py examine the files first. measured.py then runs the model and adds the faults that no file shows.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from minicpm.doctor.faults import Examination, Fault, unreadable
from minicpm.doctor.folder import FolderExamination
from minicpm.doctor.gguf import GgufExamination
from minicpm.doctor.measured import Measured, measure, open_only
from minicpm.formats.gguf import is_gguf

# A measured fault -> the fault of the files that explains it.
EXPLAINED_BY = {"lost-scales": "missing-mup", "wrong-rope-theta": "missing-rope-theta"}
# Faults of the files that may keep a model from opening. Without one of them, a model that does not open is unreadable.
KEEP_FROM_OPENING = frozenset(
    {
        "missing-mup",
        "wrong-tie",
        "impossible-config",
        "unsaid-quantization",
        "missing-tokenizer",
        "unreadable-tokenizer",
        "wrong-tokenizer-json",
        "flat-scores",
        "byte-level-tokenizer",
        "wrong-bos",
        "wrong-eos",
        "unreadable",
    }
)
# Weights that other programs run: their headers are read, and this package does not open them.
KINDS_OF_OTHERS = ("gptq", "awq", "mlx")


@dataclass(frozen=True)
class Diagnosis:
    """The faults of a model's files. `left` are those of the repaired copy if one was written, else all of them."""

    path: Path
    kind: str  # Examination.kind
    faults: tuple[Fault, ...]
    left: tuple[Fault, ...]
    repaired: Path | None
    silence: str | None  # the reason if running the model gave no verdict


def diagnose(path: Path, *, copy: Path | None = None, runs: bool = True, overwrite: bool = False) -> Diagnosis:
    """Find the faults of a folder or GGUF file. With `copy`, write a repaired one if any fault can be repaired.

    Without `runs` the model is not run, and the order of rows, the constants and the rotary base are not checked.
    A model that cannot be read has the fault "unreadable", and no copy of it is kept.
    `overwrite` replaces `copy` if it is a model. Raises MiniCPMError subclasses for files that cannot be examined.
    """
    examination, measured = _examined(path, runs)
    left, repaired = examination.faults, None
    try:
        if copy is not None and any(fault.is_repairable for fault in left) and not _is_unreadable(left):
            repaired = copy
            left, measured = _write_repaired(examination, copy, runs, overwrite)
            if _is_unreadable(left):
                repaired = None
                shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    finally:
        examination.close()
    silence = None if _is_unreadable(left) else measured.silence
    return Diagnosis(path, examination.kind, tuple(examination.faults), tuple(left), repaired, silence)


def _examined(path: Path, runs: bool) -> tuple[Examination, Measured]:
    examination: Examination = GgufExamination(path) if is_gguf(path) else FolderExamination(path)
    try:
        measured = measure(path, can_reorder_rows=examination.can_reorder_rows) if runs else open_only(path)
    except BaseException:
        examination.close()
        raise
    _add(examination, measured)
    known = {fault.name for fault in examination.faults}
    if measured.unreadable and not known & KEEP_FROM_OPENING and examination.kind not in KINDS_OF_OTHERS:
        examination.faults.append(unreadable(measured.unreadable))
    return examination, measured


def _is_unreadable(faults: list[Fault]) -> bool:
    return any(fault.name == "unreadable" for fault in faults)


def _write_repaired(examination: Examination, copy: Path, runs: bool, overwrite: bool) -> tuple[list[Fault], Measured]:
    """Write the copy and examine it.

    Some faults prevent the model from running. If the copy runs and shows more faults, it is written again without
    them.
    """
    examination.write_repaired(copy, overwrite=overwrite)
    written, measured = _examined(copy, runs)
    written.close()
    if measured.correction is not None:
        _add(examination, measured)
        examination.write_repaired(copy, overwrite=True)
        written, measured = _examined(copy, runs)
        written.close()
    return written.faults, measured


def _add(examination: Examination, measured: Measured) -> None:
    """Add the measured faults, except those that a fault of the files explains."""
    known = {fault.name for fault in examination.faults}
    examination.faults += [fault for fault in measured.faults if EXPLAINED_BY.get(fault.name) not in known]
    if measured.correction is not None:
        examination.correct(measured.correction)
