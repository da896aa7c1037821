"""Finds the faults of a model's files and writes a repaired copy. Other rooms use only this module of `doctor`.

gguf.py and folder.py examine the files first. measured.py then runs the model and adds the faults that no file shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minicpm.doctor.faults import Examination, Fault
from minicpm.doctor.folder import FolderExamination
from minicpm.doctor.gguf import GgufExamination
from minicpm.doctor.measured import Measured, measure
from minicpm.formats.gguf import is_gguf

# A measured fault -> the fault of the files that explains it.
EXPLAINED_BY = {"lost-scales": "missing-mup", "wrong-rope-theta": "missing-rope-theta"}


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
    `overwrite` replaces `copy` if it is a model. Raises MiniCPMError subclasses for files that cannot be examined.
    """
    examination, measured = _examined(path, runs)
    left, repaired = examination.faults, None
    try:
        if copy is not None and any(fault.is_repairable for fault in left):
            repaired = copy
            left, measured = _write_repaired(examination, copy, runs, overwrite)
    finally:
        examination.close()
    return Diagnosis(path, examination.kind, tuple(examination.faults), tuple(left), repaired, measured.silence)


def _examined(path: Path, runs: bool) -> tuple[Examination, Measured]:
    examination: Examination = GgufExamination(path) if is_gguf(path) else FolderExamination(path)
    try:
        measured = measure(path, can_reorder_rows=examination.can_reorder_rows) if runs else Measured()
    except BaseException:
        examination.close()
        raise
    _add(examination, measured)
    return examination, measured


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
