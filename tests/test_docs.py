"""The documents are true: commands parse, help is the real help, examples run, links and file names exist.

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
READMES = [ROOT / name for name in ("README.md", "README-zh.md", "CONTRIBUTING.md", "nano/README.md")]
DOCUMENTS = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "command-line.md"
NAMING = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
FILE_NAME = re.compile(r"`([\w./-]+\.(?:py|h|cc|md))(?=[`: ])")
THEIR_FILES = {  # of the release of 2024 and of its models' folders
    "inference_renping.py",
    "modeling_minicpm.py",
    "quick_start.py",
    "vllm_convert_checkpoint_to_hf.py",
    "demo/vllm_based_demo.py",
    "demo/hf_based_demo.py",
    "finetune/finetune.py",
    "inference.py",
}
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


def compat_commands() -> list[tuple[str, str]]:
    """Every `python -m minicpm.compat ...` line of the documents' shell blocks."""
    found = []
    for name, text in blocks("sh") + blocks("console"):
        found += [(name, line) for line in text.splitlines() if line.startswith("python -m minicpm.compat ")]
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


@pytest.mark.parametrize("name, command", compat_commands(), ids=lambda value: value[:60])
def test_every_shown_command_of_2024_is_known(name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from minicpm.compat.commands import Verb, answer

    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[3:]
    found = answer(words)
    assert isinstance(found, Verb) or words == ["quick_start.py"]
    if isinstance(found, Verb):
        parse(found.arguments)


def test_the_two_readmes_lead_to_each_other_and_show_the_same_things():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README-zh.md"))
    assert "[中文](README-zh.md)" in english.splitlines()[0]
    assert "[English](README.md)" in chinese.splitlines()[0]
    table = re.compile(r"^\| [^|]+ \| (`[^|]+`) \| (\[[^|]+\)) \|$", re.MULTILINE)
    assert table.findall(english) == table.findall(chinese)
    assert len(table.findall(english)) >= 13


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


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a document."""
    headings = HEADING.findall(path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path):
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{path.name} links to {target}#{anchor}"


@pytest.mark.parametrize("path", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path):
    """A path is relative to the repository, the package, csrc or the document; a bare name is found by that name."""
    folders = (ROOT, ROOT / "src" / "minicpm", ROOT / "csrc", path.parent)
    sources = ("src", "csrc", "benchmarks", "nano", "docs")
    bare = {file.name for folder in sources for file in (ROOT / folder).rglob("*.*")}
    names = set(FILE_NAME.findall(path.read_text(encoding="utf-8"))) - bare - THEIR_FILES
    assert not {name for name in names if not any((folder / name).exists() for folder in folders)}


if __name__ == "__main__":
    REFERENCE.write_text(with_real_help(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
