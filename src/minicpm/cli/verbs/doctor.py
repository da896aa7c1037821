"""`minicpm doctor PATH`: what is wrong with a model's files, what that looks like in use, and a copy without it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from minicpm.cli.output import printable, talk
from minicpm.doctor.faults import Examination, Fault
from minicpm.doctor.folder import FolderExamination
from minicpm.doctor.gguf import GgufExamination
from minicpm.doctor.measured import Measured, measure
from minicpm.formats.gguf import is_gguf

# Where a file leaves out what the model needs, running it shows the same once more.
SAME = {"lost-scales": "missing-mup", "wrong-rope-theta": "missing-rope-theta"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a model's folder or .gguf file")
    parser.add_argument("--fix", metavar="OUT", type=Path, help="write a repaired copy; PATH itself is never changed")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is a model")
    parser.add_argument(
        "--no-run",
        dest="runs",
        action="store_false",
        help="look at the files only; the order of rows, constants and the rotary base are then taken on trust",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    examination, measured = examined(args.path.expanduser(), runs=args.runs)
    left, repaired = examination.faults, None
    try:
        if args.fix is not None and any(fault.is_repairable for fault in left):
            repaired = args.fix.expanduser()
            left, measured = _repair(examination, repaired, runs=args.runs, overwrite=args.force)
    finally:
        examination.close()
    if args.json:
        record = _record(examination, repaired, len(left), measured.silence)
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        print(printable("\n".join(_lines(examination))))
        if measured.silence is not None:
            talk(measured.silence)
        if repaired is not None:
            talk(f"{repaired}: written" + (f"; {len(left)} of the faults above cannot be repaired" if left else ""))
        elif left and args.fix is None and any(fault.is_repairable for fault in left):
            talk(f"minicpm doctor {args.path} --fix OUT writes a repaired copy")
    return 1 if left else 0


def examined(path: Path, *, runs: bool) -> tuple[Examination, Measured]:
    """What is wrong with a file or folder, and what running the model told of it; close it afterwards."""
    examination: Examination = GgufExamination(path) if is_gguf(path) else FolderExamination(path)
    try:
        measured = measure(path, can_reorder_rows=examination.can_reorder_rows) if runs else Measured()
    except BaseException:
        examination.close()
        raise
    _add(examination, measured)
    return examination, measured


def _repair(examination: Examination, copy: Path, *, runs: bool, overwrite: bool) -> tuple[list[Fault], Measured]:
    """Write the copy, and tell what is wrong with it; once more where it can be run and the original could not."""
    examination.write_repaired(copy, overwrite=overwrite)
    written, measured = examined(copy, runs=runs)
    written.close()
    if measured.correction is not None:
        _add(examination, measured)
        examination.write_repaired(copy, overwrite=True)
        written, measured = examined(copy, runs=runs)
        written.close()
    return written.faults, measured


def _add(examination: Examination, measured: Measured) -> None:
    """What running told, but for what the files have told already."""
    known = {fault.name for fault in examination.faults}
    examination.faults += [fault for fault in measured.faults if SAME.get(fault.name) not in known]
    if measured.correction is not None:
        examination.correct(measured.correction)


def _record(examination: Examination, repaired: Path | None, left: int, silence: str | None) -> dict[str, object]:
    return {
        "path": str(examination.path),
        "kind": examination.kind,
        "faults": [asdict(fault) for fault in examination.faults],
        "not_judged": silence,
        "repaired": None if repaired is None else str(repaired),
        "faults_left": left,
    }


def _lines(examination: Examination) -> list[str]:
    if not examination.faults:
        return [f"{examination.path}: none of the known faults"]
    lines = []
    for fault in examination.faults:
        cure = "a repaired copy has" if fault.is_repairable else "cannot be repaired here; it needs"
        lines += [
            f"{fault.name}: {fault.found}",
            f"  you see: {fault.symptom}",
            f"  {cure}: {fault.cure}",
        ]
    return lines
