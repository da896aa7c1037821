"""Programs of others against the server, in environments of their own (make clients): llm and litellm."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from server.running import Running

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.peers


def environment_of(name: str) -> Path:
    """The environment's bin folder; skips where `make clients` did not make it."""
    folder = ROOT / f".venv-{name}" / "bin"
    if not (folder / "python").exists():
        pytest.skip(f"{name} is not there: make clients")
    return folder


@pytest.fixture
def ask_llm(nano: Running, tmp_path: Path):
    """`ask_llm(...)`: its standard output, with the configuration that docs/serving.md shows."""
    program = environment_of("llm") / "llm"
    shown = re.search(r"```yaml\n(- model_id.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    (tmp_path / "extra-openai-models.yaml").write_text(shown[1].replace("http://127.0.0.1:8000", nano.url))

    def run(*arguments: str, stdin: str | None = None) -> str:
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
        done = subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, input=stdin or "")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_llm_answers_and_streams(ask_llm):
    question = ("-m", "nano", "-o", "temperature", "0", "What is the capital of Japan?")
    assert ask_llm(*question).strip() == "The capital of Japan is Tokyo."
    assert ask_llm(*question, "--no-stream").strip() == "The capital of Japan is Tokyo."


def test_llm_goes_on_with_a_conversation(ask_llm):
    ask_llm("-m", "nano", "-o", "temperature", "0", "What is the capital of Japan?")
    assert ask_llm("-c", "-o", "temperature", "0", "What is 7 plus 5?").strip()


PROGRAM = """
import json, sys, litellm
asked = dict(model="openai/minicpm-nano", api_base=sys.argv[1], api_key="none", temperature=0,
             messages=[{"role": "user", "content": "What is the capital of Japan?"}])
whole = litellm.completion(**asked).choices[0].message.content
parts = "".join(c.choices[0].delta.content or "" for c in litellm.completion(**asked, stream=True))
try:
    litellm.completion(**{**asked, "model": "openai/other"})
    error = None
except litellm.NotFoundError as caught:
    error = type(caught).__name__
vectors = litellm.embedding(model="openai/minicpm-nano", api_base=sys.argv[1], api_key="none", input=["a cat"])
print(json.dumps([whole, parts, error, len(vectors.data)]))
"""


def test_litellm_answers_streams_embeds_and_knows_our_errors(nano: Running):
    python = environment_of("litellm") / "python"
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [python, "-c", PROGRAM, f"{nano.url}/v1"], capture_output=True, text=True, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    tokyo = "The capital of Japan is Tokyo."
    assert json.loads(done.stdout.splitlines()[-1]) == [tokyo, tokyo, "NotFoundError", 1]
