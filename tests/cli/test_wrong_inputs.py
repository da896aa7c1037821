"""Ten wrong inputs and more of every verb (wrong_inputs.jsonl): each is answered in one sentence and changes nothing.

A case has the command `line`, the exit `code`, what the sentence `says`, and what it needs: `files` of the current
folder (a name with a slash at its end is an empty folder) and variables of the environment (`env`). {toy} stands for
a small model's folder.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minicpm.cli.main import VERBS

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("wrong_inputs.jsonl").read_text(encoding="utf-8").splitlines()
]
# What a verb imports before it looks at its arguments.
LIBRARIES = {"demo": "gradio", "serve": "fastapi", "prepare": "torch", "pretrain": "torch", "finetune": "torch"}
LONGEST = 400  # characters of a sentence that is still read


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_every_verb_has_ten():
    counts = Counter(case["line"].split()[0] for case in CASES)
    assert set(counts) == set(VERBS)
    assert min(counts.values()) >= 10
    assert len({json.dumps(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case["line"] for case in CASES])
def test_it_is_answered_in_one_sentence(minicpm, toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case):
    words = [word.replace("{toy}", str(toy)) for word in shlex.split(case["line"])]
    library = LIBRARIES.get(words[0])
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    folder = tmp_path / "here"
    folder.mkdir()
    for name, text in case.get("files", {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if name.endswith("/") else path.write_text(text, encoding="utf-8")
    for name, value in case.get("env", {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    before = content(folder)
    done = minicpm(*words)
    assert (done.code, done.out) == (case["code"], "")
    (sentence,) = [line for line in done.err.splitlines() if not line.startswith("reading ")]  # progress of training
    assert sentence.startswith("minicpm") and case["says"] in sentence
    assert len(sentence.replace(str(tmp_path), "").replace(str(toy), "")) < LONGEST
    assert content(folder) == before
