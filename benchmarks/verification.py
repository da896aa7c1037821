"""What a step over M tokens of one text costs, and how many drafts must be right for lookup decoding to pay.

    python benchmarks/verification.py [--folder runs/2b] [--repeats 5]

`minicpm bench --verify 16` on the presets that versus_peers.py makes. Random weights say nothing of how many drafts are
right, so no gain is shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from costs import require_idle_machine, write_results
from report import write_report
from versus_peers import MINICPM, models

PRESETS = ("int4-small", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    args = parser.parse_args()
    require_idle_machine()
    paths = models(args.folder, args.presets)
    steps = {preset: verifications(paths[preset], args.repeats) for preset in args.presets}
    rows = []
    for index in range(len(steps[args.presets[0]])):
        row: dict[str, object] = {"tokens": index + 1}
        for preset in args.presets:
            step = steps[preset][index]
            part = step["break_even_acceptance"]
            row[f"{preset}, ms"] = round(1e3 * step["step_s"]["median"], 1)
            row[f"{preset}, single steps"] = round(step["cost"], 2)
            row[f"{preset}, drafts that must be right"] = "-" if part is None else f"{100 * part:.0f} %"
        rows.append(row)
    note = f"True MiniCPM-2B shapes, random weights, medians of {args.repeats} windows, at depth 0, all logits."
    print("wrote", write_results("verification", rows, note))
    write_report()


def verifications(folder: Path, repeats: int) -> list[dict]:
    command = [*MINICPM, "bench", "-m", str(folder), "--prefill", "", "--decode", "0", "--batch", "", "--verify", "16"]
    done = subprocess.run([*command, "--repeats", str(repeats), "--json"], check=True, capture_output=True, text=True)
    found: list[dict] = json.loads(done.stdout)["verifications"]
    return found


if __name__ == "__main__":
    main()
