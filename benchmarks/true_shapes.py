"""Every verb on the true MiniCPM-2B shapes: time and memory of converting, loading, chatting and completing.

    python benchmarks/true_shapes.py [--folder runs/2b]

Makes the model if it is not there (random weights, real tokenizer), converts it to every format and loads it from
each. Needs 30 GB of disk; removes what it made but the model. Writes benchmarks/results/true_shapes.json and, from all
results, benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from costs import Cost, measure, require_idle_machine, row, write_results
from make_model import make_model
from report import write_report

MINICPM = [sys.executable, "-m", "minicpm"]
PEER = Path(__file__).parent / "peers" / "transformers_generate.py"
PROMPT = "<用户>Which city is the capital of China?<AI>"
CONVERSIONS = {
    "hf, one .bin": ("hf", "--bin", "--max-shard-size", "100GB"),
    "hf, float16": ("hf", "--dtype", "float16"),
    "hf, float32, 5 GB shards": ("hf", "--dtype", "float32"),
    "llama": ("llama",),
    "granite": ("granite",),
    "vllmcpm": ("vllmcpm",),
}
TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"))
    args = parser.parse_args()
    require_idle_machine()
    if not args.folder.exists():
        print(f"making {args.folder}", flush=True)
        make_model(args.folder)
    rows = list(all_rows(args.folder))
    note = (
        "MiniCPM-2B shapes, random weights, bf16 unless said; files in the page cache. Peak private memory is what "
        "one process needs for itself; peak RSS adds pages shared with the files."
    )
    print("wrote", write_results("true_shapes", rows, note))
    write_report()


def all_rows(model: Path) -> Iterator[dict[str, object]]:
    yield told(row("info", measure([*MINICPM, "info", "-m", str(model)])))
    for what, (target, *flags) in CONVERSIONS.items():
        with converted(model, target, flags, what) as (folder, cost, size):
            yield told(row(f"convert to {what}", cost, bytes=size, mb_per_s=round(size / 1e6 / cost.wall_s)))
            if target == "vllmcpm":
                with converted(folder, "hf", [], "back") as (_, back, back_size):
                    speed = round(back_size / 1e6 / back.wall_s)
                    yield told(row("convert vllmcpm back to hf", back, bytes=back_size, mb_per_s=speed))
            yield told(load_row(f"load {what}, first token", folder))
    yield told(load_row("load hf safetensors, first token", model))
    yield told(chat_row(model))
    yield told(batch_row(model))
    with converted(model, "granite", [], "for the peer") as (granite, _, size):
        yield told(peer_save_row(granite, size))


@contextmanager
def converted(model: Path, target: str, flags: list[str], name: str) -> Iterator[tuple[Path, Cost, int]]:
    folder = model.with_name(f"{model.name}-{name.replace(' ', '-').replace(',', '').replace('.', '')}")
    shutil.rmtree(folder, ignore_errors=True)
    cost = measure([*MINICPM, "convert", str(model), str(folder), "--to", target, *flags])
    try:
        yield folder, cost, sum(file.stat().st_size for file in folder.iterdir())
    finally:
        shutil.rmtree(folder)


def generate(folder: Path, tokens: int) -> Cost:
    command = [*MINICPM, "run", "--raw", "--json", "--temperature", "0", "--repetition-penalty", "1"]
    return measure([*command, "--max-tokens", str(tokens), "-m", str(folder), PROMPT])


def peer_save_row(granite: Path, size: int) -> dict[str, object]:
    saved = granite.with_name(f"{granite.name}-saved")
    cost = measure([sys.executable, str(PEER.with_name("transformers_save.py")), str(granite), str(saved)])
    shutil.rmtree(saved)
    what = "transformers from_pretrained and save_pretrained (Granite form, nothing checked)"
    return row(what, cost, bytes=size, mb_per_s=round(size / 1e6 / cost.wall_s))


def load_row(what: str, folder: Path) -> dict[str, object]:
    return row(what, generate(folder, 1))


def chat_row(model: Path) -> dict[str, object]:
    command = [*MINICPM, "chat", "-m", str(model), "--json", "--seed", "1", "--max-tokens", "16", "--no-history"]
    cost = measure(command, stdin="Which city is the capital of China?\nAnd of France?\n")
    first, second = (json.loads(line) for line in cost.stdout.splitlines())
    reused = second["usage"]["cached_tokens"]
    return row("chat, two piped turns of 16 tokens", cost, second_turn_cached_tokens=reused, **speeds(first))


def batch_row(model: Path) -> dict[str, object]:
    command = [*MINICPM, "run", "-m", str(model), "--json", "--seed", "1", "--max-tokens", str(TOKENS)]
    begin = time.perf_counter()
    cost = measure([*command, *(f"Question number {i}: why?" for i in range(8))])
    answers = [json.loads(line) for line in cost.stdout.splitlines()]
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    slowest = max(answer["timings"]["total_s"] for answer in answers)
    assert time.perf_counter() - begin >= slowest
    return row(
        f"run, 8 prompts in one batch, {TOKENS} tokens each", cost, total_tokens_per_s=round(tokens / slowest, 2)
    )


def speeds(answer: dict[str, dict[str, float]]) -> dict[str, object]:
    return {"decode_tokens_per_s": round(answer["timings"]["decode_tokens_per_s"], 2)}


def told(one: dict[str, object]) -> dict[str, object]:
    print(json.dumps(one), flush=True)
    return one


if __name__ == "__main__":
    main()
