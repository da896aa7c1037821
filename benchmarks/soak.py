"""MiniCPM-nano behind `minicpm serve` under rude clients: 256 streams at once for minutes, many of them hung up on.

    python benchmarks/soak.py                             # 5 minutes
    python benchmarks/soak.py --seconds 60 --streams 64

Every answer that is read to its end must be, byte for byte, what the model says alone to the same prompt and seed, and
one that is hung up on its beginning; anything else ends the run with an error. Prompts are of different lengths,
half of them share a long beginning, and sampling differs. Writes benchmarks/results/soak.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise

from costs import require_idle_machine, write_results
from report import write_report
from serving import cpu_s, rss_bytes
from versus_peers import MINICPM, talk
from versus_servers import posted, spread, started

from minicpm import LLM, SamplingParams

KINDS = 96  # different requests
MOST_TOKENS = 96
HUNG_UP = 0.35  # of the streams
SHARED = "This is a long beginning that many questions have in common, as a system prompt is. " * 6
SUBJECTS = ("rabbit", "mouse", "kite", "river", "lantern", "bear", "garden", "boat", "cloud", "song", "stone", "bell")
SAMPLE_S = 5.0


@dataclass(frozen=True)
class Kind:
    """A request, and what the model answers to it alone."""

    body: bytes
    text: str
    tokens: int


@dataclass
class Seen:
    """What the streams met with."""

    finished: int = 0
    hung_up: int = 0
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--kv-cache-size", default="64MB")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    require_idle_machine()
    kinds = made_kinds(random.Random(args.seed))
    talk(f"{len(kinds)} requests, {sum(kind.tokens for kind in kinds)} tokens, were answered alone")
    command = [*MINICPM, "serve", "--max-batch", str(args.max_batch), "--queue-limit", str(args.streams)]
    with started("soak", [*command, "--kv-cache-size", args.kv_cache_size], {}) as server:
        pid, seen, begin, cpu = server.process.pid, Seen(), time.perf_counter(), cpu_s(server.process.pid)
        asyncio.run(soak(server.port, pid, kinds, seen, args))
        wall, cpu = time.perf_counter() - begin, cpu_s(pid) - cpu
    quarter = max(1, len(seen.rss) // 4)
    row: dict[str, object] = {
        "streams": args.streams,
        "seconds": round(wall),
        "answers whole and right": seen.finished,
        "hung up on": seen.hung_up,
        "tokens/s": round(seen.tokens / wall),
        "first token, median / p99 (s)": spread(seen.first_s, 1),
        "between pieces, median / p99 (s)": spread(seen.gaps_s, 1),
        "rss of the first quarter, of the last (MB)": (
            f"{statistics.median(seen.rss[:quarter]) / 1e6:.0f} / {statistics.median(seen.rss[-quarter:]) / 1e6:.0f}"
        ),
        "cpu of the server (s)": round(cpu),
    }
    print(json.dumps(row, indent=1))
    note = (
        f"MiniCPM-nano, at most {args.max_batch} answers written at once, keys and values within {args.kv_cache_size}; "
        "the clients, on the same cores, begin a stream when another ends. Answers that differ from the one computed "
        "alone: 0, or there is no result."
    )
    print("wrote", write_results("soak", [row], note))
    write_report()


def made_kinds(chance: random.Random) -> list[Kind]:
    """Requests with the answers of a model that has nothing else to do."""
    llm, kinds = LLM(lookup="off"), []
    for number in range(KINDS):
        prompt = f"Tell me about the {SUBJECTS[number % len(SUBJECTS)]} number {number}, please." * chance.randint(1, 8)
        prompt = SHARED + prompt if number % 2 else prompt
        params = {
            "temperature": chance.choice([0.0, 0.7, 1.0]),
            "top_p": chance.choice([0.8, 1.0]),
            "seed": number,
            "max_tokens": chance.randint(8, MOST_TOKENS),
        }
        [completion] = llm.generate([prompt], SamplingParams(**params))
        body = {"prompt": prompt, "stream": True, "stream_options": {"include_usage": True}, **params}
        kinds.append(Kind(json.dumps(body).encode(), completion.text, completion.usage.completion_tokens))
    return kinds


async def soak(port: int, pid: int, kinds: list[Kind], seen: Seen, args: argparse.Namespace) -> None:
    end = time.perf_counter() + args.seconds
    users = [user(port, kinds, seen, random.Random(args.seed * 100_000 + i), end) for i in range(args.streams)]
    watcher = asyncio.create_task(watch(pid, seen))
    await asyncio.gather(*users)
    watcher.cancel()


async def watch(pid: int, seen: Seen) -> None:
    while True:
        seen.rss.append(rss_bytes(pid))
        await asyncio.sleep(SAMPLE_S)


async def user(port: int, kinds: list[Kind], seen: Seen, chance: random.Random, end: float) -> None:
    while time.perf_counter() < end:
        patience = chance.randint(0, 40) if chance.random() < HUNG_UP else None
        await one_stream(port, chance.choice(kinds), seen, patience)


async def one_stream(port: int, kind: Kind, seen: Seen, patience: int | None) -> None:
    """Reads an answer to its end, or hangs up after `patience` pieces; raises where a text isn't the expected one."""
    begin = time.perf_counter()
    reader, writer = await posted(port, kind.body)
    times, text, is_done, head = [begin], "", False, b""
    try:
        while patience is None or len(times) <= patience:
            line = await reader.readline()
            if not line:
                break
            head = head or line
            if line == b"data: [DONE]\n":
                is_done = True
            elif line.startswith(b"data: {"):
                event = json.loads(line[6:])
                for choice in event["choices"]:
                    if choice["text"]:
                        times.append(time.perf_counter())
                        text += choice["text"]
                if event.get("usage"):
                    seen.tokens += event["usage"]["completion_tokens"]
    finally:
        writer.close()
    if not kind.text.startswith(text) or (patience is None and not (is_done and text == kind.text)):
        raise RuntimeError(f"expected {kind.text!r}, got {text!r} (done: {is_done}, {head!r})")
    seen.finished += is_done
    seen.hung_up += not is_done
    if len(times) > 1:
        seen.first_s.append(times[1] - begin)
    seen.gaps_s += [late - early for early, late in pairwise(times[1:])]


if __name__ == "__main__":
    main()
