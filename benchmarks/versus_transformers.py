"""minicpm and transformers in turn on the true MiniCPM-2B: start to first token, and decoding.

    python benchmarks/versus_transformers.py [--folder runs/2b] [--repeats 3]

The same weights, transformers' in the Granite form it knows; whole processes, medians. Run it on an otherwise idle
machine: both use all cores, and a second program between their barriers slows either many times over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Cost, measure, write_results
from report import write_report
from true_shapes import PEER, PROMPT, TOKENS, converted, generate, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with converted(args.folder, "granite", [], "for the peer") as (granite, _, _):
        rows = [told(one) for one in versus(args.folder, granite, args.repeats)]
    print("wrote", write_results("versus_transformers", rows, "MiniCPM-2B shapes, random weights, bf16, 2 threads."))
    write_report()


def versus(model: Path, granite: Path, repeats: int) -> Iterator[dict[str, object]]:
    """minicpm and transformers in turn on the same weights, medians of `repeats`."""
    ours: list[tuple[Cost, float]] = []
    peers: list[tuple[Cost, float]] = []
    first_ours: list[float] = []
    first_peers: list[float] = []
    for _ in range(repeats):
        cost = generate(model, TOKENS)
        ours.append((cost, json.loads(cost.stdout)["timings"]["decode_tokens_per_s"]))
        cost = measure([sys.executable, str(PEER), str(granite), str(TOKENS), PROMPT])
        peers.append((cost, json.loads(cost.stdout)["decode_tokens_per_s"]))
        first_ours.append(generate(model, 1).wall_s)
        first_peers.append(measure([sys.executable, str(PEER), str(granite), "1", PROMPT]).wall_s)
    yield versus_row(f"minicpm run, start to first token and {TOKENS} greedy tokens", ours, first_ours)
    yield versus_row("transformers (Granite form), the same", peers, first_peers)


def versus_row(what: str, runs: list[tuple[Cost, float]], firsts: list[float]) -> dict[str, object]:
    def median(of: Callable[[Cost], float]) -> float:
        return round(statistics.median(of(cost) for cost, _ in runs), 2)

    return {
        "what": what,
        "runs": len(runs),
        "first_token_s": round(statistics.median(firsts), 2),
        "decode_tokens_per_s": round(statistics.median(speed for _, speed in runs), 2),
        "peak_private_bytes": median(lambda cost: cost.peak_private_bytes),
        "peak_rss_bytes": median(lambda cost: cost.peak_rss_bytes),
    }


if __name__ == "__main__":
    main()
