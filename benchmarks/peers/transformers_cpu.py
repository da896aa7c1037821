"""transformers on the CPU as a runner (protocol.py): python transformers_cpu.py FOLDER THREADS

FOLDER is the model in Granite's format, which transformers reads without our code; bfloat16, its own attention
and cache.
"""

from __future__ import annotations

import sys
import time

import torch
import transformers
from protocol import WINDOW_TOKENS, random_ids, serve, steps_per_s
from transformers import AutoModelForCausalLM, DynamicCache

CHUNK = 512


class Transformers:
    def __init__(self, folder: str, threads: int):
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self._deep: dict[int, DynamicCache] = {0: DynamicCache()}
        self.facts = {
            "version": f"transformers {transformers.__version__}",
            "torch": torch.__version__,
            "threads": threads,
            "attention": self._model.config._attn_implementation,
        }
        self._forward([random_ids(1)], DynamicCache())

    def fill(self, depth: int) -> None:
        self._deep[depth] = cache = DynamicCache()
        ids = random_ids(depth)
        for start in range(0, depth, CHUNK):
            self._forward([ids[start : start + CHUNK]], cache)

    def prefill(self, tokens: int) -> float:
        ids, cache = random_ids(tokens), DynamicCache()
        start = time.perf_counter()
        for first in range(0, tokens, CHUNK):
            self._forward([ids[first : first + CHUNK]], cache)
        return tokens / (time.perf_counter() - start)

    def decode(self, depth: int, window_s: float) -> float:
        if depth not in self._deep:
            self.fill(depth)
        cache, ids = self._deep[depth] if depth else DynamicCache(), random_ids(WINDOW_TOKENS)
        speed = steps_per_s(lambda i: self._forward([ids[i : i + 1]], cache), window_s)
        if depth:
            cache.crop(depth - cache.get_seq_length())  # negative: removes that many tokens at the end
        return speed

    def batch(self, sequences: int, window_s: float) -> float:
        ids, cache = random_ids(sequences), DynamicCache()
        step = [[token] for token in ids]
        return sequences * steps_per_s(lambda _: self._forward(step, cache), window_s)

    def verify(self, tokens: int, window_s: float) -> float:
        ids = random_ids(tokens)
        return 1 / steps_per_s(lambda _: self._forward([ids], DynamicCache(), keep=tokens), window_s)

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]], cache: DynamicCache, keep: int = 1) -> None:
        self._model(torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=keep)


if __name__ == "__main__":
    serve(lambda: Transformers(sys.argv[1], int(sys.argv[2])))
