"""llama.cpp as a runner (protocol.py), through llama-cpp-python:

    .venv-llamacpp/bin/python llamacpp.py FILE THREADS [plain-attention]

Its best settings: built for this machine, keys and values in float16, weights repacked at loading. Which attention is
faster depends on point and machine: flash attention for a prompt; on an Emerald Rapids Xeon plain attention decodes
three times as fast. Batches are passed to llama_decode unchanged, so exactly the requested work is computed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

# OpenMP reads these when the library is loaded: pinned threads.
os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_PLACES", "cores")

import llama_cpp as ll
from contexts import ContextRunner, TokenRow, filled
from protocol import serve

_quiet = ll.llama_log_callback(lambda level, text, data: None)


class Context:
    """Keys and values of `sequences` texts with `tokens` tokens in total."""

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
        if keeps_float32:  # for a comparison of logits
            flash = False
            params.type_k = params.type_v = ll.GGML_TYPE_F32
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = ll.llama_init_from_model(model.model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        self.vocabulary = model.vocabulary
        self._memory = ll.llama_get_memory(self._context)
        self._batch = ll.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, rows: Sequence[TokenRow]) -> None:
        """One llama_decode."""
        code = ll.llama_decode(self._context, filled(self._batch, rows))
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        ll.llama_synchronize(self._context)

    def cut(self, length: int = 0) -> None:
        """Drop everything after the first `length` tokens of every sequence."""
        ll.llama_memory_seq_rm(self._memory, -1, length, -1)

    def logits(self, place: int) -> list[float]:
        """The logits (vocabulary) after the token at an index of the last batch."""
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


def runner(path: str, threads: int, flash: bool) -> ContextRunner:
    model = Model(path, threads)
    facts: dict[str, object] = {
        "version": f"llama-cpp-python {ll.__version__}",
        "threads": threads,
        "flash attention": flash,
        "system": ll.llama_print_system_info().decode(),
    }
    return ContextRunner(
        facts, model.vocabulary, lambda tokens, sequences: Context(model, tokens, sequences, flash=flash)
    )


if __name__ == "__main__":
    file, thread_count, *settings = sys.argv[1:]
    serve(lambda: runner(file, int(thread_count), "plain-attention" not in settings))
