"""What a turn of a growing conversation waits for its first token: only what is new is computed.

    python benchmarks/turns.py                            # MiniCPM-nano and the true MiniCPM-2B shapes, 10 turns

Every turn sends the whole conversation to /v1/chat/completions, as clients do. Beside each turn stands what the same
messages take where nothing is known of them (another first word, so that no block can be shared).
Writes benchmarks/results/turns.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

from costs import require_idle_machine, write_results
from report import write_report
from versus_peers import MINICPM, models, talk
from versus_servers import started

from minicpm.hub import embedded

TURNS = 10
QUESTION = "Now tell me more about that, and then say what the others did when they heard of it on the next day. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"), help="the 2B model in bf16, made if missing")
    parser.add_argument("--models", default="nano,2b")
    args = parser.parse_args()
    require_idle_machine()
    rows = []
    for name in args.models.split(","):
        folder = embedded.folder() if name == "nano" else models(args.folder, ["int4"])["int4"]
        command = [*MINICPM, "serve", "-m", str(folder), "--no-lookup"]
        with started(f"turns-{name}", command, {}) as server:
            rows += [{"model": name, **row} for row in conversation(server.port)]
    note = f"{TURNS} turns, the answer's 32 tokens in the next prompt; first tokens in ms, greedy."
    print("wrote", write_results("turns", rows, note))
    write_report()


def conversation(port: int) -> list[dict[str, object]]:
    messages: list[dict[str, str]] = []
    rows: list[dict[str, object]] = []
    ask(port, [{"role": "user", "content": "Hello"}])  # what is made at the first request is not measured
    for turn in range(1, TURNS + 1):
        messages.append({"role": "user", "content": f"Turn {turn}. {QUESTION * 3}"})
        text, seconds, usage = ask(port, messages)
        cold = [{**messages[0], "content": f"{turn} {messages[0]['content']}"}, *messages[1:]]
        _, cold_seconds, _ = ask(port, cold)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        rows.append(
            {
                "turn": turn,
                "prompt tokens": usage["prompt_tokens"],
                "of them new": usage["prompt_tokens"] - cached,
                "first token (ms)": round(1e3 * seconds, 1),
                "where nothing is known (ms)": round(1e3 * cold_seconds, 1),
            }
        )
        talk(f"  {rows[-1]}")
        messages.append({"role": "assistant", "content": text})
    new = [row["first token (ms)"] / row["of them new"] for row in rows]  # type: ignore[operator]
    talk(f"  ms of a new token: {statistics.median(new):.2f}")
    return rows


def ask(port: int, messages: list[dict[str, str]]) -> tuple[str, float, dict[str, Any]]:
    """The answer, seconds to its first piece, and its usage."""
    body = {
        "messages": messages,
        "temperature": 0,
        "max_tokens": 32,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    begin, first, text, usage = time.perf_counter(), 0.0, "", {}
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    first = first or time.perf_counter() - begin
                    text += piece
    return text, first, usage


if __name__ == "__main__":
    main()
