"""`minicpm doctor PATH`: finds faults of a model's files, shows their symptoms, and writes a repaired copy."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from minicpm.cli.output import printable, talk
from minicpm.doctor.diagnosis import Diagnosis, diagnose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a model's folder or .gguf file")
    parser.add_argument("--fix", metavar="OUT", type=Path, help="write a repaired copy; PATH itself is never changed")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is a model")
    parser.add_argument(
        "--no-run",
        dest="runs",
        action="store_false",
        help="check the files only, but not the order of rows, the constants and the rotary base",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    copy = None if args.fix is None else args.fix.expanduser()
    diagnosis = diagnose(args.path.expanduser(), copy=copy, runs=args.runs, overwrite=args.force)
    if args.json:
        print(json.dumps(_record(diagnosis), indent=2, ensure_ascii=False))
    else:
        print(printable("\n".join(_lines(diagnosis))))
        for sentence in _remarks(diagnosis, is_asked=copy is not None):
            talk(sentence)
    return 1 if diagnosis.left else 0


def _record(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "path": str(diagnosis.path),
        "kind": diagnosis.kind,
        "faults": [asdict(fault) for fault in diagnosis.faults],
        "not_judged": diagnosis.silence,
        "repaired": None if diagnosis.repaired is None else str(diagnosis.repaired),
        "faults_left": len(diagnosis.left),
    }


def _lines(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.faults:
        return [f"{diagnosis.path}: none of the known faults"]
    lines = []
    for fault in diagnosis.faults:
        cure = "a repaired copy has" if fault.is_repairable else "cannot be repaired here; it needs"
        lines += [
            f"{fault.name}: {fault.found}",
            f"  you see: {fault.symptom}",
            f"  {cure}: {fault.cure}",
        ]
    return lines


def _remarks(diagnosis: Diagnosis, *, is_asked: bool) -> list[str]:
    """Remarks below the list of faults; `is_asked`: the user asked for a repaired copy."""
    left, remarks = diagnosis.left, []
    if diagnosis.silence is not None:
        remarks.append(diagnosis.silence)
    if diagnosis.repaired is not None:
        unrepaired = f"; {len(left)} of the faults above cannot be repaired" if left else ""
        remarks.append(f"{diagnosis.repaired}: written{unrepaired}")
    elif is_asked and any(fault.name == "unreadable" for fault in left):
        remarks.append("no copy was written, because it could not be opened either")
    elif not is_asked and any(fault.is_repairable for fault in left):
        remarks.append(f"minicpm doctor {diagnosis.path} --fix OUT writes a repaired copy")
    return remarks
