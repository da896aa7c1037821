"""Files that llama.cpp rounds itself, read by us: what INT8 makes of its types, in logits. `make test-peers`."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest

from environments import ROOT, needing, python_of
from minicpm.engine.backend import Row
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.export.gguf import write_gguf
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.gguf_model import rows_to_store, stored_name
from minicpm.hub import embedded
from minicpm.quant.format import IntWeight, read_weight
from minicpm.quant.quality import Comparison
from small_models import write_model

PYTHON = python_of("llamacpp")

pytestmark = needing("llamacpp", "llama.cpp")

# llama_ftype of presets; docs/formats.md has the table. A preset names its main type only: a file of Q2_K holds Q3_K,
# Q4_K, Q4_0 and a Q6_K embedding, too.
PRESETS = {
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
}
# In nats a token.
LARGEST_KL = 2e-4


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniCPM-nano's weights as float32 numbers, a folder."""
    folder = tmp_path_factory.mktemp("nano") / "float"
    with open_checkpoint(embedded.folder(), allow_quantized=True) as checkpoint:
        weights = {name: floats(read_weight(checkpoint, name)) for name in checkpoint.config.parameter_shapes()}
        write_model(folder, checkpoint.config, weights)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((embedded.folder() / name).read_bytes())
    write_gguf(folder, folder.parent / "nano.gguf", dtype="float32")
    return folder


@pytest.fixture(scope="module")
def ids(nano: Path) -> list[list[int]]:
    lines = (ROOT / "nano" / "held-out.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    with open_checkpoint(nano) as checkpoint:
        tokenizer = checkpoint.tokenizer()
        return [tokenizer.encode(text_of(json.loads(line)), add_bos=True)[:160] for line in lines]


def text_of(record: dict[str, object]) -> str:
    messages = record.get("messages")
    if isinstance(messages, list):
        return "".join(message["content"] for message in messages)
    return str(record["text"])


def floats(weight: object) -> np.ndarray:
    return weight.dequantize() if isinstance(weight, IntWeight) else weight.float32().copy()  # type: ignore[attr-defined]


def logits(folder: Path, ids: list[list[int]]) -> list[np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        backend = NumpyBackend(checkpoint)
        return [backend.forward([Row(backend.new_sequence(len(row)), row, "all")])[0] for row in ids]


def compared(reference: list[np.ndarray], found: list[np.ndarray], ids: list[list[int]]) -> Comparison:
    comparison = Comparison()
    for one, other, row in zip(reference, found, ids):
        comparison.add(one[:-1], other[:-1], np.array(row[1:]))
    return comparison


def meant(path: Path, config: DecoderConfig) -> dict[str, np.ndarray]:
    """The file's weights by published name, widened by the package gguf."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights = {}
    for name, shape in config.parameter_shapes().items():
        tensor = stored[stored_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        order = rows_to_store(config, name)
        weights[name] = values if order is None else values[np.argsort(order)]
    return weights


@pytest.mark.parametrize("preset", PRESETS)
def test_what_reading_a_file_as_int8_costs_is_next_to_nothing(
    nano: Path, ids: list[list[int]], tmp_path: Path, preset: str
):
    path = tmp_path / "model.gguf"
    script = Path(__file__).with_name("llamacpp_quantizes.py")
    command = [PYTHON, script, nano.parent / "nano.gguf", path, str(PRESETS[preset])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        read = {name: floats(read_weight(checkpoint, name)) for name in checkpoint.config.parameter_shapes()}
        config = checkpoint.config.with_dtype("float32")
    expected = logits(write_model(tmp_path / "meant", config, meant(path, config)), ids)
    by_reading = compared(expected, logits(write_model(tmp_path / "read", config, read), ids), ids)
    by_rounding = compared(logits(nano, ids), expected, ids)
    types = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors)
    print(
        f"{preset}: {dict(types)}; {by_reading.tokens} tokens, KL of the file {by_rounding.kl:.2e}, of reading it "
        f"{by_reading.kl:.2e} (largest {by_reading.max_kl:.1e}), same first choice {by_reading.top1_agreement:.4f}"
    )
    assert by_reading.kl < LARGEST_KL
