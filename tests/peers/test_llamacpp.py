"""Our GGUF files in real llama.cpp: the same ids, the same logits, all three muP scales obeyed. `make test-peers`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from environments import needing, python_of
from minicpm.engine.backend import Row
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.engine.llm import LLM
from minicpm.export.gguf import write_gguf
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded
from minicpm.quant.format import IntWeight, read_weight
from small_models import WIDE, random_weights, write_model

PYTHON = python_of("llamacpp")

pytestmark = needing("llamacpp", "llama.cpp")

TEXTS = (
    "Which city is the capital of China?",
    "你好，世界！今天天气怎么样？",
    "<用户>Tell me a story about a mouse.<AI>",
    "<用户>讲个故事<AI>好的。</s><用户>再讲一个<AI>",
    "</s> a  b <unk> <s>",
    "  two spaces, a tab\tand\n\n\nlines  ",
    "def f(x):\n\treturn x ** 2 + 12345  # éàü ñ ß",
    "𝔘 🙂👩‍👩‍👧 \u0000 \ufffd ﷽ 한국어 русский",
    "x",
    " ",
)
PROMPTS = TEXTS[:4]


@dataclass(frozen=True)
class Answers:
    ids: list[list[int]]  # of every text
    logits: list[np.ndarray]  # (tokens, vocabulary) of every row of ids


def llamacpp(
    file: Path, *, texts: Sequence[str] = (), ids: Sequence[Sequence[int]] = (), keeps_float32: bool = True
) -> Answers:
    """Keys and values in float32 and no flash attention, unless what users run is asked for."""
    out = file.with_suffix(".npz")
    request = {
        "file": str(file),
        "texts": list(texts),
        "ids": [list(row) for row in ids],
        "out": str(out),
        "keeps_float32": keeps_float32,
    }
    script = Path(__file__).with_name("llamacpp_answers.py")
    done = subprocess.run(
        [PYTHON, script], input=json.dumps(request), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as saved:
        return Answers(json.loads(done.stdout), [saved[str(index)] for index in range(len(ids))])


def ours(folder: Path, ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The same of the numpy engine: float32, or the arithmetic of INT4."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        backend = NumpyBackend(checkpoint)
        return [backend.forward([Row(backend.new_sequence(len(row)), row, "all")])[0] for row in ids]


def largest_difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other))


@pytest.fixture(scope="module")
def nano_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniCPM-nano's INT4 weights as float32 numbers, a plain folder."""
    folder = tmp_path_factory.mktemp("nano") / "float"
    with open_checkpoint(embedded.folder(), allow_quantized=True) as checkpoint:
        weights = {}
        for name in checkpoint.config.parameter_shapes():
            weight = read_weight(checkpoint, name)
            weights[name] = weight.dequantize() if isinstance(weight, IntWeight) else weight.float32().copy()
        write_model(folder, checkpoint.config, weights)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((embedded.folder() / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def prompt_ids() -> list[list[int]]:
    tokenizer = LLM(backend="numpy").tokenizer
    return [tokenizer.encode(text, add_bos=True) for text in PROMPTS]


# --- texts -------------------------------------------------------------------------------------------------------


def test_nanos_file_gives_texts_the_ids_they_have_here(tmp_path: Path):
    write_gguf(embedded.folder(), tmp_path / "nano.gguf")
    tokenizer = LLM(backend="numpy").tokenizer
    found = llamacpp(tmp_path / "nano.gguf", texts=TEXTS).ids
    assert dict(zip(TEXTS, found)) == {text: tokenizer.encode(text, add_bos=True) for text in TEXTS}


def test_the_official_tokenizer_gives_the_same_ids_from_a_gguf_file(real_tokenizer: Path, tmp_path: Path):
    config = replace(WIDE, vocab_size=122753, hidden_size=32, intermediate_size=64)
    folder = write_model(tmp_path / "source", config, random_weights(config, std=0.1))
    for file in real_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_gguf(folder, tmp_path / "model.gguf", dtype="float16")
    with open_checkpoint(folder) as checkpoint:
        tokenizer = checkpoint.tokenizer()
    found = llamacpp(tmp_path / "model.gguf", texts=TEXTS).ids
    assert dict(zip(TEXTS, found)) == {text: tokenizer.encode(text, add_bos=True) for text in TEXTS}


# --- logits ------------------------------------------------------------------------------------------------------

# Twice the largest differences found on nano, whose logits reach from -10 to 17. float32 differs by the order of sums;
# in the others llama.cpp rounds the activations like the weights, to 16 bits or, beside Q8_0, to 8.
BOUNDS = {"float32": 1e-4, "float16": 0.015, "bfloat16": 0.14, "q8_0": 0.5}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_llama_cpp_computes_our_logits(nano_float: Path, prompt_ids: list[list[int]], tmp_path: Path, dtype: str):
    write_gguf(nano_float, tmp_path / "nano.gguf", dtype=dtype)
    expected, found = ours(nano_float, prompt_ids), llamacpp(tmp_path / "nano.gguf", ids=prompt_ids).logits
    assert largest_difference(found, expected) < BOUNDS[dtype]


@pytest.mark.parametrize("source", ["minicpm2b_tied", "minicpm2b_untied_sharded"])
def test_llama_cpp_computes_the_logits_of_the_golden_models(golden: Path, tmp_path: Path, source: str):
    ids = [[1, *range(300, 340)]]
    folder = tmp_path / "source"
    folder.mkdir()
    for file in [*(golden / "minicpm2b_tied").glob("tokenizer*"), *(golden / source).glob("*")]:
        (folder / file.name).write_bytes(file.read_bytes())
    write_gguf(folder, tmp_path / "model.gguf", dtype="float32")
    assert largest_difference(llamacpp(tmp_path / "model.gguf", ids=ids).logits, ours(folder, ids)) < 1e-4


# Twice what rounding activations to 8 bits does to nano's logits: in groups of 32 (llama.cpp) 0.19, of 64 (ours) 0.25.
INT4_TOLERANCE = 0.5


def test_the_int4_codes_as_they_are_give_llama_cpp_our_tokens(
    nano_float: Path, prompt_ids: list[list[int]], tmp_path: Path
):
    """The margin rule: wherever exact arithmetic is sure by more than twice the tolerance, all take its token."""
    write_gguf(embedded.folder(), tmp_path / "nano.gguf")
    exact = np.concatenate(ours(nano_float, prompt_ids))
    theirs = np.concatenate(llamacpp(tmp_path / "nano.gguf", ids=prompt_ids, keeps_float32=False).logits)
    native = np.concatenate(ours(embedded.folder(), prompt_ids))
    top = np.sort(exact, axis=1)[:, -2:]
    is_sure = top[:, 1] - top[:, 0] > 2 * INT4_TOLERANCE
    for found in (theirs, native):
        assert np.abs(found - exact).max() < INT4_TOLERANCE
        assert np.array_equal(found.argmax(1)[is_sure], exact.argmax(1)[is_sure])
    assert is_sure.mean() > 0.4


# --- muP scales --------------------------------------------------------------------------------------------------

SCALES = {"scale_emb": 3.0, "scale_depth": 0.5, "dim_model_base": 16}


@pytest.mark.parametrize("key", SCALES)
def test_every_mup_scale_takes_effect_in_llama_cpp(golden: Path, tmp_path: Path, key: str):
    ids = [[1, *range(300, 330)]]
    plain = replace(WIDE, vocab_size=1000)
    changed = replace(plain, **{key: SCALES[key]})
    weights = random_weights(plain, std=0.1)
    logits = {}
    for name, config in (("plain", plain), ("changed", changed)):
        folder = with_tokenizer(write_model(tmp_path / name, config, weights), golden)
        write_gguf(folder, tmp_path / f"{name}.gguf", dtype="float32")
        logits[name] = ours(folder, ids), llamacpp(tmp_path / f"{name}.gguf", ids=ids).logits
    expected, found = logits["changed"]
    scale = float(np.abs(expected[0]).max())
    assert largest_difference(found, expected) < 1e-5 * scale
    assert largest_difference(found, logits["plain"][1]) > 0.05 * scale


def with_tokenizer(folder: Path, golden: Path) -> Path:
    for file in (golden / "minicpm2b_tied").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
