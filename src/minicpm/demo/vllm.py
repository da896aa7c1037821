"""Starts vLLM for the demo, as a child process `minicpm serve --backend vllm` that ends with the demo.

vLLM pins libraries that the demo needs in other versions. So it needs an environment of its own, which also has this
package (docs/vllm.md). That environment is found through the `vllm` on the PATH.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from minicpm.demo.remote import RemoteSource
from minicpm.engine.advice import advised_sampling
from minicpm.engine.options import EngineOptions
from minicpm.errors import ModelError, one_line
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.server.addresses import free_port
from minicpm.server.children import end

_POLL_S = 0.5
_ANSWER_S = 20.0
# Longer than the server's own limit, after which it kills vLLM and deletes the expanded folder.
_END_S = 40.0


@contextmanager
def running_vllm(model: Path, name: str, options: EngineOptions) -> Iterator[RemoteSource]:
    """Start vLLM's server and yield a Source over it once it answers. Raises ModelError without vLLM, or if it ends."""
    python = _python_of_vllm()
    with open_checkpoint(model, allow_quantized=True) as checkpoint:
        sampling, stop = advised_sampling(checkpoint), checkpoint.chat_template().stop_strings
    port, key = free_port(), secrets.token_urlsafe(16)
    # -P: do not import files of the current folder.
    command = [python, "-P", "-m", "minicpm", "serve", "--backend", "vllm", "--model", str(model)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", options.dtype, "--max-batch", str(options.max_batch)]
    if options.context is not None:
        command += ["--context", str(options.context)]
    for option, value in (options.vllm_options or {}).items():
        command += [f"--{option.replace('_', '-')}", str(value)]
    # The key denies other users of this machine access; a command line would reveal it to them.
    environment = {**os.environ, "MINICPM_API_KEY": key, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            source = RemoteSource(f"http://127.0.0.1:{port}/v1", key, name, stop)
            source.engine, source.sampling = "vLLM", sampling
            yield source
        finally:
            end(process, _END_S)


def _python_of_vllm() -> str:
    """The interpreter beside the `vllm` on the PATH. Raises ModelError, with advice, if it cannot run this package."""
    program = shutil.which("vllm")
    if program is None:
        raise ModelError(
            "there is no vllm on the PATH; it needs an environment of its own, such as the .venv-vllm of 'make vllm': "
            'PATH="$PWD/.venv-vllm/bin:$PATH" minicpm demo --backend vllm'
        )
    # Resolve links to `vllm`, but not the interpreter beside it: only that path finds the environment's libraries.
    python = Path(program).resolve().with_name("python")
    try:
        subprocess.run([python, "-P", "-c", "import minicpm"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise ModelError(
            f"{python} has no minicpm, which must start vLLM for the demo; run '{python} -m pip install .' in this "
            "package's folder, or 'make vllm' for an environment with both"
        ) from None
    return str(python)


def _wait(process: subprocess.Popen[bytes], health: str, log: IO[str]) -> None:
    with httpx.Client(trust_env=False, timeout=_ANSWER_S) as client:
        while process.poll() is None:
            try:
                if client.get(health).is_success:
                    return
            except httpx.HTTPError:
                pass  # not yet
            time.sleep(_POLL_S)
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    ours = [line.removeprefix("minicpm: ") for line in lines if line.startswith("minicpm: ")]
    errors = [line for line in lines if "Error" in line]
    last = one_line((ours or errors or lines or ["it printed nothing"])[-1], 300)
    raise ModelError(f"vLLM ended with code {process.returncode} before it could answer: {last}")
