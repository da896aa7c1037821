"""Long texts under a sliding window: perplexity, and the time and memory of a token.

    python benchmarks/windows.py --folder runs/2b

MiniCPM-nano reads its held-out books and conversations, 4,096 tokens, four times in a row as one text, beyond its 2,048
positions: with a window, which reaches no earlier round, as it is, and starting anew every 2,048 tokens. On the true
MiniCPM-2B shapes a text of random ids is read to its full context and, with a window, to twice as much. Writes
benchmarks/results/windows.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from costs import require_idle_machine, write_results
from report import write_report
from versus_peers import models, talk

from minicpm import LLM
from minicpm.engine.backend import Row, StepBackend
from minicpm.engine.backends.native import NativeBackend
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.eval.likelihood import encoded_text, nats_of
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded

HELD_OUT = Path(__file__).parents[1] / "nano" / "held-out.jsonl"
PART, ROUND, ROUNDS = 2048, 4096, 4
WINDOWS = (None, SlidingWindow(1024), SlidingWindow(256))
BIG_WINDOW, BIG_TOKENS, BIG_CHUNK, STEPS = SlidingWindow(768), 4096, 512, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"), help="the 2B model in bf16, made if missing")
    args = parser.parse_args()
    require_idle_machine()
    ids = long_text()
    rows = [told(row) for row in foresight_rows(ids)]
    folder = models(args.folder, ["int4"])["int4"]
    for kept, window, tokens in (
        ("int8", None, BIG_TOKENS),
        ("bfloat16", None, BIG_TOKENS),
        ("int8", BIG_WINDOW, BIG_TOKENS),
        ("int8", BIG_WINDOW, 2 * BIG_TOKENS),
    ):
        rows.append(told(cost_row(folder, kept, window, tokens)))
    note = (
        f"MiniCPM-nano: perplexity of {ROUND:,} held-out tokens, read {ROUNDS} times in a row; it was trained on 2,048 "
        "positions, and on texts that do not see each other, so the nearest ones serve it best. 2B: int4, random ids, "
        "the median time of a token behind so many."
    )
    print("wrote", write_results("windows", rows, note))
    write_report()


def long_text() -> list[int]:
    llm = LLM(context=64)
    texts = []
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts.append(record["text"] if "text" in record else "\n".join(m["content"] for m in record["messages"]))
    ids = encoded_text(llm.tokenizer, "\n\n".join(texts))
    return ids[:ROUND] * ROUNDS


def foresight_rows(ids: list[int]) -> list[dict[str, object]]:
    rows = []
    for window in WINDOWS:
        losses = nats_of(opened(embedded.folder(), window), ids)
        rows.append({"what": "all before it" if window is None else shown(window), **perplexities(losses)})
    parts = [nats_of(opened(embedded.folder(), None), ids[start : start + PART]) for start in range(0, len(ids), PART)]
    # The first token of a part has no prediction.
    rows.append(
        {"what": "anew every 2,048 tokens", **perplexities(np.concatenate([[np.nan, *part] for part in parts])[1:])}
    )
    return rows


def shown(window: SlidingWindow) -> str:
    return f"{window.tokens:,} before it and {window.sinks} sinks"


def perplexities(losses: np.ndarray) -> dict[str, object]:
    return {
        f"tokens {start:,} to {start + ROUND:,}": float(f"{np.exp(np.nanmean(losses[start : start + ROUND])):.4g}")
        for start in range(0, len(losses), ROUND)
    }


def opened(folder: Path, window: SlidingWindow | None, kv_dtype: str = "int8") -> StepBackend:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return NativeBackend(checkpoint, kv_dtype=kv_dtype, window=window)


def cost_row(folder: Path, kept: str, window: SlidingWindow | None, tokens: int) -> dict[str, object]:
    """Compute a text of `tokens` and decode after it; return the held tokens and the speed."""
    backend = opened(folder, window, kept)
    ids = np.random.default_rng(0).integers(100, backend.vocab_size, tokens + STEPS).tolist()
    cache = backend.new_cache(backend.held_tokens(tokens + STEPS))
    sequence = cache.open(ids, tokens + STEPS, tokens)
    assert sequence is not None
    begin = time.perf_counter()
    for start in range(0, tokens, BIG_CHUNK):
        backend.forward([Row(sequence, ids[start : start + BIG_CHUNK], "none")])
    read_s = time.perf_counter() - begin
    seconds = []
    for token in ids[tokens:]:
        begin = time.perf_counter()
        backend.forward([Row(sequence, [token])])
        seconds.append(time.perf_counter() - begin)
    cache.close(sequence)
    return {
        "a token attends to": "all before it" if window is None else shown(window),
        "keys and values": kept,
        "tokens of the text": tokens,
        "tokens/s while reading": round(tokens / read_s, 1),
        "tokens/s behind them": round(1 / float(np.median(seconds)), 2),
        "keys_and_values_bytes": backend.held_tokens(tokens) * backend.cache_bytes_per_token,
    }


def told(row: dict[str, object]) -> dict[str, object]:
    talk(str(row))
    return row


if __name__ == "__main__":
    main()
