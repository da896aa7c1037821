"""The built-in model through the public door: a process of its own, without torch, without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import pytest

from minicpm.engine.advice import advised_sampling
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded

ROOT = Path(__file__).parents[2]
SHORT = ("--temperature", "0", "--max-tokens", "4")

# Whatever a conversation through a pipe can do without: it must not be needed, nor cost time.
REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ImportError(f"{{name}} was imported")

sys.meta_path.insert(0, Refuse())
from minicpm.cli.main import main
sys.exit(main({arguments!r}))
"""
NOT_NEEDED = ("torch", "transformers", "safetensors", "huggingface_hub", "rich", "prompt_toolkit", "jinja2", "httpx")


def minicpm_process(
    home: Path, *arguments: str, stdin: str = "", refused: tuple[str, ...] = ("torch", "transformers")
) -> subprocess.CompletedProcess[str]:
    """`minicpm ARGUMENTS` in a process that fails when it imports one of `refused`."""
    settings = {"MINICPM_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", REFUSING.format(refused=refused, arguments=list(arguments))],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **settings},
        timeout=120,
    )


def test_piped_lines_are_turns_with_the_built_in_model_and_need_no_other_library(tmp_path: Path):
    stdin = "Hello\nWhat is 7 plus 5?\n"
    done = minicpm_process(tmp_path, "chat", *SHORT, "--json", stdin=stdin, refused=NOT_NEEDED)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"]


def test_the_answer_alone_is_on_stdout(tmp_path: Path):
    text = json.loads(minicpm_process(tmp_path, "chat", *SHORT, "--json", stdin="Hello\n").stdout)["text"]
    done = minicpm_process(tmp_path, "chat", *SHORT, stdin="Hello")  # a last line need not end
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{text}\n", "")


def test_an_empty_pipe_ends_cleanly(tmp_path: Path):
    done = minicpm_process(tmp_path, "chat", stdin="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_run_takes_a_prompt_without_a_model(tmp_path: Path):
    done = minicpm_process(tmp_path, "run", *SHORT, "--json", "Tell me a story about a brave rabbit.")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["usage"]["completion_tokens"] <= 4


def test_its_own_advice_is_followed_where_no_flag_says_otherwise(tmp_path: Path):
    done = minicpm_process(tmp_path, "chat", "--commands", stdin="/set\n")
    for name, value in asdict(advised_sampling(open_checkpoint(embedded.FOLDER, allow_quantized=True))).items():
        assert f"{name} = {value}" in done.stderr.splitlines()
    done = minicpm_process(tmp_path, "chat", "--commands", "--temperature", "0.125", stdin="/set\n")
    assert "temperature = 0.125" in done.stderr


def test_info_describes_it_without_a_name(tmp_path: Path):
    facts = json.loads(minicpm_process(tmp_path, "info", "--json").stdout)
    assert Path(facts["path"]) == embedded.FOLDER
    assert facts["context"] == 2048
    assert facts["quantization"]
    assert facts["weight_bytes"] < 10e6


def test_list_shows_it_as_embedded(tmp_path: Path):
    line = minicpm_process(tmp_path, "list").stdout.splitlines()[0]
    assert line.startswith("minicpm-nano  embedded ")
    assert line.endswith("complete  -")


@pytest.mark.parametrize("arguments", [("minicpm-nano",), ("minicpm-nano", "--yes"), ("MiniCPM-nano", "-y")])
def test_rm_refuses_it_before_it_asks(tmp_path: Path, arguments: tuple[str, ...]):
    done = minicpm_process(tmp_path, "rm", *arguments, stdin="y\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "minicpm: minicpm-nano is built into the package and goes only with it; rm removes downloaded models\n"
    )
    assert embedded.is_present()


def test_a_wheel_carries_the_model():
    """scikit-build-core takes all of `packages` that .gitignore leaves, unless its own table says otherwise."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]
    assert table["wheel"] == {"packages": ["src/minicpm"]}
    patterns = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    for path in embedded.FOLDER.iterdir():
        parts = path.relative_to(ROOT).parts
        for pattern in patterns:
            places = parts[:1] if pattern.startswith("/") else parts
            assert not any(fnmatch(part, pattern.strip("/")) for part in places), f"{pattern} hides {path.name}"


def planned(venv: Path, *arguments: str) -> str:
    """The commands that make would run with this environment."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    command = [make, "--no-print-directory", "-n", f"VENV={venv}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment as make sees it, without any set-up in it."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    return tmp_path / "venv"


def test_make_chat_begins_with_nothing_and_installs_the_core_alone(tmp_path: Path):
    commands = planned(tmp_path / "venv", "chat")
    assert "-m venv" in commands
    assert "--editable '.'" in commands
    assert "torch" not in commands


def test_a_named_model_brings_torch(environment: Path):
    (environment / ".core").touch()
    assert "--editable '.[torch]'" in planned(environment, "chat", "MODEL=minicpm-2b-dpo")


def test_make_test_completes_what_make_chat_began(environment: Path):
    (environment / ".core").touch()
    assert "--editable '.[all,dev]'" in planned(environment, "test")


@pytest.mark.parametrize("arguments", [("chat",), ("chat", "MODEL=minicpm-2b-dpo")])
def test_a_second_start_installs_nothing(environment: Path, arguments: tuple[str, ...]):
    for stamp in (".core", ".torch", ".all", ".native"):
        (environment / stamp).touch()
    (command,) = planned(environment, *arguments).splitlines()
    assert command.startswith(f"{environment}/bin/minicpm chat")
