"""The command of vLLM's own server, as far as it can be tested without vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minicpm import EngineOptions
from minicpm.engine.backends.vllm import context_of
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.sampling import SamplingParams
from minicpm.server import vllm as vllm_server
from minicpm.server.vllm import VllmServer, command


def words(
    folder: Path, engine: dict[str, object] | None = None, options: EngineOptions | None = None, **settings: object
) -> list[str]:
    options = options or EngineOptions(backend="vllm")
    with open_checkpoint(folder) as checkpoint:
        options = replace(options, dtype="bfloat16", context=context_of(checkpoint.config, options.context))
        server = VllmServer("127.0.0.1", 8000, ["tiny"], options, **settings)  # type: ignore[arg-type]
        return command(checkpoint, folder, SamplingParams(temperature=0.5), server, engine or {})


def value(line: list[str], name: str) -> str:
    return line[line.index(name) + 1]


def test_our_settings_become_vllms(golden: Path):
    line = words(
        golden / "minicpm2b_tied",
        options=EngineOptions(
            backend="vllm", context=512, kv_cache_bytes=1000, vllm_options={"tensor_parallel_size": 2}
        ),
        max_batch=4,
        cors_origins=["https://a.example"],
        arguments=["--enforce-eager"],
    )
    assert line[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    expected = {
        "--model": str(golden / "minicpm2b_tied"),
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--dtype": "bfloat16",
        "--max-model-len": "512",
        "--max-num-seqs": "4",
        "--kv-cache-memory-bytes": "1000",
        "--tensor-parallel-size": "2",
        "--allowed-origins": '["https://a.example"]',
    }
    assert {name: value(line, name) for name in expected} == expected
    defaults = json.loads(value(line, "--override-generation-config"))
    assert defaults == {"temperature": 0.5, "top_p": 0.8, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.02}
    assert line[-1] == "--enforce-eager"


def test_what_is_not_said_is_left_to_vllm(golden: Path):
    line = words(golden / "minicpm2b_tied")
    assert value(line, "--max-model-len") == "2048"
    assert not {"--max-num-seqs", "--kv-cache-memory-bytes", "--tensor-parallel-size", "--api-key"} & set(line)


def test_what_its_build_for_the_cpu_wants_is_said_unless_we_are_told_otherwise(golden: Path):
    engine = {"enforce_eager": True, "kv_cache_memory_bytes": 5}
    line = words(golden / "minicpm2b_tied", engine)
    assert (value(line, "--kv-cache-memory-bytes"), "--enforce-eager" in line) == ("5", True)
    line = words(golden / "minicpm2b_tied", engine, EngineOptions(kv_cache_bytes=7), arguments=["--no-enforce-eager"])
    assert (line.count("--kv-cache-memory-bytes"), value(line, "--kv-cache-memory-bytes")) == (1, "7")
    assert line.index("--enforce-eager") < line.index("--no-enforce-eager")


def test_one_key_stays_out_of_the_process_list(golden: Path):
    assert "secret" not in words(golden / "minicpm2b_tied", api_keys=["secret"])
    assert vllm_server._environment(VllmServer("::1", 1, ["a"], api_keys=["secret"]))["VLLM_API_KEY"] == "secret"
    line = words(golden / "minicpm2b_tied", api_keys=["one", "two"])
    assert line[line.index("--api-key") + 1 :] == ["one", "two"]


def test_a_server_ends_with_the_signal_that_its_parent_gets():
    child = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(7))\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    code = (
        "import os, sys\n"
        "from minicpm.server.vllm import _watched\n"
        f"sys.exit(_watched([sys.executable, '-c', {child!r}], dict(os.environ)))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 7


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--", "--enforce-eager"), "'--enforce-eager' is an argument of vLLM's server; give --backend vllm, too"),
        (("--tensor-parallel-size", "2"), "--tensor-parallel-size needs --backend vllm"),
        (("--backend", "vllm", "--grace", "3"), "--grace is for minicpm's own server"),
        (("--backend", "vllm", "--threads", "3"), "--threads is for minicpm's own server"),
        (
            ("--backend", "vllm", "--threads", "256"),
            "--threads is for minicpm's own server",
        ),  # another option's default
    ],
)
def test_options_of_the_other_server_are_refused(capsys: pytest.CaptureFixture[str], arguments, expected):
    from minicpm.cli.main import main

    assert main(["serve", "--port", "0", *arguments]) == 2
    assert expected in capsys.readouterr().err
