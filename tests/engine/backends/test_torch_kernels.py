"""The GPU's kernels on the CPU, by Triton's interpreter, against the plain operations; and their compilation for GPUs.

`make test-triton` brings Triton and runs these in a process of their own, as the interpreter has to be asked for before
Triton is imported. Where there is a GPU, and Triton came with torch, the same steps run on it, recorded.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from minicpm.engine.backend import Row
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import RopeScaling
from minicpm.quant.format import Int4Weight, Int8Weight, IntWeight
from small_models import EVEN, write_model

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from minicpm.engine.backends.torch import TorchBackend, decode  # noqa: E402
from minicpm.models.quantized import QuantizedLinear  # noqa: E402

torch.set_num_threads(1)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Of a result's largest value: sums in another order; rounding once where the plain operations round at every step.
TOLERANCES = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
# Heads whose sizes are powers of two; with and without grouped queries; more tokens than one program looks at.
SMALL = replace(
    EVEN, vocab_size=61, hidden_size=64, intermediate_size=40, dim_model_base=32, max_position_embeddings=1024
)
SHAPES = {
    "grouped": SMALL,
    "plain": replace(SMALL, num_key_value_heads=4, tie_word_embeddings=False),
    "dynamic": replace(SMALL, max_position_embeddings=64, rope_scaling=RopeScaling("dynamic", 16.0)),
}


IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted_only = pytest.mark.skipif(not IS_INTERPRETED, reason="needs Triton's interpreter: make test-triton")


@pytest.fixture
def kernels() -> ModuleType:
    from minicpm.engine.backends.torch import kernels

    return kernels


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer_of(kind: str, N: int, K: int, dtype: torch.dtype) -> nn.Module:
    if kind == "float":
        layer = nn.Linear(K, N, bias=False)
        layer.weight = nn.Parameter((random(N, K) / 16).to(dtype), requires_grad=False)
        return layer
    bits, group_size = (int(number) for number in kind.removeprefix("int").split("g"))
    weight_type: type[IntWeight] = {4: Int4Weight, 8: Int8Weight}[bits]
    generator = np.random.default_rng(N + K)
    codes = generator.integers(weight_type.low, weight_type.high + 1, (N, K)).astype(np.int8)
    scales = (generator.uniform(0.5, 1, (N, -(-K // group_size))) / 2**bits).astype(np.float16)
    return QuantizedLinear.of(weight_type.pack(codes, scales, group_size), torch.device("cpu"))


def norm_of(K: int, dtype: torch.dtype) -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(K, eps=1e-5)
    norm.weight = nn.Parameter((1 + random(K) / 4).to(dtype), requires_grad=False)
    return norm


KINDS = ("float", "int8g64", "int4g64", "int4g128", "int4g32")
USES = {
    "alone": {},
    "behind a norm": {"norm": True},
    "gated": {"norm": True, "is_gated": True},
    "beside a residual": {"factor": 0.22, "residual": True},
    "wide": {"norm": True, "factor": 0.11},
}


# Every use of every kind in float32, and the others where they differ: how a kind is read, what a use rounds.
PRODUCTS = [
    *((1, kind, use, "float32") for kind in KINDS for use in USES),
    *((1, kind, "gated", dtype) for kind in KINDS for dtype in ("float16", "bfloat16")),
    *((1, "float", use, "bfloat16") for use in ("beside a residual", "wide")),
    # The interpreter cannot multiply matrices in bfloat16.
    *((3, kind, use, dtype) for kind in KINDS for use in ("gated", "wide") for dtype in ("float32", "float16")),
]


@interpreted_only
@pytest.mark.parametrize(("M", "kind", "use", "dtype"), PRODUCTS)
def test_a_product_and_what_is_around_it_equal_the_plain_ones(kernels, M: int, kind: str, use: str, dtype: str):
    K, N = 200, 26  # neither a multiple of what a program takes
    x = random(M, K).to(DTYPES[dtype])
    layer = layer_of(kind, N, K, DTYPES[dtype])
    options = dict(USES[use])
    if options.get("norm"):
        options["norm"] = norm_of(K, DTYPES[dtype])
    if options.get("residual"):
        options["residual"] = random(M, N).to(DTYPES[dtype])
    found = kernels.project(x, layer, **options)
    expected = decode.project(x, layer, **options)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert (found - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max()


@interpreted_only
@pytest.mark.parametrize(("M", "is_kernel"), [(16, True), (64, True), (65, False)])
def test_many_rows_of_quantized_weights_are_one_product_up_to_a_limit(kernels, monkeypatch, M: int, is_kernel: bool):
    layer, x = layer_of("int4g64", 20, 130, torch.float32), random(M, 130)
    expected = layer(x)
    calls = []
    of_rows = kernels._product_of_rows
    monkeypatch.setattr(kernels, "_product_of_rows", lambda *args: calls.append(1) or of_rows(*args))
    assert (kernels.project(x, layer) - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert bool(calls) is is_kernel


@interpreted_only
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float"])
def test_weights_for_prompts_are_the_plain_ones_to_the_last_bit(kernels, kind: str):
    layer = layer_of(kind, 9, 200, torch.float32)
    for rows in (slice(None), slice(4, 7)):
        for dtype in (torch.float32, torch.float16):
            assert torch.equal(kernels.weights_of(layer, rows, dtype), layer.dequantize(rows, dtype))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    found = {name: write_model(home / name, config) for name, config in SHAPES.items()}
    for preset in ("int4", "int8"):
        found[preset] = home / preset
        quantize_folder(found["grouped"], found[preset], preset=preset)
    return found


def load(folder: Path, dtype: str = "float32", device: str = "cpu") -> TorchBackend:
    return TorchBackend(open_checkpoint(folder, allow_quantized=True), dtype=dtype, device=device)


def interpreted(kernels: ModuleType, backend: TorchBackend) -> TorchBackend:
    """The backend with its steps of single tokens made of kernels; run again where a GPU would replay."""
    from minicpm.engine.backends.torch.graphs import GraphedDecoder, why_not

    def again(compute):
        result = compute()
        return result, lambda: result.copy_(compute())

    assert why_not(backend._model) is None
    backend._decode = GraphedDecoder(backend._model, backend.config, again)
    return backend


def texts_of(lengths: list[int]) -> list[list[int]]:
    return [np.random.default_rng(length).integers(0, 61, length + 2).tolist() for length in lengths]


def said(backend: TorchBackend, lengths: list[int], rope_length: int):
    """Logits of two single tokens behind texts of so many, and the sequences: (texts, 2, vocab)."""
    texts = texts_of(lengths)
    sequences = [backend.new_sequence(rope_length) for _ in texts]
    backend.forward([Row(sequence, text[:-2], "none") for sequence, text in zip(sequences, texts)])
    steps = [backend.forward([Row(s, [text[i]]) for s, text in zip(sequences, texts)]) for i in (-2, -1)]
    return np.stack([np.concatenate(step) for step in steps], axis=1), sequences


# One row and several; texts that end within a program's positions, at their end, and behind them.
STEPS = [("grouped", [255]), ("grouped", [1, 70, 600]), ("int4", [5]), ("int8", [300])]
STEPS += [(name, [5, 300]) for name in ("plain", "dynamic", "int4", "int8")]


@interpreted_only
@pytest.mark.parametrize(("name", "lengths"), STEPS, ids=str)
def test_steps_equal_the_plain_ones_and_leave_the_same_keys_and_values(kernels, folders, name: str, lengths: list[int]):
    expected, plain = said(load(folders[name]), lengths, 700)
    found, sequences = said(interpreted(kernels, load(folders[name])), lengths, 700)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    for one, other in zip(sequences, plain):
        held = [s.memory[..., : s.length, :] for s in (one, other)]
        assert one.length == other.length
        assert (held[0] - held[1]).abs().max() < 2e-5 * held[1].abs().max()


@interpreted_only
def test_texts_with_other_rotary_bases_share_a_step(kernels, folders):
    backend = interpreted(kernels, load(folders["dynamic"]))
    text = texts_of([50])[0]
    sequences = [backend.new_sequence(length) for length in (64, 128, 1000)]
    backend.forward([Row(sequence, text[:-1], "none") for sequence in sequences])
    found = backend.forward([Row(sequence, text[-1:]) for sequence in sequences])
    for sequence, logits in zip(sequences, found):
        expected = backend.forward([Row(backend.new_sequence(sequence.rope_length), text)])[0]
        assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


@interpreted_only
def test_half_precision_differs_by_its_rounding(kernels, folders):
    exact, _ = said(load(folders["grouped"]), [40], 100)
    plain, _ = said(load(folders["grouped"], "float16"), [40], 100)
    found, _ = said(interpreted(kernels, load(folders["grouped"], "float16")), [40], 100)
    assert np.abs(found - exact).max() < 1.5 * np.abs(plain - exact).max()


@interpreted_only
def test_a_recorded_step_serves_sequences_wherever_they_lie(kernels, folders):
    backend = interpreted(kernels, load(folders["grouped"]))
    expected, _ = said(load(folders["grouped"]), [9, 30], 100)
    for _ in range(2):
        found, kept = said(backend, [9, 30], 100)
        assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
        kept[0].memory = kept[0].memory.clone()
    assert len(backend._decode._steps) == 1


@interpreted_only
def test_models_that_do_not_fit_the_kernels_say_why(folders, tmp_path: Path, kernels):
    from minicpm.engine.backends.torch.graphs import why_not

    odd = write_model(tmp_path / "odd", replace(SMALL, hidden_size=120, num_attention_heads=3, num_key_value_heads=1))
    assert "heads have 40 dimensions" in str(why_not(load(odd)._model))
    mixed = load(folders["grouped"])._model
    mixed.model.layers[0].mlp.up_proj = layer_of("int4g64", 40, 64, torch.float32)
    assert "quantized in different ways" in str(why_not(mixed))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: make test-triton")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_and_read_sixteen_bytes_at_once(capability: int):
    script = Path(__file__).with_name("compiling.py")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    reads = dict(line.split(": ") for line in done.stdout.splitlines())
    kinds = {name.split()[0] for name in reads}
    assert kinds == {f"_{kind}_kernel" for kind in ("product", "rows", "weights", "attention", "join")}
    of_one_row = {name for name in reads if name.startswith(("_product", "_attention"))}
    assert {name for name in of_one_row if "v4" in reads[name]} == of_one_row


@pytest.mark.skipif(IS_INTERPRETED or not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestGpu:
    @pytest.mark.parametrize(("name", "lengths"), STEPS, ids=str)
    def test_recorded_steps_equal_those_of_the_cpu(self, folders, name: str, lengths: list[int]):
        expected, _ = said(load(folders[name]), lengths, 700)
        backend = load(folders[name], device="cuda")
        assert type(backend._decode).__name__ == "GraphedDecoder"
        for _ in range(2):
            found, _ = said(backend, lengths, 700)
            assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
