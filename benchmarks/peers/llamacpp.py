"""llama.cpp as a runner (protocol.py), through llama-cpp-python:

    .venv-llamacpp/bin/python llamacpp.py FILE THREADS [plain-attention]

Its best settings: built for this machine, keys and values in float16, weights repacked at loading. Which attention is
the faster one depends on the machine: flash attention is at a prompt, and on an Emerald Rapids Xeon the plain one is
three times as fast at decoding.
Batches go to llama_decode as they are, so that exactly what the driver asks for is computed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence

# OpenMP reads these when the library is loaded: threads that stay on their cores.
os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_PLACES", "cores")

import llama_cpp as ll
from protocol import WINDOW_TOKENS, random_ids, serve, steps_per_s

LONGEST_PROMPT = 2048
SEQUENCES = 16

_quiet = ll.llama_log_callback(lambda level, text, data: None)


class Context:
    """Keys and values of `sequences` texts of together `tokens` tokens."""

    def __init__(
        self, model: Model, tokens: int, sequences: int = 1, *, flash: bool = True, keeps_float32: bool = False
    ):
        params = ll.llama_context_default_params()
        params.n_ctx = -(-tokens // 256) * 256
        params.n_batch = params.n_ctx
        params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = model.threads
        params.kv_unified = True
        params.no_perf = True
        if keeps_float32:  # for a comparison of numbers
            flash = False
            params.type_k = params.type_v = ll.GGML_TYPE_F32
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = ll.llama_init_from_model(model.model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        self.vocabulary = model.vocabulary
        self._memory = ll.llama_get_memory(self._context)
        self._batch = ll.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """One llama_decode of (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, is_wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = is_wanted
        code = ll.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        ll.llama_synchronize(self._context)

    def append(self, ids: Sequence[int], start: int, wanted: str) -> None:
        """Tokens of sequence 0 from position `start` on; logits of "all", the "last" or "none"."""
        last = len(ids) - 1
        self.decode(
            [(token, start + i, 0, wanted == "all" or (wanted == "last" and i == last)) for i, token in enumerate(ids)]
        )

    def cut(self, length: int = 0) -> None:
        """Forget what lies behind `length` tokens of every sequence."""
        ll.llama_memory_seq_rm(self._memory, -1, length, -1)

    def logits(self, place: int) -> list[float]:
        """The logits (vocabulary) after the token at a place of the last batch."""
        pointer = ll.llama_get_logits_ith(self._context, place)
        return list(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * self.vocabulary)).contents)


class Model:
    def __init__(self, path: str, threads: int):
        ll.llama_log_set(_quiet, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self.threads = threads
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.vocabulary = ll.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        """Ids with the BOS in front, special tokens recognised."""
        data = text.encode()
        ids = (ll.llama_token * (len(data) + 16))()
        count = ll.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, True)
        if count < 0:
            raise RuntimeError(f"{text!r} takes {-count} tokens")
        return list(ids[:count])


class LlamaCpp:
    def __init__(self, path: str, threads: int, flash: bool):
        self._model = Model(path, threads)
        self._flash = flash
        self.facts = {"version": f"llama-cpp-python {ll.__version__}", "threads": threads, "flash attention": flash}
        self.facts["system"] = ll.llama_print_system_info().decode()
        # A user's program has one context, which holds the whole conversation; further ones are for what needs them.
        self._deep = Context(self._model, 4096, flash=flash)
        self._held = 0
        self._short: Context | None = None
        self._deep.append(random_ids(1, self._model.vocabulary), 0, "last")
        self._deep.cut()

    def fill(self, depth: int) -> None:
        self._deep.cut()
        self._deep.append(self._ids(depth), 0, "none")
        self._held = depth

    def prefill(self, tokens: int) -> float:
        context, ids = self._shallow(), self._ids(tokens)
        start = time.perf_counter()
        context.append(ids, 0, "last")
        return tokens / (time.perf_counter() - start)

    def decode(self, depth: int, window_s: float) -> float:
        if depth and depth != self._held:
            self.fill(depth)
        context = self._deep if depth else self._shallow()
        ids = self._ids(WINDOW_TOKENS)

        def step(i: int) -> None:
            context.append(ids[i : i + 1], depth + i, "last")

        speed = steps_per_s(step, window_s, min(WINDOW_TOKENS, 4096 - depth))
        context.cut(depth)
        return speed

    def batch(self, sequences: int, window_s: float) -> float:
        context = self._shallow()
        ids = [self._ids(WINDOW_TOKENS + 1) for _ in range(sequences)]

        def step(i: int) -> None:
            context.decode([(own[i], i, sequence, True) for sequence, own in enumerate(ids)])

        step(0)
        return sequences * steps_per_s(lambda i: step(i + 1), window_s, LONGEST_PROMPT // sequences - 1)

    def verify(self, tokens: int, window_s: float) -> float:
        context, ids = self._shallow(), self._ids(tokens)

        def step(_: int) -> None:
            context.append(ids, 0, "all")
            context.cut()

        return 1 / steps_per_s(step, window_s)

    def _shallow(self) -> Context:
        """An empty context, wide enough for the longest prompt and the largest batch."""
        if self._short is None:
            self._short = Context(self._model, LONGEST_PROMPT + WINDOW_TOKENS, SEQUENCES, flash=self._flash)
        self._short.cut()
        return self._short

    def _ids(self, count: int) -> list[int]:
        return random_ids(count, self._model.vocabulary)


if __name__ == "__main__":
    path, thread_count, *settings = sys.argv[1:]
    starter: Callable[[], LlamaCpp] = lambda: LlamaCpp(  # noqa: E731
        path, int(thread_count), "plain-attention" not in settings
    )
    serve(starter)
