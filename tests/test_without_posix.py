"""Models run and are written by a Python without the modules, flags and functions that only POSIX has.

Windows lacks all of these. What else is different there (paths, files in use, processes) this cannot show.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm import native
from minicpm.hub import embedded
from small_models import WIDE, random_weights, write_model

WITHOUT = """
import mmap, os, subprocess, sys, tempfile  # the library's own have what they need
sys.modules.update(dict.fromkeys(("fcntl", "resource", "uvloop")))
for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "copy_file_range", "geteuid", "posix_fadvise",
             "posix_fallocate", "pwrite", "sched_getaffinity"):
    vars(os).pop(name, None)
for name in [name for name in vars(mmap) if name.startswith(("MAP_", "PROT_", "MADV_"))]:
    delattr(mmap, name)
sys.platform = "elsewhere"
"""
MINICPM = "from minicpm.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
TEMPLATE = """
from pathlib import Path
from minicpm.chat.foreign import render_foreign
render_foreign("{{ 1 }}", {}, Path("template.jinja"))
"""
QUESTION = ("--temperature", "0", "What is the capital of Japan?")
NATIVE = pytest.param("native", marks=pytest.mark.skipif(native.why_missing() is not None, reason="no native engine"))


def ran(script: str, *arguments: str | Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + script, *map(str, arguments)]
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def minicpm(*arguments: str | Path) -> str:
    done = ran(MINICPM, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", [NATIVE, "numpy"])
def test_a_model_answers(backend: str):
    assert "Tokyo" in minicpm("run", "--backend", backend, *QUESTION)


def test_a_folder_is_written_and_replaced(tmp_path: Path):
    source = write_model(tmp_path / "source", WIDE, random_weights(WIDE))
    for options in ([], ["--force"]):
        minicpm("quantize", source, tmp_path / "quantized", *options)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "quantized"}


def test_a_file_is_written_and_replaced(tmp_path: Path):
    for options in ([], ["--force"]):
        minicpm("convert", embedded.folder(), tmp_path / "nano.gguf", "--to", "gguf", *options)
    assert {path.name for path in tmp_path.iterdir()} == {"nano.gguf"}


@pytest.mark.skipif(native.why_missing() is not None, reason="no native engine")
def test_packed_weights_are_not_kept_and_a_warning_says_why(tmp_path: Path):
    small = "from minicpm.engine.backends import packed\npacked.SMALLEST_FILE_BYTES = 1\n"
    done = ran(small + MINICPM, "run", "--backend", "native", *QUESTION, MINICPM_HOME=tmp_path)
    assert "Tokyo" in done.stdout
    assert "cannot be kept (this system has no locks that end with a process)" in done.stderr


def test_a_strangers_template_is_refused(tmp_path: Path):
    done = ran(TEMPLATE)
    assert done.returncode == 1 and "needs process limits, which Windows lacks" in done.stderr
