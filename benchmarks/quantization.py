"""Quantize the true MiniCPM-2B to INT4 and answer from it without torch: time, memory and size.

python benchmarks/quantization.py [--folder runs/2b] [--preset int4]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from costs import measure, require_idle_machine, row, write_results
from report import write_report
from true_shapes import MINICPM, told

PROMPT_WORDS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"))
    parser.add_argument("--preset", default="int4")
    args = parser.parse_args()
    require_idle_machine()
    folder = args.folder.with_name(f"{args.folder.name}-{args.preset}")
    shutil.rmtree(folder, ignore_errors=True)
    command = [*MINICPM, "quantize", str(args.folder), str(folder), "--preset", args.preset, "--json"]
    cost = measure(command)
    rows = [told(row(f"quantize to {args.preset}", cost, weight_bytes=json.loads(cost.stdout)["weight_bytes"]))]
    answer = [*MINICPM, "run", "-m", str(folder), "--seed", "1", "--json"]
    long_prompt = " ".join(["word"] * PROMPT_WORDS)
    for name, options in (
        ("native engine, first start: packs the weights", ["--max-tokens", "64", "hi"]),
        ("native engine, later starts: maps them", ["--max-tokens", "64", "hi"]),
        (f"native engine, a prompt of {PROMPT_WORDS} words", ["--max-tokens", "16", long_prompt]),
        ("numpy engine", ["--backend", "numpy", "--max-tokens", "3", "hi"]),
    ):
        cost = measure([*answer, *options])
        timings = json.loads(cost.stdout)["timings"]
        speeds = {key: round(timings[key], 2) for key in ("prefill_tokens_per_s", "decode_tokens_per_s")}
        rows.append(told(row(f"run, {name}", cost, **speeds)))
    shutil.rmtree(folder)
    print("wrote", write_results("quantization", rows, "MiniCPM-2B shapes, random weights, RTN with scale search."))
    write_report()


if __name__ == "__main__":
    main()
