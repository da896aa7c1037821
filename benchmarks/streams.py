"""Many answers at once, and a long prompt beside a few: tokens a second, and how long a stream stands still.

    python benchmarks/streams.py                             # MiniCPM-nano; benchmarks/results/streams.json
    python benchmarks/streams.py --model runs/2b-int4 --streams 1,4 --name streams-2b

Every number is the best of some rounds, with the median behind it: on a shared machine the best shows what the program
can do. Answers ignore the end token; prompt lookup is off, since it depends on the text. versus_self.py compares trees.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time

import numpy as np
from costs import require_idle_machine, write_results
from report import write_report

from minicpm import LLM, SamplingParams, native

PROMPT_TOKENS = 32
STREAMS_BESIDE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder; MiniCPM-nano if left out")
    parser.add_argument("--streams", default="1,8,64,256")
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--long", type=int, default=1900, help="tokens of the long prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="streams")
    parser.add_argument("--round", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    require_idle_machine()
    if args.round:
        print(json.dumps(one_round(args)))
        return
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for point, value in run_round().items():
            found.setdefault(point, []).append(value)
    rows: list[dict[str, object]] = [
        {"what": point, "best / median": shown(point, values)} for point, values in found.items()
    ]
    note = (
        f"{args.model or 'MiniCPM-nano'}, {native.isa()}, {native.thread_count()} threads; prompts of {PROMPT_TOKENS} "
        f"tokens, answers of {args.tokens}, {args.rounds} rounds."
    )
    print(write_results(args.name, rows, note))
    write_report()


def run_round() -> dict[str, float]:
    """One round in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--round"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a round failed: {done.stderr[-2000:]}")
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def shown(point: str, values: list[float]) -> str:
    best = max(values) if point.endswith("tokens/s)") else min(values)
    return " / ".join(
        f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in (best, statistics.median(values))
    )


def one_round(args: argparse.Namespace) -> dict[str, float]:
    counts = [int(count) for count in args.streams.split(",")]
    llm = LLM(args.model, max_batch=max(*counts, STREAMS_BESIDE + 1), lookup="off")
    params = SamplingParams(seed=1, max_tokens=args.tokens, ignore_eos=True)
    llm.generate([prompt(0, PROMPT_TOKENS)], params, max_tokens=2)
    values: dict[str, float] = {}
    for count in counts:
        values[f"{count} streams (tokens/s)"] = decode_rate(llm, count, params)
    return values | stalls(llm, params, args.long)


def prompt(number: int, tokens: int) -> list[int]:
    return np.random.default_rng(number).integers(300, 6000, tokens).tolist()


def decode_rate(llm: LLM, count: int, params: SamplingParams) -> float:
    """Tokens a second of all streams together, from when the last of them has begun."""
    begun: set[int] = set()
    start, tokens = 0.0, 0
    for piece in llm.stream_batch([prompt(number, PROMPT_TOKENS) for number in range(count)], params):
        tokens += 1
        if piece.index not in begun:
            begun.add(piece.index)
            if len(begun) == count:
                start, tokens = time.perf_counter(), 0
    return tokens / (time.perf_counter() - start)


def stalls(llm: LLM, params: SamplingParams, long_tokens: int) -> dict[str, float]:
    """Time between a stream's tokens, alone and while a long prompt is computed, and when that one's answer begins."""
    prompts = [prompt(1000 + number, PROMPT_TOKENS) for number in range(STREAMS_BESIDE)]
    alone, _ = gaps(llm, prompts, params)
    llm.drop_cache()
    _, first_alone_s = gaps(llm, [prompt(2000, long_tokens)], params)
    llm.drop_cache()
    beside, first_s = gaps(llm, [*prompts, prompt(2000, long_tokens)], params)
    name = f"{STREAMS_BESIDE} streams beside a prompt of {long_tokens}"
    return {
        f"{STREAMS_BESIDE} streams: between tokens (ms)": 1e3 * statistics.median(alone),
        f"{name}: between tokens, median (ms)": 1e3 * statistics.median(beside),
        f"{name}: between tokens, longest (ms)": 1e3 * max(beside),
        f"{name}: its first token (s)": first_s,
        f"a prompt of {long_tokens} alone: its first token (s)": first_alone_s,
    }


def gaps(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> tuple[list[float], float]:
    """Seconds between the tokens of the first stream until the last prompt is answered, and until that is so."""
    start = time.perf_counter()
    times: list[float] = []
    stream = llm.stream_batch(prompts, params, max_tokens=2000 if len(prompts) > STREAMS_BESIDE else params.max_tokens)
    for piece in stream:
        if piece.index == 0:
            times.append(time.perf_counter())
        is_last = piece.index == len(prompts) - 1
        if is_last and (len(prompts) != STREAMS_BESIDE or piece.completion is not None):
            break
    stream.close()
    return [b - a for a, b in itertools.pairwise(times)] or [0.0], time.perf_counter() - start


if __name__ == "__main__":
    main()
