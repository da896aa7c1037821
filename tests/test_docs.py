"""The documents tell the truth: commands parse, shown help is the real help, Python examples run.

`python tests/test_docs.py` writes the real help into docs/command-line.md.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm.cli.main import VERBS, parse

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "nano" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "command-line.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
HELP = re.compile(r"(?<=^## `minicpm )(\w+)(`\n\n```text\n)(.*?)(?=^```)", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for path in DOCUMENTS:
        for number, (kind, text) in enumerate(FENCE.findall(path.read_text(encoding="utf-8"))):
            if kind == language:
                found.append((f"{path.name}:{number}", text))
    return found


def commands() -> list[tuple[str, str]]:
    """Every `minicpm ...` line of the documents' shell blocks, without comments, pipes and redirections."""
    found = []
    for name, text in blocks("sh") + blocks("console"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s+[|>]\s+|\s+&&\s+", line.removeprefix("$ ").split("  #")[0]):
                if part.strip().startswith("minicpm "):
                    found.append((name, part.strip()))
    return found


def real_help(verb: str) -> str:
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "minicpm", verb, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def with_real_help(text: str) -> str:
    return HELP.sub(lambda match: match[1] + match[2] + real_help(match[1]), text)


@pytest.mark.parametrize("name, command", commands(), ids=lambda value: value[:60])
def test_every_shown_command_parses(name: str, command: str):
    parse(shlex.split(command, comments=True)[1:])


def test_the_answers_in_the_readme_are_what_the_built_in_model_says():
    from minicpm import LLM

    (shown,) = [text for name, text in blocks("text") if name.startswith("README.md") and text.startswith("> ")]
    conversation = re.findall(r"^> (.*)\n((?:(?!> ).*\n)+)", shown, re.MULTILINE)
    assert len(conversation) == 5
    llm = LLM(backend="numpy")
    for question, answer in conversation:
        assert llm.chat(question, temperature=0).text.split() == answer.split()  # the README breaks lines


def test_shown_help_is_the_real_help():
    text = REFERENCE.read_text(encoding="utf-8")
    assert set(re.findall(r"^## `minicpm (\w+)`", text, re.MULTILINE)) == set(VERBS)
    assert re.findall(r"^usage: minicpm (\w+)", text, re.MULTILINE) == [match[1] for match in HELP.finditer(text)]
    assert with_real_help(text) == text, "run: python tests/test_docs.py"


# The programs of serving.md need a server: tests/server/test_documentation.py runs them with one.
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "serving.md"], ids=lambda path: path.name)
def test_python_examples_run_from_top_to_bottom(
    path: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    from minicpm import hub

    toy = golden / "minicpm2b_tied"
    monkeypatch.setattr(hub, "resolve", lambda *args, **kwargs: toy)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for language, code in FENCE.findall(path.read_text(encoding="utf-8")):
        if language == "python":
            code = re.sub(r"[\"']openbmb/MiniCPM-[\w.-]+[\"']", repr(str(toy)), code)
            exec(compile(code, path.name, "exec"), namespace)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


if __name__ == "__main__":
    REFERENCE.write_text(with_real_help(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
