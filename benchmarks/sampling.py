"""What choosing a token of MiniCPM-2B's vocabulary takes: the C++ of csrc/sampling.cc and its numpy reference in turns.

python benchmarks/sampling.py [--draws 200]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from costs import require_idle_machine, write_results
from report import write_report

from minicpm import native
from minicpm.sampling import Sampler, SamplingParams

VOCABULARY = 122_753
PROMPT = np.random.default_rng(0).integers(0, VOCABULARY, 500).tolist()
SETTINGS = {
    "defaults": SamplingParams(),
    "temperature 1 alone": SamplingParams(temperature=1, top_p=1, repetition_penalty=1),
    "defaults, top_k 50": SamplingParams(top_k=50),
    "defaults, min_p 0.05": SamplingParams(min_p=0.05),
    "greedy": SamplingParams(temperature=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    require_idle_machine()
    logits = {"peaked": peaked(), "flat": np.random.default_rng(2).standard_normal(VOCABULARY).astype(np.float32)}
    rows = [
        {"what": f"{shape}, {name}", **times(row, params, args.draws)}
        for shape, row in logits.items()
        for name, params in SETTINGS.items()
    ]
    note = f"Vocabulary {VOCABULARY:,}, 500 tokens of prompt, {native.isa()}; the same tokens, medians in milliseconds."
    print(write_results("sampling", rows, note))
    write_report()


def peaked() -> np.ndarray:
    """A few likely tokens above a broad floor, as a language model gives."""
    random = np.random.default_rng(1)
    logits = random.standard_normal(VOCABULARY) * 2
    logits[random.integers(0, VOCABULARY, 20)] += random.uniform(5, 14, 20)
    return logits.astype(np.float32)


def times(logits: np.ndarray, params: SamplingParams, draws: int) -> dict[str, object]:
    """Milliseconds of a token, native and in numpy; RuntimeError if the two ever choose different ones."""
    fast, reference = Sampler(params, 1, PROMPT), Sampler(params, 1, PROMPT)
    reference._isa = None
    found: dict[str, list[float]] = {"native_ms": [], "numpy_ms": []}
    for position in range(500, 500 + draws):
        chosen = []
        for sampler, values in zip((fast, reference), found.values()):
            start = time.perf_counter()
            chosen.append(sampler.sample(logits, position).token_id)
            values.append(1e3 * (time.perf_counter() - start))
        if len(set(chosen)) > 1:
            raise RuntimeError(f"native chose {chosen[0]}, numpy {chosen[1]} at position {position}")
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


if __name__ == "__main__":
    main()
