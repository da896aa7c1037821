"""Runs vLLM's own OpenAI server on a model: translates our arguments into its command and supervises the process.

    python -m vllm.entrypoints.openai.api_server --model FOLDER ...

It does not use `vllm serve`, because that command fails in builds for the CPU: their distribution has another name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from minicpm.engine.advice import advised_sampling
from minicpm.engine.backends.vllm import (
    SWITCHES,
    chat_template_text,
    computed_dtype,
    context_of,
    cpu_arguments,
    readable_folder,
    require_plugin,
    require_vllm,
)
from minicpm.engine.options import EngineOptions
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.sampling import SamplingParams
from minicpm.server.children import end

MODULE = "vllm.entrypoints.openai.api_server"
# Fields of SamplingParams that vLLM's server takes as defaults of requests.
DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# How long a stopped server may take before it is killed.
GRACE_S = 30.0


@dataclass(frozen=True)
class VllmServer:
    """Settings that both servers have. `arguments` are passed on to vLLM's server unchanged, after these."""

    host: str
    port: int
    names: Sequence[str]  # the model's names in requests
    options: EngineOptions = field(default_factory=lambda: EngineOptions(backend="vllm"))
    # Concurrent answers. None: vLLM's default, and on the CPU memory for `options.max_batch` contexts.
    max_batch: int | None = None
    api_keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    arguments: Sequence[str] = ()


def serve(model: Path, server: VllmServer) -> int:
    """Run vLLM's server on a model's folder until it ends or a signal ends this process; return its exit code.

    Raises MissingExtra without vLLM, ModelError for a model or an installation that it cannot serve.
    """
    require_vllm()
    require_plugin()
    with open_checkpoint(model, allow_quantized=True) as checkpoint:
        dtype = computed_dtype(checkpoint, server.options.dtype)
        context = context_of(checkpoint.config, server.options.context)
        engine = cpu_arguments(checkpoint, dtype=dtype, context=context, max_batch=server.options.max_batch)
        server = replace(server, options=replace(server.options, dtype=dtype, context=context))
        with readable_folder(checkpoint, dtype) as folder:
            words = command(checkpoint, folder, advised_sampling(checkpoint), server, engine)
            return _watched(words, _environment(server))


def command(
    checkpoint: Checkpoint, folder: Path, sampling: SamplingParams, server: VllmServer, engine: Mapping[str, Any]
) -> list[str]:
    """The command line of vLLM's server for an opened model; `folder` has its files in a format that vLLM reads.

    The options of `server` have the dtype and the context that vLLM computes with. `engine` has arguments that this
    build of vLLM needs (engine/backends/vllm.py: cpu_arguments); `server` overrides them.
    """
    options = server.options
    words = [sys.executable, "-m", MODULE, "--model", str(folder), "--served-model-name", *server.names]
    words += ["--host", server.host, "--port", str(server.port)]
    words += ["--dtype", options.dtype, "--max-model-len", str(options.context)]
    words += ["--override-generation-config", json.dumps({name: getattr(sampling, name) for name in DEFAULTS})]
    words += ["--chat-template", chat_template_text(checkpoint)]
    if server.max_batch is not None:
        words += ["--max-num-seqs", str(server.max_batch)]
    cache_bytes = options.kv_cache_bytes or engine.get("kv_cache_memory_bytes")
    if cache_bytes is not None:
        words += ["--kv-cache-memory-bytes", str(cache_bytes)]
    if engine.get("enforce_eager"):
        words += ["--enforce-eager"]
    for name, value in (options.vllm_options or {}).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if server.cors_origins:
        words += ["--allowed-origins", json.dumps(list(server.cors_origins))]
    if len(server.api_keys) > 1:
        words += ["--api-key", *server.api_keys]
    return [*words, *server.arguments]


def _environment(server: VllmServer) -> dict[str, str]:
    """This process's environment, with our defaults for vLLM. A single API key is passed here, which `ps` hides."""
    advice = {name: value for name, value in SWITCHES.items() if name not in ("VLLM_ENABLE_V1_MULTIPROCESSING",)}
    advice["VLLM_LOGGING_LEVEL"] = "INFO"
    environment = {**advice, **os.environ}
    if len(server.api_keys) == 1:
        environment["VLLM_API_KEY"] = server.api_keys[0]
    return environment


def _watched(words: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its exit code. It receives our SIGTERM and Ctrl-C, and it is ended with us."""
    process = subprocess.Popen(words, env=environment, process_group=0)
    try:
        with _passing_on(process):
            return process.wait()
    finally:
        end(process, GRACE_S)


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass every ending signal on to the child, once: a terminal sends them only to our process group."""

    def hand_down(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, hand_down) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
