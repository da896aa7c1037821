"""The true MiniCPM-2B shapes from real-layout folders: every verb, every format, the same tokens from each.

Needs 25 GB of disk and 12 GB of memory; random weights, the real tokenizer (benchmarks/make_model.py).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NEEDED_BYTES = 25 * 10**9
FORMS = {
    "bin": ("hf", "--bin", "--max-shard-size", "100GB"),
    "sharded": ("hf", "--max-shard-size", "2GB"),
    "granite": ("granite",),
    "vllmcpm": ("vllmcpm",),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("2b")
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of free disk, there are {free / 1e9:.0f}")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    folder = place / "MiniCPM-2B"
    subprocess.run([sys.executable, ROOT / "benchmarks" / "make_model.py", folder], check=True)
    return folder


def minicpm(*arguments: str | Path, stdin: str = "") -> str:
    command = [sys.executable, "-m", "minicpm", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


def greedy_answer(folder: Path) -> dict:
    question = "Which city is the capital of China?"
    return json.loads(minicpm("run", "-m", folder, "--temperature", "0", "--max-tokens", "8", "--json", question))


def test_info_counts_the_published_parameters(model: Path):
    facts = json.loads(minicpm("info", "-m", model, "--json"))
    assert facts["parameters"] == 2_724_880_896


def test_chat_remembers_the_turn_before(model: Path):
    stdin = "Which city is the capital of China?\nAnd of France?\n"
    out = minicpm("chat", "-m", model, "--max-tokens", "4", "--no-history", "--json", stdin=stdin)
    first, second = (json.loads(line) for line in out.splitlines())
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_weights_says_the_same(model: Path, place: Path, form: str):
    folder = place / form
    target, *flags = FORMS[form]
    minicpm("convert", model, folder, "--to", target, *flags)
    try:
        answer, expected = greedy_answer(folder), greedy_answer(model)
        assert (answer["text"], answer["usage"]) == (expected["text"], expected["usage"])
    finally:
        shutil.rmtree(folder)


def test_a_folded_model_runs_and_unfolds(model: Path, place: Path):
    minicpm("convert", model, place / "llama", "--to", "llama")
    try:
        assert greedy_answer(place / "llama")["usage"]["completion_tokens"] == 8
        minicpm("convert", place / "llama", place / "unfolded", "--to", "hf")
        facts = json.loads(minicpm("info", "-m", place / "unfolded", "--json"))
        assert facts["parameters"] == 2_724_880_896
    finally:
        shutil.rmtree(place / "llama")
        shutil.rmtree(place / "unfolded", ignore_errors=True)
