"""One run of versus_self.py by the package that PYTHONPATH names: python benchmarks/self_probe.py FOLDER TOKENS

It knows the package by its public door alone (`LLM` and the command line), so that it measures old and new trees alike.
FOLDER is a model for the reading and writing of one text; many streams are answered by MiniCPM-nano. Prints one JSON
object: the file that was imported as `minicpm`, and the figures.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import minicpm
from minicpm import LLM

PROMPT_TOKENS = 512
STREAMS, STREAM_PROMPT_TOKENS, STREAM_TOKENS = 64, 32, 96
OPTIONS = {"seed": 1, "ignore_eos": True, "temperature": 0}


def main() -> None:
    folder, tokens = sys.argv[1], int(sys.argv[2])
    start_s = seconds_to_first_token(folder)
    prefill, decode = speeds_of_one_text(folder, tokens)
    found = {
        f"prefill {PROMPT_TOKENS} (tokens/s)": prefill,
        "decode 0 (tokens/s)": decode,
        f"{STREAMS} streams of nano (tokens/s)": speed_of_streams(),
        "start to first token (s)": start_s,
    }
    print(json.dumps({"imported": minicpm.__file__, "found": found}))


def seconds_to_first_token(folder: str) -> float:
    """From the start of the command to its end after one token."""
    command = [sys.executable, "-m", "minicpm", "run", "-m", folder, "--max-tokens", "1", "--temperature", "0", "Hello"]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def speeds_of_one_text(folder: str, tokens: int) -> tuple[float, float]:
    """Tokens a second of a new prompt, and of an answer behind a prompt of one token."""
    llm = LLM(folder, lookup="off")
    llm.generate([ids(1, 64)], max_tokens=4, **OPTIONS)  # what is made at the first use is not measured
    begin = time.perf_counter()
    llm.generate([ids(2, PROMPT_TOKENS)], max_tokens=1, **OPTIONS)
    prefill = PROMPT_TOKENS / (time.perf_counter() - begin)
    times = [time.perf_counter() for _ in llm.stream_batch([ids(3, 1)], max_tokens=tokens, **OPTIONS)]
    return prefill, (len(times) - 1) / (times[-1] - times[0])


def speed_of_streams() -> float:
    """Tokens a second of all streams together, once all have begun."""
    llm = LLM(max_batch=STREAMS, lookup="off")
    prompts = [ids(10 + number, STREAM_PROMPT_TOKENS) for number in range(STREAMS)]
    llm.generate(prompts[:1], max_tokens=4, **OPTIONS)
    begun: set[int] = set()
    count, begin = 0, 0.0
    for piece in llm.stream_batch(prompts, max_tokens=STREAM_TOKENS, **OPTIONS):
        count += 1
        if piece.index not in begun:
            begun.add(piece.index)
            count, begin = 0, time.perf_counter()
    return count / (time.perf_counter() - begin)


def ids(seed: int, count: int) -> list[int]:
    """Ids that both vocabularies have."""
    drawn = random.Random(seed)
    return [drawn.randrange(300, 6000) for _ in range(count)]


if __name__ == "__main__":
    main()
