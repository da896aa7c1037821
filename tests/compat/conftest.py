"""Scripts run by `python -m minicpm.compat`: one after the other in forks of a process that has torch already."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from interrupts import default_interrupts

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


Compat = Callable[..., Done]

# Importing torch and transformers takes seconds: do it once, and fork a process for each script.
FORKING = """
import gc, json, os, sys
import minicpm.compat.scripts
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT), stream)
        os.environ.update(job["environment"])
        sys.exit(minicpm.compat.main(job["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """compat(script, *arguments): what `python -m minicpm.compat script arguments` does."""

    def __init__(self, process: subprocess.Popen[str], folder: Path):
        self.process, self.folder = process, folder

    def __call__(self, *arguments: str | Path, **environment: str) -> Done:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        files = {name: str(self.folder / name) for name in ("stdout", "stderr")}
        for file in files.values():
            Path(file).unlink(missing_ok=True)
        job = {"arguments": [str(a) for a in arguments], "environment": environment, **files}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        returncode = int(self.process.stdout.readline())
        return Done(returncode, *(Path(file).read_text(encoding="utf-8") for file in files.values()))


@pytest.fixture(scope="session")
def compat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("compat")
    environment = ENVIRONMENT | {"HF_HOME": str(folder / "hub"), "MINICPM_HOME": str(folder / "home")}
    with default_interrupts():
        process = subprocess.Popen(
            [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    with process:
        yield Forks(process, folder)
        assert process.stdin is not None
        process.stdin.close()


NAME = "openbmb/MiniCPM-2B-dpo-bf16"


@pytest.fixture
def published(compat: Forks, model_folder: Path) -> Path:
    """A small model in the scripts' hub cache, under the name of a model of the release."""
    cached = compat.folder / "hub" / "hub" / f"models--{NAME.replace('/', '--')}"
    commit = "0" * 40
    if not cached.exists():
        shutil.copytree(model_folder, cached / "snapshots" / commit)
        write(cached / "refs" / "main", commit)
    return cached / "snapshots" / commit


@pytest.fixture
def model_folder(golden: Path, tmp_path: Path) -> Path:
    """A small MiniCPM whose config.json is as bare as the real one and names code that must not run."""
    folder = tmp_path / "MiniCPM"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(golden / "minicpm2b_tied" / name, folder)
    raw = json.loads((golden / "minicpm2b_tied" / "config.json").read_text(encoding="utf-8"))
    del raw["model_type"]
    raw["eos_token_id"] = [2, *range(900, 1000)]  # a random model seldom says 2, and the script allows 4096 tokens
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    for name in ("configuration_minicpm.py", "modeling_minicpm.py"):
        (folder / name).write_text("raise SystemExit('EXECUTED')", encoding="utf-8")
    return folder
