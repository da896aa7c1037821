"""Our models in the real vLLM, by `LLM(backend="vllm")`, by its own server and in the demo. `make test-vllm`.

One process loads all models after each other, since a start takes half a minute. Greedy tokens are held to the margin
rule: they must agree wherever the reference is sure by more than twice the tolerance.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from environments import ROOT, needing, python_of
from minicpm import LLM, EngineOptions
from minicpm.demo.vllm import running_vllm
from minicpm.export.convert import convert
from minicpm.export.expand import expand
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded
from minicpm.sampling import SamplingParams
from small_models import HEADS_OF_64, write_model

DOCUMENT = ROOT / "docs" / "vllm.md"
PYTHON = python_of("vllm")

pytestmark = needing("vllm", "vLLM", mark="vllm", target="vllm")

PROMPTS = [[1, *range(300, 340)], [1, *range(500, 520)], [1, 7, 7, 7]]
GREEDY = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 32, "ignore_eos": True, "logprobs": 2}
QUESTION = "Tell me a story about a mouse."
PAIRS = [["Once upon a time", [" there was a mouse", " xyz"]]]
# Absent from the real config.json of 2024, which has code to load instead.
ABSENT_IN_2024 = (
    "model_type",
    "tie_word_embeddings",
    "rope_theta",
    "attention_bias",
    "attention_dropout",
    "pad_token_id",
)
CODE_OF_2024 = {"AutoConfig": "configuration_minicpm.MiniCPMConfig", "AutoModelForCausalLM": "modeling_minicpm.MiniCPM"}


@pytest.fixture(scope="session")
def folders(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in the forms it may come in."""
    base = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)
    weights = {}
    for name, shape in HEADS_OF_64.parameter_shapes().items():
        # Embeddings small and the rest large, so that greedy text varies.
        values = random.standard_normal(shape, np.float32) * np.float32(0.06 if "embed" in name else 0.3)
        weights[name] = values if len(shape) == 2 else np.full(shape, 3 if name == "model.norm.weight" else 1, "f4")
    write_model(base / "hf", HEADS_OF_64, weights)
    for file in (golden / "minicpm2b_tied").glob("*tok*"):
        shutil.copy(file, base / "hf" / file.name)
    made = {name: base / name for name in ("hf", "2024", "vllmcpm", "int4-hf", "int4-hf expanded", "nano expanded")}
    convert(made["hf"], made["2024"], to="hf", as_bin=True)
    raw = json.loads((made["2024"] / "config.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in ABSENT_IN_2024} | {"auto_map": CODE_OF_2024}
    (made["2024"] / "config.json").write_text(json.dumps(raw, indent=4))
    convert(made["hf"], made["vllmcpm"], to="vllmcpm")
    quantize_folder(made["hf"], made["int4-hf"], preset="int4-hf")
    for name, source in (("int4-hf expanded", made["int4-hf"]), ("nano expanded", embedded.folder())):
        made[name].mkdir()
        with open_checkpoint(source, allow_quantized=True) as checkpoint:
            expand(checkpoint, made[name], "float32")
    return made


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "MINICPM_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # threads that wait for one another are slow beside other work
    }


@pytest.fixture(scope="session")
def answers(folders: dict[str, Path], golden: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What vLLM makes of every model, by name: see JOBS below and vllm_answers.py."""
    greedy = ["generate", [PROMPTS], GREEDY]
    sampled = {"temperature": 1, "max_tokens": 12, "ignore_eos": True}
    jobs: dict[str, dict[str, Any]] = {
        "2024": {
            "model": str(folders["2024"]),
            "dtype": "float32",
            "calls": [
                greedy,
                ["loglikelihood", [PAIRS], {}],
                ["chat", [QUESTION], {**sampled, "seed": 1}],
                ["chat", [QUESTION], {**sampled, "seed": 1}],
                ["chat", [QUESTION], {**sampled, "seed": 2}],
                ["interleaved", ["a b c", "d e", "f g"], {"temperature": 0, "max_tokens": 9, "ignore_eos": True}],
                ["logits", [[1, 2]], {}],
                ["embed", ["a"], {}],
                ["constrained", ["a"], {}],
                ["generate", [[[1, *range(2, 400)]]], {"max_tokens": 1}],
                ["generate", [[[1, *range(2, 400)]]], {"max_tokens": 1}],
                ["served", [], {}],
                ["replaced", ["a"], {}],
            ],
        },
        "vllmcpm": {"model": str(folders["vllmcpm"]), "dtype": "float32", "calls": [greedy]},
        "int4-hf": {"model": str(folders["int4-hf"]), "dtype": "auto", "calls": [greedy]},
        "int4-hf float32": {"model": str(folders["int4-hf"]), "dtype": "float32", "calls": [greedy]},
        "nano": {
            "model": None,
            "dtype": "auto",
            "calls": [["chat", [QUESTION], {"temperature": 0, "max_tokens": 48}], greedy],
        },
        "heads of 16": {"model": str(golden / "minicpm2b_tied"), "dtype": "auto", "calls": []},
        "unknown option": {
            "model": str(folders["hf"]),
            "dtype": "auto",
            "options": {"vllm_options": {"no_such_option": 1}},
            "calls": [],
        },
    }
    (example,) = re.findall(r"^```py\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    jobs["document"] = {"script": re.sub(r'"openbmb/[\w.-]+"', repr(str(folders["2024"])), example)}
    done = subprocess.run(
        ["nice", PYTHON, Path(__file__).with_name("vllm_answers.py")],
        input=json.dumps(list(jobs.values())),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Only our results are on stdout: vLLM's log is on stderr.
    return {**dict(zip(jobs, json.loads(done.stdout))), "stderr": done.stderr}


def assert_same_tokens(found: list[dict[str, Any]], folder: Path, tolerance: float) -> None:
    """The margin rule against the torch backend in float32, and its log-probabilities as far as the tokens agree."""
    expected = LLM(folder, backend="torch", dtype="float32").generate(PROMPTS, **GREEDY)
    compared = 0
    for one, reference in zip(found, expected, strict=True):
        assert len(one["ids"]) == len(reference.ids)
        for place, sampled in enumerate(reference.logprobs):
            (_, best), (_, second) = sampled.top_logprobs
            if one["ids"][place] != sampled.token_id:
                assert best - second <= 2 * tolerance
                break
            assert abs(one["logprobs"][place]["logprob"] - sampled.logprob) < 2 * tolerance
            compared += 1
    assert compared > 0.8 * sum(len(reference.ids) for reference in expected)


def test_a_folder_as_published_in_2024_gives_the_tokens_of_the_torch_backend(answers, folders):
    assert_same_tokens(answers["2024"][0], folders["2024"], tolerance=1e-4)


def test_a_checkpoint_of_the_2024_fork_gives_them_too(answers, folders):
    assert_same_tokens(answers["vllmcpm"][0], folders["hf"], tolerance=1e-4)


# bfloat16 keys, values and sums on weights of 4 bits: the largest difference found is 0.17 where logits span 10.
def test_an_int4_hf_folder_is_computed_by_vllms_own_4_bit_kernels(answers, folders):
    assert_same_tokens(answers["int4-hf"][0], folders["int4-hf expanded"], tolerance=0.3)
    assert "int4-hf: vLLM cannot read it: vLLM's 4-bit kernels compute in 16 bits" in answers["stderr"]
    assert answers["stderr"].count("int4-hf: vLLM cannot read it") == 1


def test_the_same_folder_in_float32_is_expanded_to_the_same_numbers(answers, folders):
    assert_same_tokens(answers["int4-hf float32"][0], folders["int4-hf expanded"], tolerance=1e-4)


def test_nano_is_expanded_and_answers_as_its_numbers_do_in_the_torch_backend(answers, folders):
    assert_same_tokens(answers["nano"][1], folders["nano expanded"], tolerance=1e-3)
    expected = LLM(folders["nano expanded"], backend="torch").chat(QUESTION, temperature=0, max_tokens=48)
    assert answers["nano"][0]["text"] == expected.text
    assert "MiniCPM-nano: vLLM cannot read it: its embedding is quantized" in answers["stderr"]


def test_expanded_folders_are_gone_when_vllm_has_read_them(answers, environment):
    assert list((Path(environment["MINICPM_HOME"]) / "vllm").iterdir()) == []


def test_continuations_are_scored_as_by_the_torch_backend(answers, folders):
    expected = LLM(folders["2024"], backend="torch").loglikelihood(PAIRS)
    for found, reference in zip(answers["2024"][1][0], expected[0], strict=True):
        assert found["logprob"] == pytest.approx(reference.logprob, abs=1e-3)
        assert (found["token_count"], found["is_greedy"]) == (reference.token_count, reference.is_greedy)


def test_a_seed_gives_its_answer_again(answers):
    first, again, other = answers["2024"][2:5]
    assert first["ids"] == again["ids"] != other["ids"]
    assert (first["seed"], other["seed"]) == (1, 2)
    assert first["finish_reason"] == "length"


def test_streams_may_be_left_and_read_in_turns(answers, folders):
    llm = LLM(folders["2024"], backend="torch")
    options = {"temperature": 0, "max_tokens": 9, "ignore_eos": True}
    assert answers["2024"][5] == [llm.chat(text, **options).text for text in ("d e", "f g")]


def test_what_a_second_prompt_shares_is_not_computed_again(answers):
    first, second = answers["2024"][9][0], answers["2024"][10][0]
    assert first["usage"]["cached_tokens"] == 0
    assert second["usage"]["cached_tokens"] >= 128  # its blocks on the CPU


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (6, "GenerationError: vLLM returns answers and scores, but no logits or hidden states"),
        (7, "GenerationError: vLLM returns answers and scores, but no logits or hidden states"),
        (8, "GenerationError: the vllm backend samples by itself and cannot constrain an answer"),
        (11, "GenerationError: the vllm backend has its own scheduler"),
        (12, "GenerationError: another model was loaded since and replaced this one"),
    ],
)
def test_what_vllm_cannot_do_is_one_sentence(answers, call, expected):
    assert answers["2024"][call]["error"].startswith(expected)


def test_a_model_that_its_kernels_cannot_run_is_refused_before_it_is_loaded(answers):
    assert answers["heads of 16"]["error"].startswith("ModelError: vLLM has no attention for heads of 16 on the CPU")


def test_an_option_that_vllm_does_not_have_is_named(answers):
    assert answers["unknown option"]["error"].startswith("ValueError: vLLM does not take these options")
    assert "no_such_option" in answers["unknown option"]["error"]


def test_the_example_of_the_document_runs(answers):
    assert len(answers["document"].splitlines()) >= 2


# --- the command line --------------------------------------------------------------------------------------------


def test_run_answers_a_file_of_prompts_as_the_torch_backend_does(folders, environment, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Which is higher?\nhello\n", encoding="utf-8")
    command = ["run", "-m", folders["2024"], "--dtype", "float32", "-f", prompts]
    command += ["--temperature", "0", "--max-tokens", "8", "--repetition-penalty", "1", "--backend"]
    done = subprocess.run(
        ["nice", PYTHON, "-m", "minicpm", *command, "vllm"],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    llm = LLM(folders["2024"], backend="torch", dtype="float32")
    options = {"temperature": 0, "max_tokens": 8, "repetition_penalty": 1}
    blocks = [(prompt, llm.chat(prompt, **options).text) for prompt in ("Which is higher?", "hello")]
    assert done.stdout == "".join(f"================\n<用户>: {prompt}\n<AI>:\n{text}\n" for prompt, text in blocks)


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`minicpm serve --backend vllm` on the tiny model, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "-m", folders["2024"], "--backend", "vllm", "--dtype", "float32", "--port", str(port)]
    words += ["--served-model-name", "tiny", "--kv-cache-size", "64MB", "--max-batch", "4", "--", "--enforce-eager"]
    process = subprocess.Popen(
        ["nice", PYTHON, "-m", "minicpm", *words],
        env={**environment, "MINICPM_API_KEY": "secret"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            assert process.poll() is None, "the server ended"
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(1)
        yield url, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_serve_hands_over_to_vllms_server(server, folders):
    url, process = server
    assert httpx.get(f"{url}/v1/models").status_code == 401
    client = httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=120)
    models = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in models] == [("tiny", 512)]
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}
    found = client.post("/v1/chat/completions", json={**ask, "repetition_penalty": 1, "ignore_eos": True}).json()
    llm = LLM(folders["2024"], backend="torch", dtype="float32")
    options = {"temperature": 0, "max_tokens": 8, "repetition_penalty": 1, "ignore_eos": True}
    expected = llm.chat("hello", **options)
    assert found["usage"] | {"prompt_tokens": expected.usage.prompt_tokens, "completion_tokens": 8} == found["usage"]
    assert found["choices"][0]["message"]["content"].strip() == expected.text.strip()
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


# --- the demo ----------------------------------------------------------------------------------------------------


def test_the_demo_talks_with_nano_in_a_vllm_of_its_own(folders, environment, monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTHONPATH", "MINICPM_HOME", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("PATH", str(PYTHON.parent), prepend=os.pathsep)
    sampling = SamplingParams(temperature=0, repetition_penalty=1, max_tokens=48)

    async def ask(source) -> list[Any]:
        return [state async for state in source.answer([{"role": "user", "content": QUESTION}], sampling)]

    with running_vllm(embedded.folder(), "nano", EngineOptions(max_batch=2)) as source:
        assert (source.model, source.engine, source.context_length) == ("nano", "vLLM", 2048)
        states = asyncio.run(ask(source))
    expected = LLM(folders["nano expanded"], backend="torch").chat(QUESTION, sampling)
    assert states[-1].text.strip() == expected.text.strip()
    assert (states[-1].tokens, states[-1].finish_reason) == (48, "length")
    assert len({state.text for state in states}) > 24  # as it is written, not all at once
    assert list((Path(environment["MINICPM_HOME"]) / "vllm").iterdir()) == []
