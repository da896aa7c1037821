"""ik_llama.cpp, a fork of llama.cpp for processors, as a runner (protocol.py), through ik-llama-cpp-python:

    .venv-ik/bin/python ik_llamacpp.py FILE THREADS [plain-attention]

Its best settings: built for this machine, weights repacked at loading, keys and values in float16. With flash attention
version 0.1.5 aborts on a batch of several sequences (GGML_ASSERT(S > 0) in iqk_fa_templates.h), so that point is empty.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# OpenMP reads these when the library is loaded: pinned threads.
os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_PLACES", "cores")

# A package that was compiled here looks for libggml.so in the system's folders only; once loaded, it is found by name.
_spec = find_spec("ik_llama_cpp")
assert _spec is not None and _spec.origin is not None
ctypes.CDLL(str(Path(_spec.origin).parent / "lib" / "libggml.so"), mode=ctypes.RTLD_GLOBAL)

import ik_llama_cpp._ctypes_api as ik  # noqa: E402
from contexts import ContextRunner, TokenRow, filled  # noqa: E402
from protocol import serve  # noqa: E402

# The package does not bind these two.
_library = ik.load_shared_library()
_remove = _library.llama_kv_cache_seq_rm
_remove.argtypes, _remove.restype = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32], ctypes.c_bool
_synchronize = _library.llama_synchronize
_synchronize.argtypes, _synchronize.restype = [ctypes.c_void_p], None


class Context:
    def __init__(self, model: int, threads: int, tokens: int, sequences: int, flash: bool):
        params = ik.llama_context_default_params()
        params.n_ctx = params.n_batch = -(-tokens // 256) * 256
        params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn = flash
        self._context = ik.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("ik_llama.cpp could not make a context")
        self._sequences = sequences
        self._batch = ik.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, rows: Sequence[TokenRow]) -> None:
        code = ik.llama_decode(self._context, filled(self._batch, rows))
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        _synchronize(self._context)

    def cut(self, length: int = 0) -> None:
        for sequence in range(self._sequences):
            _remove(self._context, sequence, length, -1)


class FlashRunner(ContextRunner):
    def batch(self, sequences: int, window_s: float) -> float | None:
        return super().batch(sequences, window_s) if sequences == 1 else None


def runner(path: str, threads: int, flash: bool) -> ContextRunner:
    ik.llama_backend_init()
    params = ik.llama_model_default_params()
    params.repack_tensors = True
    params.flash_attn = flash
    model = ik.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise RuntimeError(f"ik_llama.cpp could not load {path}")
    facts: dict[str, object] = {
        "version": f"ik-llama-cpp-python {version('ik-llama-cpp-python')}",
        "threads": threads,
        "flash attention": flash,
    }
    vocabulary = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(model))
    kind = FlashRunner if flash else ContextRunner
    return kind(facts, vocabulary, lambda tokens, sequences: Context(model, threads, tokens, sequences, flash))


if __name__ == "__main__":
    file, thread_count, *settings = sys.argv[1:]
    serve(lambda: runner(file, int(thread_count), "plain-attention" not in settings))
