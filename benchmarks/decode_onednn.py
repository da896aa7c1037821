"""Why single bf16 tokens go past oneDNN on the CPU: decode of the true MiniCPM-2B with and without it, in turns.

python benchmarks/decode_onednn.py [--folder runs/2b] [--repeats 5]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from pathlib import Path

from costs import require_idle_machine, write_results
from report import write_report

import minicpm.engine.backends.torch as backend
from minicpm import LLM
from minicpm.engine.backend import Row

TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    require_idle_machine()
    llm = LLM(args.folder)
    ours = backend._fastest_matmul
    roads = {"without oneDNN (ours)": ours, "with oneDNN (torch's default)": lambda *shape: contextlib.nullcontext()}
    speeds: dict[str, list[float]] = {what: [] for what in roads}
    decode(llm)
    for _ in range(args.repeats):
        for what, road in roads.items():
            backend._fastest_matmul = road
            speeds[what].append(decode(llm))
    rows = [
        {"what": what, "runs": len(found), "decode_tokens_per_s": round(statistics.median(found), 2)}
        for what, found in speeds.items()
    ]
    print(rows, write_results("decode_onednn", rows, "MiniCPM-2B shapes, bf16, one sequence, 2 threads, medians."))
    write_report()


def decode(llm: LLM) -> float:
    """Tokens per second over TOKENS single-token steps."""
    sequence = llm.backend.new_sequence(TOKENS + 1)
    llm.backend.forward([Row(sequence, [1])])
    start = time.perf_counter()
    for token_id in range(5, 5 + TOKENS):
        llm.backend.forward([Row(sequence, [token_id])])
    return TOKENS / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
