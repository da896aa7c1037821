"""Every verb on a trained model, as a user types it: from a GGUF file and from a Hugging Face folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from environments import needing_trained_model

pytestmark = needing_trained_model()

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["Paris", "Rome"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
TEXT = "The capital of France is"
# Every token of this answer leads by 0.6 nats; that to "What is the capital of France?" begins with a lead of 0.003.
QUESTION, ANSWER = "What is 2+2?", "The answer to this classic math problem is 4."


def minicpm(*arguments: str | Path, stdin: str = "") -> str:
    command = [sys.executable, "-m", "minicpm", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    return done.stdout


def test_info(model: Path):
    facts = json.loads(minicpm("info", "-m", model, "--json"))
    assert facts["parameters"] == 134_515_008
    assert (facts["layers"], facts["hidden_size"], facts["head_dim"], facts["key_value_heads"]) == (30, 576, 64, 3)
    assert (facts["rope_theta"], facts["context"], facts["tied_head"]) == (100_000, 8192, True)
    assert (facts["scale_emb"], facts["residual_scale"], facts["logit_scale"]) == (1, 1, 1)


def continued(model: Path) -> str:
    """The greedy continuation of a text that the model knows."""
    return minicpm("run", "-m", model, "--raw", "--temperature", "0", "--max-tokens", "4", TEXT)


def test_run(model: Path):
    answer = json.loads(minicpm("run", "-m", model, "--temperature", "0", "--max-tokens", "20", "--json", QUESTION))
    assert answer["text"] == ANSWER
    assert "Paris" in continued(model)


def test_chat_remembers_the_turn_before(model: Path):
    arguments = ("chat", "-m", model, "--temperature", "0", "--max-tokens", "20", "--no-history", "--json")
    first, second = map(json.loads, minicpm(*arguments, stdin=f"{QUESTION}\nAnd 3+3?\n").splitlines())
    assert first["text"] == ANSWER
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"]


def test_bench(model: Path):
    points = ("--prefill", "16", "--decode", "0", "--batch", "", "--verify", "0", "--repeats", "1")
    assert json.loads(minicpm("bench", "-m", model, *points, "--json"))


@contextmanager
def serving(model: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "minicpm", "serve", "-m", str(model), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = next(m[1] for line in process.stderr if (m := re.search(r"is served at (http://\S+)/v1", line)))
            yield httpx.Client(base_url=url, timeout=120)
        finally:
            process.terminate()


def test_serve(model: Path):
    ask = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 20}
    with serving(model) as client:
        raw = {"prompt": TEXT, "temperature": 0, "max_tokens": 4}
        assert "Paris" in client.post("/v1/completions", json=raw).json()["choices"][0]["text"]
        whole = client.post("/v1/chat/completions", json=ask).json()["choices"][0]
        streamed = []
        with client.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    streamed += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
        assert "".join(streamed) == whole["message"]["content"] != ""
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        chosen = client.post("/v1/chat/completions", json={**ask, "response_format": form}).json()["choices"][0]
        assert json.loads(chosen["message"]["content"])["answer"] in ("Paris", "Rome")


@pytest.mark.parametrize("target", ["hf", "llama", "gguf"])
def test_convert(model: Path, tmp_path: Path, target: str):
    destination = tmp_path / ("out.gguf" if target == "gguf" else "out")
    minicpm("convert", model, destination, "--to", target, "--dtype", "bfloat16")
    assert "Paris" in continued(destination)


@pytest.mark.parametrize("preset", ["int8", "int4", "int4-small"])
def test_quantize(model: Path, tmp_path: Path, preset: str):
    minicpm("quantize", model, tmp_path / "out", "--preset", preset)
    out = continued(tmp_path / "out")
    assert out.strip() and ("Paris" in out or preset != "int8")
