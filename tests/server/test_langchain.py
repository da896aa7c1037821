"""LangChain's standard tests of chat models against the server (make clients).

The engine beneath answers what these tests ask for, so a model's skill plays no part: what is tested is the way of a
request and its answer through LangChain's classes, the official clients and our routes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from minicpm.chat.messages import USER_MARKER
from minicpm.engine.constraint import Constraint, Constraints
from minicpm.errors import GenerationError
from minicpm.server.model import ServedModel
from minicpm.server.requests import CalledFunction
from minicpm.server.settings import Settings
from minicpm.server.tools import call_text
from server.running import running
from server.stub import ScriptedEngine
from server.test_clients import environment_of

pytestmark = pytest.mark.peers

WORDS = "The weather is fine."
# What these tests look for in arguments, by the property's name.
VALUES = {"input": 3, "answer_style": "Pirate", "location": "San Francisco, CA"}
JOKE = {"setup": "Why did the cat sit on the computer?", "punchline": "To watch the mouse."}

TEXT_ONLY = "this server reads text only"
EXCLUDED = {
    "test_image_inputs": TEXT_ONLY,
    "test_image_tool_message": TEXT_ONLY,
    "test_pdf_inputs": TEXT_ONLY,
    "test_pdf_tool_message": TEXT_ONLY,
    "test_audio_inputs": TEXT_ONLY,
    "test_stream_time": "replays recordings of a hosted service",
}
OLLAMA_EXCLUDED = {
    **EXCLUDED,
    "test_tool_choice": "neither ChatOllama nor Ollama's API has a tool_choice",
    "test_anthropic_inputs": "ChatOllama refuses parts of Anthropic's messages before it asks a server",
}
CLASSES = {
    "TestChatCompletions": EXCLUDED,
    "TestChatCompletionsByFunctions": EXCLUDED,
    "TestResponses": EXCLUDED,
    "TestOllama": OLLAMA_EXCLUDED,
    "TestOllamaByFunctions": OLLAMA_EXCLUDED,
}


class Obliging(ScriptedEngine):
    """Calls a function where there is one, fills in the form where there is one, and speaks otherwise."""

    def __init__(self, model: ServedModel):
        super().__init__()
        self._tokenizer = model.tokenizer
        self._constraints = Constraints(model.tokenizer, model.vocab_size, frozenset(model.tokenizer.eos_token_ids))

    def answer(self, prompt: Sequence[int], constraint: Constraint | None) -> str:
        if constraint is None:
            return WORDS
        text = self._tokenizer.decode(prompt)
        question = text.rpartition(USER_MARKER)[2]
        if constraint.kind == "json_schema":
            form = example(json.loads(constraint.source), question)
            wished = [json.dumps(form or JOKE, ensure_ascii=False)]
        else:
            functions = [json.loads(line) for line in text.splitlines() if line.startswith('{"name": ')]
            called = functions[0]
            arguments = example(called.get("parameters", {"type": "object"}), question)
            call = call_text([CalledFunction(name=called["name"], arguments=arguments)])
            wished = [WORDS, call] if "<tool_response>" in question else [call]
        return next(answer for answer in wished if self._has_form(answer, constraint))

    def _has_form(self, answer: str, constraint: Constraint) -> bool:
        """Whether the engine could have given this answer."""
        matcher = self._constraints.matcher(constraint)
        try:
            for byte in answer.encode():
                token_id = self._tokenizer.byte_token_id(byte)
                assert token_id is not None
                matcher.accept(token_id)
        except GenerationError:
            return False
        return matcher.is_complete or bool(matcher.allowed()[self._tokenizer.eos_token_ids[0]])


def example(schema: dict[str, Any], question: str, name: str = "", root: dict[str, Any] | None = None) -> Any:
    """A value that is valid by a schema, with what the question is about in it."""
    root = schema if root is None else root
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return example(found, question, name, root)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], question, name, root)
    if name == "customer_name":
        return re.findall(r"'([^']+)'", question)[0]
    # Ollama's client leaves out a property's anyOf: then any value will do.
    kind = schema.get("type", "string" if name else "object")
    if kind == "object":
        return {key: example(value, question, key, root) for key, value in schema.get("properties", {}).items()}
    return VALUES.get(name, {"string": "some words", "integer": 2}[kind])


@pytest.fixture(scope="module")
def outcomes(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ElementTree.Element]]:
    """The test cases of LangChain's own pytest, which may ask this machine only."""
    python = environment_of("langchain") / "python"
    folder = tmp_path_factory.mktemp("langchain")
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_test_loop_scope = session\n")
    file = Path(__file__).with_name("langchain_models.py")
    options = ("--noconftest", "--junitxml=report.xml", "-q", "--disable-socket", "--allow-unix-socket")
    with running(Obliging(model), model, Settings(grace_s=1)) as server:
        environment = {**os.environ, "MINICPM_TEST_URL": server.url, "LANGSMITH_TRACING": "false"}
        done = subprocess.run(
            [python, "-m", "pytest", "-c", "pytest.ini", *options, "--allow-hosts=127.0.0.1", file],
            capture_output=True, text=True, env=environment, cwd=folder,
        )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr[-4000:]
    return list(ElementTree.parse(folder / "report.xml").iter("testcase"))


@pytest.mark.parametrize("name", CLASSES)
def test_langchains_standard_tests_pass(outcomes: list[ElementTree.Element], name: str):
    cases = {case.get("name", ""): case for case in outcomes if case.get("classname", "").endswith(f".{name}")}
    wrong = {test: part.text for test, case in cases.items() for part in case if part.tag in ("failure", "error")}
    assert not wrong, "\n".join(f"{test}: {(text or '')[-2000:]}" for test, text in wrong.items())
    skipped = {test: part.get("type") for test, case in cases.items() for part in case if part.tag == "skipped"}
    assert skipped == dict.fromkeys(CLASSES[name], "pytest.skip")  # not "pytest.xfail"
    assert len(cases) == 50
