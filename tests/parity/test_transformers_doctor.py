"""Folders with the known faults in real transformers: wrong before `minicpm doctor`, as the sound folder after."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from broken_models import FOLDER_FAULTS, QUESTION, TEXTS, as_floats, nano_of_2024, spoil
from minicpm.cli.main import main
from minicpm.tokenizer import Tokenizer
from small_models import WIDE, random_weights, write_model

pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

# What a user sees of a fault, in transformers as it comes ("plain") or with minicpm.models ("ours").
SEEN = {
    "missing-model-type": ("plain", "error", "model_type"),
    "remote-code": ("plain", "error", "is_torch_fx_available"),
    "missing-mup": ("ours", "nats", ""),
    "wrong-rope-theta": ("ours", "nats", ""),
    "wrong-tie": ("ours", "nats", ""),
    "lost-scales": ("plain", "nats", ""),
    "row-order": ("ours", "nats", ""),
    "missing-template": ("ours", "error", "chat_template"),
    "wrong-template": ("ours", "answer", ""),
    "missing-tokenizer-json": ("ours", "error", "tokenizer.json"),
    "wrong-tokenizer-json": ("ours", "ids", ""),
    "wrong-eos": ("ours", "answer", ""),
}
# transformers' default is MiniCPM's; what it puts in front of a text is tokenizer.json's to say.
UNSEEN = ("missing-rope-theta", "no-bos")
OF_THEIR_OWN = ("not-finite", "unsaid-quantization")  # tests below

CODE_OF_2024 = {
    "configuration_minicpm.py": "from transformers.configuration_utils import PretrainedConfig\n"
    "class MiniCPMConfig(PretrainedConfig):\n    model_type = 'minicpm'\n",
    # As the real file begins; that name is gone from transformers 5.
    "modeling_minicpm.py": "from transformers.utils.import_utils import is_torch_fx_available\n"
    "class MiniCPMForCausalLM: pass\n",
}


class Transformers:
    """A Python with transformers that is asked again and again."""

    def __init__(self, kind: str, cache: Path):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
        command = [sys.executable, str(Path(__file__).with_name("transformers_answers.py")), kind]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, folder: Path, trusts: bool = False) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"folder": str(folder), "texts": TEXTS, "question": QUESTION, "trusts": trusts}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Transformers]]:
    made = {kind: Transformers(kind, tmp_path_factory.mktemp(kind)) for kind in ("plain", "ours")}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    return as_floats(nano_of_2024(root / "int4"), root / "nano")


@pytest.fixture(scope="module")
def expected(runs: dict[str, Transformers], sound: Path) -> dict[str, Any]:
    told = runs["ours"].ask(sound)
    assert told["answer"].startswith("A nurse takes care of sick people.")
    return told


def repaired(broken: Path, destination: Path) -> Path:
    assert main(["doctor", str(broken), "--fix", str(destination)]) == 0
    return destination


@pytest.mark.parametrize("fault", [*SEEN, *UNSEEN])
def test_transformers_is_wrong_before_the_repair_and_right_after_it(
    runs: dict[str, Transformers], sound: Path, expected: dict[str, Any], tmp_path: Path, fault: str
):
    broken = shutil.copytree(sound, tmp_path / "broken")
    FOLDER_FAULTS[fault](broken)
    if fault == "remote-code":
        for name, text in CODE_OF_2024.items():
            (broken / name).write_text(text)
    kind, what, words = SEEN.get(fault, ("ours", "", ""))
    before = runs[kind].ask(broken, trusts=fault == "remote-code")
    after = runs["ours"].ask(repaired(broken, tmp_path / "repaired"))
    print(f"{fault}: {shown(before)} -> {shown(after)}")
    assert after == expected
    if what == "error":
        assert words in before["error"]
    elif what == "nats":
        assert before["nats"] > expected["nats"] + 0.1
    elif what:
        assert before[what] != expected[what]
    else:
        assert before == expected


def shown(told: dict[str, Any]) -> str:
    if "error" in told:
        return f"error {' '.join(told['error'].split())[:160]!r}"
    return f"{told['nats']:.3f} nats, ids {told['ids'][2][:6]}, {told['answer']!r}"


def test_every_fault_of_a_folder_is_proved():
    assert {*SEEN, *UNSEEN, *OF_THEIR_OWN} == set(FOLDER_FAULTS)


def test_infinite_weights_answer_nothing(runs: dict[str, Transformers], sound: Path, tmp_path: Path):
    broken = shutil.copytree(sound, tmp_path / "broken")
    FOLDER_FAULTS["not-finite"](broken)
    told = runs["ours"].ask(broken)
    assert "error" in told or not math.isfinite(told["nats"])
    assert main(["doctor", str(broken)]) == 1


def test_transformers_makes_weights_up_where_only_another_file_says_that_they_are_quantized(
    runs: dict[str, Transformers], sound: Path, expected: dict[str, Any], tmp_path: Path
):
    """AutoGPTQ's names; after the repair transformers asks for the kernels that running them takes."""
    broken = shutil.copytree(sound, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        N, K = weights.pop(name).shape
        layer = name.removesuffix("weight")
        weights[f"{layer}qweight"] = np.zeros((K // 8, N), np.int32)
        weights[f"{layer}qzeros"] = np.zeros((K // 128, N // 8), np.int32)
        weights[f"{layer}scales"] = np.ones((K // 128, N), np.float16)
        weights[f"{layer}g_idx"] = (np.arange(K) // 128).astype(np.int32)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    FOLDER_FAULTS["unsaid-quantization"](broken)
    before = runs["ours"].ask(broken)
    assert before["nats"] > expected["nats"] + 3
    after = runs["ours"].ask(repaired(broken, tmp_path / "repaired"))
    assert "gptq" in after["error"].lower()


def test_a_llama_folder_reads_tokenizer_json_as_it_is(
    runs: dict[str, Transformers], real_tokenizer: Path, tmp_path: Path
):
    """The official tokenizer, whose blanks at the beginning of a text transformers 5 splits otherwise."""
    config = replace(WIDE, vocab_size=122753, hidden_size=32, intermediate_size=64)
    folder = write_model(tmp_path / "llama", config, random_weights(config, std=0.1))
    for file in real_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    spoil(folder, model_type="llama", architectures=["LlamaForCausalLM"], tie_word_embeddings=True)
    meant = Tokenizer.from_folder(real_tokenizer).encode_batch(TEXTS)
    before = runs["plain"].ask(folder)["ids"]
    assert before[:2] == meant[:2]
    assert before[2] != meant[2]
    assert runs["plain"].ask(repaired(folder, tmp_path / "repaired"))["ids"] == meant
