"""Programs of others against the server, in environments of their own (make clients): llm, litellm and lm-eval."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from minicpm.engine.service import Service
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


@pytest.fixture
def lm_eval_samples(nano: Running, service: Service, tmp_path: Path):
    """`lm_eval_samples(task, name, records, ...)`: what lm-eval logs of its samples, asked as docs/serving.md shows.

    `shown` is the task of the document's command, in whose place the task `name` of the text `task` is run over
    `records`; `more` stands behind the tokenizer's argument, `options` behind the task.
    """

    def run(task: str, name: str, records: list[dict[str, Any]], shown: str, more: str = "", options: str = ""):
        (tmp_path / f"{name}.yaml").write_text(task)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        text = (ROOT / "docs" / "serving.md").read_text()
        (command,) = [block for block in re.findall(r"```sh\n(lm_eval .*?)```", text, re.DOTALL) if shown in block]
        changes = {
            "lm_eval": str(environment_of("lmeval") / "lm_eval"),
            "http://127.0.0.1:8000": nano.url,
            "tokenizer=MODEL": f"tokenizer={service.llm.folder}{more}",
            f"--tasks {shown}": f"--tasks {name}{options} --include_path . --log_samples --output_path out",
        }
        for old, new in changes.items():
            assert old in command
            command = command.replace(old, new)
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, **offline}, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-4000:]
        (file,) = tmp_path.glob("out/**/samples_*.jsonl")
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        assert len(samples) == len(records)
        return samples

    return run


# Questions of nano's own kind, an answer that merges with none of them, Chinese, and one that begins with a blank.
QUESTIONS = [
    {"question": "What is the capital of Japan?", "choices": ["The capital of Japan is Tokyo.", "It is Paris."]},
    {"question": "What is 7 plus 5?", "choices": ["7 plus 5 is 12.", "12", "Cats are grey."]},
    {"question": "日本的首都是哪里？", "choices": ["东京", "Tokyo"]},
]
TASK = """
task: questions
dataset_path: json
dataset_kwargs: {data_files: questions.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.parametrize("adds_bos", [False, True])
def test_lm_eval_scores_continuations_as_loglikelihood_does(lm_eval_samples, service: Service, adds_bos: bool):
    more, options = f",add_bos_token={adds_bos}", " --batch_size 4"
    samples = lm_eval_samples(TASK, "questions", QUESTIONS, "hellaswag", more, options)
    llm = service.llm
    for sample in samples:
        for asked, ((logprob, is_greedy),) in zip(sample["arguments"].values(), sample["resps"]):
            # It cuts a text of both behind as many tokens as the question has alone.
            before = llm.tokenizer.encode(asked["arg_0"], add_bos=adds_bos)
            whole = llm.tokenizer.encode(asked["arg_0"] + asked["arg_1"], add_bos=adds_bos)
            pair = (whole[: len(before)], [whole[len(before) :]])
            ((expected,),) = service.call(lambda pair=pair: llm.loglikelihood([pair]))
            assert float(logprob) == pytest.approx(expected.logprob, abs=1e-4)
            assert is_greedy == str(expected.is_greedy)


ROLLING = """
task: stories
dataset_path: json
dataset_kwargs: {data_files: stories.jsonl}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""
STORIES = ["Once upon a time there was a mouse.", "The capital of Japan is Tokyo.", "日本的首都是东京。"]


def test_lm_evals_perplexity_as_documented_counts_the_first_token_once(lm_eval_samples, service: Service):
    samples = lm_eval_samples(ROLLING, "stories", [{"text": text} for text in STORIES], "wikitext")
    llm = service.llm
    bos = llm.tokenizer.bos_token_id
    for sample, story in zip(samples, STORIES, strict=True):
        pair = ([bos], [llm.tokenizer.encode(story, add_bos=False)])
        ((expected,),) = service.call(lambda pair=pair: llm.loglikelihood([pair]))
        ((logprob,),) = sample["resps"]
        assert float(logprob) == pytest.approx(expected.logprob, abs=1e-3)
