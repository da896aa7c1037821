"""A vLLM started for the demo: its server as a child process, ended with it.

vLLM pins libraries that the demo needs in other versions, so it lives in an environment of its own; the program on the
PATH is all that is known of it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from minicpm.demo.remote import RemoteSource
from minicpm.errors import ModelError, one_line

_POLL_S = 0.5
_END_S = 20.0


@dataclass(frozen=True)
class VllmOptions:
    """`parallel` answers at once; `context` and `dtype` as LLM takes them, None and 'auto' being vLLM's choice.

    `template` is jinja2 source, None the model's own.
    """

    parallel: int = 4
    context: int | None = None
    dtype: str = "auto"
    template: str | None = None


@contextmanager
def running_vllm(folder: Path, name: str, options: VllmOptions) -> Iterator[RemoteSource]:
    """A source over vLLM's server of a model, when it answers; ModelError where there is no vLLM, or it ends."""
    program = shutil.which("vllm")
    if program is None:
        raise ModelError(
            "there is no vllm on the PATH; it needs an environment of its own, such as the .venv-vllm of 'make peers': "
            'PATH="$PWD/.venv-vllm/bin:$PATH" minicpm demo --backend vllm'
        )
    port, key = _free_port(), secrets.token_urlsafe(16)
    # Not `vllm serve`, which in the CPU build (0.32) ends by not finding its own version.
    command = [str(Path(program).resolve().with_name("python")), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", options.dtype, "--max-num-seqs", str(options.parallel)]
    command += [] if options.context is None else ["--max-model-len", str(options.context)]
    command += [] if options.template is None else ["--chat-template", options.template]
    # The key keeps the others on this machine out; a command line would show it to them.
    environment = {**os.environ, "VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            source = RemoteSource(f"http://127.0.0.1:{port}/v1", key, name)
            source.engine = "vLLM"
            yield source
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], health: str, log: IO[str]) -> None:
    with httpx.Client(trust_env=False, timeout=_END_S) as client:
        while process.poll() is None:
            try:
                if client.get(health).is_success:
                    return
            except httpx.HTTPError:
                pass  # not yet
            time.sleep(_POLL_S)
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if "Error" in line]
    last = one_line((errors or lines or ["it said nothing"])[-1], 300)
    raise ModelError(f"vLLM ended with code {process.returncode} before it could answer: {last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends its own workers, where it is asked to."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its session: workers, too
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
