"""`minicpm doctor PATH`: what is wrong with a model's files, what that looks like in use, and a copy without it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from minicpm.cli.output import printable, talk
from minicpm.formats.faults import Examination, Fault
from minicpm.formats.folder_faults import FolderExamination
from minicpm.formats.gguf import has_magic
from minicpm.formats.gguf_faults import GgufExamination


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a model's folder or .gguf file")
    parser.add_argument("--fix", metavar="OUT", type=Path, help="write a repaired copy; PATH itself is never changed")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is a model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    path = args.path.expanduser()
    examination = examine(path)
    left, repaired = examination.faults, None
    try:
        if args.fix is not None and any(fault.is_repairable for fault in left):
            repaired = args.fix.expanduser()
            examination.write_repaired(repaired, overwrite=args.force)
            left = _faults_of(repaired)
    finally:
        examination.close()
    if args.json:
        print(json.dumps(_record(examination, repaired, len(left)), indent=2, ensure_ascii=False))
    else:
        print(printable("\n".join(_lines(examination))))
        if repaired is not None:
            talk(f"{repaired}: written" + (f"; {len(left)} of the faults above cannot be repaired" if left else ""))
        elif left and args.fix is None and any(fault.is_repairable for fault in left):
            talk(f"minicpm doctor {path} --fix OUT writes a repaired copy")
    return 1 if left else 0


def examine(path: Path) -> Examination:
    """What is wrong with a file or folder; close it afterwards."""
    if path.is_file() and (path.suffix == ".gguf" or has_magic(path)):
        return GgufExamination(path)
    return FolderExamination(path)


def _faults_of(path: Path) -> list[Fault]:
    examination = examine(path)
    examination.close()
    return examination.faults


def _record(examination: Examination, repaired: Path | None, left: int) -> dict[str, object]:
    return {
        "path": str(examination.path),
        "kind": examination.kind,
        "faults": [asdict(fault) for fault in examination.faults],
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
