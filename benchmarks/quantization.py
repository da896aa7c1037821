"""Quantize the true MiniCPM-2B to INT4 and answer from it without torch: time, memory and size.

python benchmarks/quantization.py [--folder runs/2b] [--preset int4]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from measure import measure, row, write_results
from report import write_report
from true_shapes import MINICPM, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"))
    parser.add_argument("--preset", default="int4")
    args = parser.parse_args()
    folder = args.folder.with_name(f"{args.folder.name}-{args.preset}")
    shutil.rmtree(folder, ignore_errors=True)
    command = [*MINICPM, "quantize", str(args.folder), str(folder), "--preset", args.preset, "--json"]
    cost = measure(command)
    rows = [told(row(f"quantize to {args.preset}", cost, weight_bytes=json.loads(cost.stdout)["weight_bytes"]))]
    cost = measure([*MINICPM, "run", "-m", str(folder), "--max-tokens", "3", "--seed", "1", "--json", "hi"])
    timings = json.loads(cost.stdout)["timings"]
    speed = round(timings["decode_tokens_per_s"], 2)
    rows.append(told(row("run, 3 tokens, numpy engine", cost, decode_tokens_per_s=speed)))
    shutil.rmtree(folder)
    print("wrote", write_results("quantization", rows, "MiniCPM-2B shapes, random weights, RTN with scale search."))
    write_report()


if __name__ == "__main__":
    main()
