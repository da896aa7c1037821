"""docs/serving.md tells the truth: its commands and programs run, its tables say what the code says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from minicpm.server import requests
from minicpm.server.settings import Settings
from server.running import Running

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(TEXT) if kind == language]


@pytest.mark.parametrize("block", [block for block in blocks("sh") if "curl" in block], ids=lambda block: block[:60])
def test_commands_of_curl_succeed(nano: Running, block: str):
    script = 'curl() { command curl --silent --show-error --fail-with-body --max-time 60 "$@"; }\nset -e\n'
    done = subprocess.run(
        ["bash", "-c", script + block.replace(ADDRESS, nano.url)],
        capture_output=True,
        text=True,
        env={**os.environ, "no_proxy": "*"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_for_ollamas_client_runs(nano: Running):
    pytest.importorskip("ollama")
    (block,) = re.findall(r"^```python ollama\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    exec(compile(block.replace(ADDRESS, nano.url), "serving.md", "exec"), {"__name__": "__main__"})


def test_python_examples_run_from_top_to_bottom(nano: Running):
    namespace = {"__name__": "__main__"}
    for block in blocks("python"):
        exec(compile(block.replace(ADDRESS, nano.url), "serving.md", "exec"), namespace)


def test_every_metric_is_in_the_table_and_the_other_way_round(client: httpx.Client):
    client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
    names = set(re.findall(r"^# TYPE minicpm_(\w+)", client.get("/metrics").text, re.MULTILINE))
    table = TEXT[TEXT.index("| metric") :]
    told = {
        re.sub(r"\{.*", "", name)
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([\w{},]+)`", row.split("|")[1])
    }
    assert told == names


def test_every_field_of_a_request_is_mentioned():
    fields = {
        field.alias or name
        for kind in (requests.ChatRequest, requests.CompletionRequest, requests.StructuredOutputs)
        for name, field in kind.model_fields.items()
    }
    assert not {field for field in fields if not re.search(rf"`{field}`", TEXT)}


def test_limits_are_those_of_the_code():
    limits = TEXT[TEXT.index("## Limits") : TEXT.index("## Security")]
    settings = Settings()
    for said in (
        f"{settings.max_body_bytes >> 20} MiB",
        f"{settings.max_header_bytes >> 10} KiB",
        f"within {settings.header_timeout_s:g} s, {settings.body_timeout_s:g} s, {settings.keep_alive_s:g} s",
        f"{settings.first_token_timeout_s:g} s, `--timeout` {settings.total_timeout_s:g} s",
        f"| {settings.max_connections} |",
        f"{requests.MAX_PROMPTS}, {requests.MAX_EMBEDDINGS}, {requests.MAX_TOOLS} |",
        f"every {settings.ping_s:g} s",
        f"`--grace` {settings.grace_s:g} s",
    ):
        assert said in limits, said
    assert f"up to {requests.MAX_CHOICES}" in TEXT


def test_every_code_of_an_error_is_in_the_table():
    source = "".join(path.read_text() for path in (ROOT / "src" / "minicpm" / "server").glob("*.py"))
    codes = set(re.findall(r'code="(\w+)"', source)) - {"client_gone"}  # nobody reads that one
    table = TEXT[TEXT.index("## Errors") : TEXT.index("## Limits")]
    assert {code for code in codes if f"`{code}`" not in table} == set()
