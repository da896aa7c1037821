"""benchmarks/gpu on the CPU with small models: it runs, and its figures refer to the right things."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.quant.format import PRESETS, IntWeight, read_weight
from small_models import EVEN

pytest.importorskip("torch")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location("gpu_decode", BENCHMARKS / "gpu" / "decode.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_decode", module)
    specification.loader.exec_module(module)
    return module


def test_every_point_of_every_model_gets_a_row(decode: ModuleType, golden: Path, tmp_path: Path):
    quantize_folder(golden / "minicpm2b_tied", tmp_path / "int4")
    folders = {"bf16": golden / "minicpm2b_tied", "int4": tmp_path / "int4"}
    plan = decode.Plan(
        depths=(0, 20),
        batches=(2,),
        prompts=(32,),
        repeats=1,
        window_s=0.01,
        answer_tokens=4,
        peak_bytes=1 << 20,
        peak_side=64,
    )
    rows = list(decode.measured(folders, "cpu", plan))
    points = ["decode behind 0 tokens", "decode behind 20 tokens", "generate, greedy", "batch of 2", "prompt of 32"]
    for name in folders:
        ours = [row for row in rows if row.get("weights") == name and row.get("engine") == "minicpm"]
        assert [row["what"] for row in ours] == points
        assert [row["goal"] for row in ours] == [{"bf16": 82, "int4": 52}[name], "-", "-", "-", "-"]
        assert all(row["tokens_per_s"] > 0 and row["% of what the device can do"] > 0 for row in ours)
    theirs = [row["engine"] for row in rows if str(row.get("engine")).startswith("transformers")]
    assert theirs == ["transformers, as it comes", "transformers, static cache"]
    read = {row["weights"]: row["a step reads bytes"] for row in rows if "a step reads bytes" in row}
    with open_checkpoint(tmp_path / "int4", allow_quantized=True) as checkpoint:
        # All but the shapes, 16 bytes for each weight.
        assert read["int4"] == checkpoint.nbytes - 16 * len(checkpoint.packings)


def test_the_floor_is_the_bytes_of_a_step_over_the_bandwidth(decode: ModuleType, golden: Path, monkeypatch):
    folder = golden / "minicpm2b_tied"
    plan = decode.Plan((10,), (4,), (), repeats=1, answer_tokens=2)
    monkeypatch.setattr(decode.Work, "decode", lambda self, depth, window_s: 50.0)
    monkeypatch.setattr(decode.Work, "batch", lambda self, sequences, window_s: 200.0)
    rows = list(decode.rows_of("bf16", folder, "cpu", plan, decode.Peaks(1e9, 1e12)))
    with open_checkpoint(folder) as checkpoint:
        config, weight_bytes = checkpoint.config, checkpoint.nbytes
    cache_bytes = 4 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    found = {row["what"]: row.get("% of what the device can do") for row in rows}
    assert found["decode behind 10 tokens"] == round(100 * 50 * (weight_bytes + 10 * cache_bytes) / 1e9, 1)
    assert found["batch of 4"] == round(100 * 50 * weight_bytes / 1e9, 1)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_of_random_codes_is_one_of_its_preset(decode: ModuleType, tmp_path: Path, monkeypatch, preset: str):
    import make_model

    (tmp_path / "configs" / "tiny").mkdir(parents=True)
    (tmp_path / "tokenizer" / "MiniCPM-2B").mkdir(parents=True)
    config = replace(EVEN, dtype="bfloat16", tie_word_embeddings=False)
    (tmp_path / "configs" / "tiny" / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr(make_model, "DATA", tmp_path)
    make_model.make_model(tmp_path / "model", "tiny", preset=preset)
    with open_checkpoint(tmp_path / "model", allow_quantized=True) as checkpoint:
        outer = {"model.embed_tokens.weight", "lm_head.weight"}
        assert outer <= set(checkpoint.packings) or (preset == "int4-hf" and not outer & set(checkpoint.packings))
        weight = read_weight(checkpoint, "model.layers.1.mlp.gate_proj.weight")
        assert isinstance(weight, IntWeight)
        assert (weight.bits, weight.group_size) == (PRESETS[preset].linear.bits, PRESETS[preset].linear.group_size)
        # As make_model's own weights: what keeps the size of an input.
        assert np.isclose(weight.dequantize().std(), 256**-0.5, rtol=0.05)


def test_without_a_gpu_it_says_so():
    script = BENCHMARKS / "gpu" / "decode.py"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "torch sees no NVIDIA GPU here" in done.stderr
