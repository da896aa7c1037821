"""The numpy engine: equal to the original code in float32; deterministic to the last bit in int4 and int8."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from minicpm import LLM, SamplingParams
from minicpm.engine.backend import Row
from minicpm.engine.backends import arithmetic
from minicpm.engine.backends import numpy as engine
from minicpm.engine.backends import numpy_attention as attention
from minicpm.engine.backends.numpy import IntLinear, NumpyBackend
from minicpm.engine.backends.numpy_attention import NumpySequence
from minicpm.errors import GenerationError
from minicpm.export.convert import convert
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.tensor import TensorView
from minicpm.quant.format import PRESETS, WEIGHT_TYPES, IntWeight, read_weight
from small_models import EVEN, ODD, write_model

GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, ignore_eos=True)
INT8 = attention.attention_kind("int8", 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Quantized models by a name that tells shape and preset."""
    root = tmp_path_factory.mktemp("numpy")
    sources = {
        "odd": write_model(root / "odd", ODD),
        "even": write_model(root / "even", EVEN),
        "spiky": write_model(root / "spiky", EVEN, outliers=100.0),
    }
    found = dict(sources)
    for shape, source in sources.items():
        for preset in PRESETS:
            if (
                shape == "even"
                or (shape == "odd" and preset in ("int4", "int8"))
                or (shape, preset) == ("spiky", "int4")
            ):
                quantize_folder(source, root / f"{shape}-{preset}", preset=preset)
                found[f"{shape}-{preset}"] = root / f"{shape}-{preset}"
    return found


INTEGER = ("odd-int4", "odd-int8", "spiky-int4", *(f"even-{preset}" for preset in PRESETS))


@pytest.fixture(scope="module")
def backends(folders: dict[str, Path]) -> dict[str, NumpyBackend]:
    return {name: load(folders[name]) for name in folders}


def load(folder: Path) -> NumpyBackend:
    return NumpyBackend(open_checkpoint(folder, allow_quantized=True))


def logits(backend: NumpyBackend, ids: list[int], chunks: list[int] | None = None) -> np.ndarray:
    """(T, vocab) of one sequence computed in chunks of the given sizes."""
    sequence = backend.new_sequence(len(ids))
    parts, start = [], 0
    for size in chunks or [len(ids)]:
        parts.append(backend.forward([Row(sequence, ids[start : start + size], "all")])[0])
        start += size
    return np.concatenate(parts)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype == np.float32 and np.array_equal(one.view(np.uint32), other.view(np.uint32))


# --- float32 mode against the code of 2024 -----------------------------------------------------------------------


class TestFloat32:
    @pytest.mark.proves("whole models", isa="numpy")
    @pytest.mark.parametrize("name", ["minicpm2b_tied", "minicpm2b_untied_sharded"])
    def test_logits_equal_the_original_code(self, golden: Path, name: str):
        backend = load(golden / name)
        reference = load_file(golden / name / "golden.safetensors")
        for ids, expected in zip(reference["input_ids"], reference["logits"]):
            assert np.abs(logits(backend, ids.tolist()) - expected).max() < 1e-4
            assert np.abs(logits(backend, ids.tolist(), [1] * len(ids)) - expected).max() < 1e-4

    def test_greedy_ids_equal_the_original_code(self, golden: Path):
        llm = LLM(golden / "minicpm2b_tied", backend="numpy")
        reference = load_file(golden / "minicpm2b_tied" / "golden.safetensors")
        prompt = reference["gen.prompt_ids"][0].tolist()
        completion = llm.generate([prompt], GREEDY, max_tokens=32)[0]
        assert prompt + list(completion.ids) == reference["gen.sequences"][0].tolist()

    def test_bfloat16_weights_give_the_original_codes_logits(self, golden: Path):
        folder = golden / "minicpm2b_tied_bf16_bin"
        reference = load_file(next(folder.glob("golden*.safetensors")))
        backend = load(folder)
        for row, expected in zip(reference["input_ids"], reference["logits_fp32_compute"]):
            assert np.abs(logits(backend, row.tolist()) - expected).max() < 1e-4

    @pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 4.0}])
    def test_stretched_contexts_equal_the_torch_model(self, tmp_path: Path, scaling: dict[str, object]):
        pytest.importorskip("torch")
        from minicpm.engine.backends.torch import TorchBackend

        config = DecoderConfig.from_dict({**EVEN.to_dict(), "rope_scaling": scaling, "max_position_embeddings": 32})
        folder = write_model(tmp_path / "model", config)
        ids = np.random.default_rng(0).integers(0, 203, 50).tolist()
        expected = TorchBackend(open_checkpoint(folder), device="cpu")
        found = load(folder)
        for length in (50, 100):
            rows = [Row(backend.new_sequence(length), ids, "all") for backend in (found, expected)]
            difference = found.forward(rows[:1])[0] - expected.forward(rows[1:])[0]
            assert np.abs(difference).max() < 1e-4


# --- the same bits -----------------------------------------------------------------------------------------------


@pytest.mark.proves("any threads and chunks", isa="numpy")
@pytest.mark.parametrize("name", INTEGER)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_chunks_and_single_tokens_give_the_bits_of_one_prefill(backends, name: str, data: st.DataObject):
    T = data.draw(st.integers(1, 70))
    ids = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 203, T).tolist()
    whole = logits(backends[name], ids)
    sizes: list[int] = []
    while sum(sizes) < T:
        sizes.append(data.draw(st.integers(1, T - sum(sizes))))
    assert same_bits(logits(backends[name], ids, sizes), whole)


@pytest.mark.parametrize("name", INTEGER)
def test_decoding_one_by_one_equals_one_prefill(backends, name: str):
    ids = np.random.default_rng(1).integers(0, 203, 37).tolist()
    assert same_bits(logits(backends[name], ids, [1] * 37), logits(backends[name], ids))


@pytest.mark.proves("any threads and chunks", isa="numpy")
@pytest.mark.parametrize("name", INTEGER)
def test_a_ragged_batch_gives_the_bits_of_each_text_alone(backends, name: str):
    backend, random = backends[name], np.random.default_rng(2)
    texts = [random.integers(0, 203, size).tolist() for size in (1, 33, 16, 5)]
    alone = [logits(backend, ids) for ids in texts]
    sequences = [backend.new_sequence(64) for _ in texts]
    first = backend.forward([Row(s, ids[:1], "none") for s, ids in zip(sequences, texts)])
    assert all(part.shape == (0, 203) for part in first)
    rest = [(s, ids, whole) for s, ids, whole in zip(sequences, texts, alone) if len(ids) > 1]
    for found, (_, _, whole) in zip(backend.forward([Row(s, ids[1:], "all") for s, ids, _ in rest]), rest):
        assert same_bits(found, whole[1:])


@pytest.mark.parametrize("name", INTEGER)
def test_forgetting_tokens_leaves_no_trace(backends, name: str):
    backend, ids = backends[name], np.random.default_rng(3).integers(0, 203, 30).tolist()
    sequence = backend.new_sequence(30)
    backend.forward([Row(sequence, [*ids[:11], 5, 6, 7, 8, 9, 10, 11, 12, 13], "none")])
    sequence.truncate(11)
    found = backend.forward([Row(sequence, ids[11:], "all")])[0]
    assert same_bits(found, logits(backend, ids)[11:])


@pytest.mark.parametrize("name", INTEGER)
def test_weights_expanded_at_every_call_give_the_same_bits(folders, backends, name: str, monkeypatch):
    monkeypatch.setattr(engine, "MAX_KEPT_BYTES", 0)
    monkeypatch.setattr(engine, "BLOCK_ELEMENTS", 5000)
    ids = list(range(40))
    assert same_bits(logits(load(folders[name]), ids), logits(backends[name], ids))


def test_text_is_the_same_alone_and_in_a_batch(golden: Path, tmp_path: Path):
    quantize_folder(golden / "minicpm2b_tied", tmp_path / "int4")
    llm = LLM(tmp_path / "int4", backend="numpy")
    params = SamplingParams(seed=11, max_tokens=12, ignore_eos=True)
    prompts = ["Which city", "山东省最高的山", "a", "def f(x):"]
    alone = [llm.generate(prompt, params)[0].text for prompt in prompts]
    assert [completion.text for completion in llm.generate(prompts, params)] == alone


# --- the arithmetic against exact whole numbers and other definitions -------------------------------------------


@pytest.mark.parametrize(
    "bits", [pytest.param(b, marks=pytest.mark.proves(f"int{b} products", isa="numpy")) for b in (4, 8)]
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("G", [64, 128])
def test_worst_case_sums_are_exact(bits: int, sign: int, G: int):
    kind = WEIGHT_TYPES[bits]
    codes = np.full((3, 2 * G), kind.low, np.int8)
    scales = np.full((3, 2), 0.5, np.float16)
    x = np.full((2, 2 * G), sign * 127, np.float32)
    sums = int(codes[0].astype(np.int64)[:G].sum()) * sign * 127
    assert abs(sums) < 2**24
    assert np.array_equal(IntLinear([kind.pack(codes, scales, G)], True)(x), np.full((2, 3), sums, np.float32))


@pytest.mark.proves("int4 products", "int8 products", isa="numpy")
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    K=st.integers(1, 300),
    G=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    magnitude=st.sampled_from([1e-38, 1e-31, 1e-3, 1.0, 1e30]),
)
def test_a_linear_layer_is_the_documented_loop(seed: int, K: int, G: int, bits: int, magnitude: float):
    """docs/numerics.md section 3, one scalar operation after the other."""
    random, f32 = np.random.default_rng(seed), np.float32
    kind = WEIGHT_TYPES[bits]
    codes = random.integers(kind.low, kind.high + 1, (2, K)).astype(np.int8)
    scales = random.uniform(1e-3, 2, (2, -(-K // G))).astype(np.float16)
    x = (random.standard_normal(K) * magnitude).astype(np.float32)
    found = IntLinear([kind.pack(codes, scales, G)], True)(x[None])[0]
    for n in range(2):
        y = f32(0)
        for g in range(-(-K // G)):
            part = slice(g * G, (g + 1) * G)
            m = np.abs(x[part]).max()
            if m < f32(2.0**-100):
                continue
            a = np.rint(x[part] * (f32(127) / m)).astype(np.int64)
            assert np.abs(a).max() == 127
            S = int((a * codes[n, part]).sum())
            y = y + (f32(S) * f32(scales[n, g])) * (m / f32(127))
        assert found[n] == y


@pytest.mark.proves("float weights", isa="numpy")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("K", [1, 31, 32, 33, 100])
def test_a_linear_layer_of_floats_is_the_documented_loop(dtype: str, K: int):
    """docs/numerics.md section 3: lane by lane, of bfloat16 the second of every pair first."""
    random, f32 = np.random.default_rng(K), np.float32
    weights = TensorView.from_float32("w", random.standard_normal((2, K)).astype(np.float32), dtype)
    x = random.standard_normal(K).astype(np.float32)
    found = engine.LaneLinear(weights)(x[None])[0]
    if dtype == "bfloat16":
        x = TensorView.from_float32("x", x, "bfloat16").float32()
        order = [(j, j // 2 % 16) for pair in range(0, K + K % 2, 2) for j in (pair + 1, pair)]
    else:
        order = [(j, j % 16) for j in range(K)]
    for n, row in enumerate(weights.float32()):
        lanes = [f32(0)] * 16
        for k, lane in order:
            if k < K:
                lanes[lane] = lanes[lane] + x[k] * row[k]
        for half in (8, 4, 2, 1):
            lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        assert found[n] == lanes[0]


def test_lane_sums_are_the_documented_loop():
    for K in (1, 15, 16, 17, 144, 300):
        x = np.random.default_rng(K).standard_normal(K).astype(np.float32)
        lanes = [np.float32(0)] * 16
        for k in range(K):
            lanes[k % 16] = lanes[k % 16] + x[k]
        for half in (8, 4, 2, 1):
            lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        assert arithmetic.lane_sum(x) == lanes[0]
        assert same_bits(arithmetic.lane_sum(np.stack([x, x])), np.full(2, lanes[0]))


def test_exp_is_near_the_true_one_everywhere():
    x = np.linspace(-87, 88, 400_001, dtype=np.float32)
    relative = arithmetic.exp(x) / np.exp(x.astype(np.float64)) - 1
    assert np.abs(relative).max() < 1.2e-7
    ends = arithmetic.exp(np.array([0, -0.0, -np.inf, -87.01, 1000, np.inf], np.float32))
    assert ends.tolist() == [1, 1, 0, 0, ends[4], ends[4]]
    assert np.isfinite(ends).all()
    assert np.isnan(arithmetic.exp(np.array([np.nan], np.float32)))[0]


def test_silu_is_near_the_true_one_for_any_number():
    x = np.array([-1e30, -100, -88, -1, 0, 1, 100, 3e38], np.float32)
    found = arithmetic.silu(x)
    expected = [value / (1 + math.exp(min(-value, 700))) for value in x.tolist()]
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_the_rotary_table_is_the_rounded_true_one():
    import decimal

    cos, sin = attention.rope_table(10000.0, 64, 1.0, 4096)
    for position in (0, 1, 2, 3, 100, 4095):
        for i in (0, 1, 17, 31):
            angle = position * float(decimal.Decimal(10000) ** (decimal.Decimal(-2 * i) / 64))
            assert abs(cos[position, i] - math.cos(angle)) <= 2.0**-25 + 1e-12
            assert abs(sin[position, i] - math.sin(angle)) <= 2.0**-25 + 1e-12
    long, _ = attention.rope_table(10000.0, 64, 1.0, 1 << 17)
    assert same_bits(long[:4096], cos)
    assert np.abs(long[-1, 0] - math.cos((1 << 17) - 1)) < 1e-7


@pytest.mark.parametrize("magnitude", [0.0, 1e-40, 1e-7, 1e-3, 1.0, 1e6, 1e30])
def test_keys_are_stored_within_half_a_step(magnitude: float):
    x = (np.random.default_rng(0).standard_normal((7, 2, 40)) * magnitude).astype(np.float32)
    codes, scales = attention.quantize_heads(x)
    assert codes.shape == (7, 2, 2, 32)
    assert int(codes.min()) >= -127
    assert np.isfinite(scales).all()
    found = (codes.astype(np.float32) * scales.astype(np.float32)[..., None]).reshape(7, 2, 64)[..., :40]
    steps = np.repeat(scales.astype(np.float32), 32, axis=2)[..., :40]
    if 1e-3 <= magnitude <= 1e6:
        assert (np.abs(found - x) <= steps * np.float32(0.5 + 127 * 2**-11)).all()


@pytest.mark.proves("attention", isa="numpy")
@pytest.mark.parametrize("T, D", [(1, 64), (40, 64), (35, 40), (17, 16)])
def test_attention_is_the_documented_loop(T: int, D: int):
    """docs/numerics.md sections 7 and 8, one token after the other, for the last query of one head."""
    random, f32 = np.random.default_rng(T), np.float32
    config = DecoderConfig(hidden_size=D, num_attention_heads=1, num_hidden_layers=1)
    sequence = NumpySequence(config, T, INT8)
    queries, keys, values = (random.standard_normal((T, 1, D)).astype(np.float32) * 3 for _ in range(3))
    sequence.append(0, keys, values)
    found = attention.attend(queries, sequence, 0, INT8)[-1, 0]
    (k, dk), (v, dv) = (
        (codes[:, 0].astype(np.int64), scales[:, 0].astype(np.float32))
        for codes, scales in map(attention.quantize_heads, (keys, values))
    )
    E = k.shape[1]
    q = np.pad(queries[-1, 0], (0, 32 * E - D)).reshape(E, 32)
    scores = []
    for t in range(T):
        score = f32(0)
        for j in range(E):
            m = np.abs(q[j]).max()
            S = int((np.rint(q[j] * (f32(127) / m)).astype(np.int64) * k[t, j]).sum())
            score = score + (f32(S) * dk[t, j]) * (m / f32(127))
        scores.append(score)
    M, total, norm = f32(-np.inf), np.zeros(32 * E, np.float32), f32(0)
    for first in range(0, T, 16):
        tokens = range(first, min(T, first + 16))
        new = max(M, *(scores[t] for t in tokens))
        p = [arithmetic.exp(np.array(scores[t] - new))[()] for t in tokens]
        B = np.zeros(32 * E, np.float32)
        for j in range(E):
            w = np.array([weight * dv[t, j] for t, weight in zip(tokens, p)], np.float32)
            a = np.rint(w * (f32(127) / w.max())).astype(np.int64)
            s = arithmetic.lane_sum(w) / f32(a.sum())
            B[32 * j : 32 * j + 32] = (a @ v[first : first + 16, j]).astype(np.float32) * s
        alpha = arithmetic.exp(np.array(M - new))[()]
        total = total * alpha + B
        norm = norm * alpha + arithmetic.lane_sum(np.array(p, np.float32))
        M = new
    assert same_bits(found, (total / norm)[:D])


@pytest.mark.proves("bfloat16 cache", isa="numpy")
@pytest.mark.parametrize("T, D", [(1, 64), (40, 64), (35, 40)])
def test_attention_over_bfloat16_is_the_documented_loop(T: int, D: int):
    random, f32 = np.random.default_rng(T), np.float32
    config = DecoderConfig(hidden_size=D, num_attention_heads=1, num_hidden_layers=1)
    kind = attention.attention_kind("bfloat16", D)
    sequence = NumpySequence(config, T, kind)
    queries, keys, values = (random.standard_normal((T, 1, D)).astype(np.float32) * 3 for _ in range(3))
    sequence.append(0, keys, values)
    found = attention.attend(queries, sequence, 0, kind)[-1, 0]
    torch = pytest.importorskip("torch")
    k, v = (torch.from_numpy(x[:, 0]).bfloat16().float().numpy() for x in (keys, values))
    M, total, norm = f32(-np.inf), np.zeros(D, np.float32), f32(0)
    for first in range(0, T, 16):
        tokens = range(first, min(T, first + 16))
        scores = {}
        for t in tokens:
            scores[t] = f32(0)
            for i in range(D):
                scores[t] = scores[t] + queries[-1, 0, i] * k[t, i]
        new = max(M, *scores.values())
        p = {t: arithmetic.exp(np.array(score - new))[()] for t, score in scores.items()}
        B = np.zeros(D, np.float32)
        for t in tokens:
            B = B + p[t] * v[t]
        alpha = arithmetic.exp(np.array(M - new))[()]
        total = total * alpha + B
        norm = norm * alpha + arithmetic.lane_sum(np.array([*p.values()], np.float32))
        M = new
    assert same_bits(found, total / norm)


def test_rms_norm_is_the_documented_formula():
    random, f32 = np.random.default_rng(0), np.float32
    h, weight = random.standard_normal((2, 5, 144)).astype(np.float32)
    r = f32(1) / np.sqrt(arithmetic.lane_sum(h[0] * h[0]) / f32(144) + f32(1e-5))
    assert same_bits(arithmetic.rms_norm(h, weight[0], 1e-5)[0], (h[0] * r) * weight[0])


def test_attention_over_equal_values_is_that_value():
    """Weights sum to one whatever the scores are, over many blocks."""
    sequence = NumpySequence(EVEN, 100, INT8)
    random = np.random.default_rng(0)
    keys = random.standard_normal((53, 2, 64)).astype(np.float32) * 30
    values = np.broadcast_to(random.standard_normal((1, 2, 64)).astype(np.float32), keys.shape)
    sequence.append(0, keys, values)
    out = attention.attend(random.standard_normal((53, 4, 64)).astype(np.float32), sequence, 0, INT8)
    codes, scales = attention.quantize_heads(values[:1])
    stored = (codes * scales.astype(np.float32)[..., None]).reshape(2, 64)
    assert np.abs(out - np.repeat(stored, 2, axis=0)[None]).max() < 2e-6 * np.abs(stored).max()


# --- against the torch model on the dequantized weights ----------------------------------------------------------


def rounded_by_group(x, group_size: int):
    """torch (..., K) rounded to 127 steps of each group's largest magnitude, in float64."""
    import torch

    padded = torch.nn.functional.pad(x.double(), (0, -x.shape[-1] % group_size))
    groups = padded.unflatten(-1, (-1, group_size))
    steps = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / steps).round() * steps).flatten(-2)[..., : x.shape[-1]].to(x.dtype)


def int8_attention(module, query, key, value, attention_mask, *, scaling, **kwargs):
    import torch

    query, key, value = (rounded_by_group(x, 32) for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2), None


@pytest.mark.proves("whole models", isa="numpy")
@pytest.mark.parametrize("name", [name for name in INTEGER if not name.startswith("spiky")])
def test_logits_differ_from_torch_on_dequantized_weights_no_more_than_activation_rounding_does(
    folders: dict[str, Path], backends, tmp_path: Path, name: str
):
    """The bound is measured: torch on the dequantized weights against itself with the inputs of its linears, queries,
    keys and values rounded to int8. The engine's own distance to torch may be 15 % larger (found: up to 4 %). The two
    rounded models agree no better than that with each other, as a value that falls on the other side of a rounding
    border moves the next ones over theirs; operation by operation the tests above compare bits.
    """
    pytest.importorskip("torch")
    import torch
    from transformers import AttentionInterface

    from minicpm.models import load_model

    AttentionInterface.register("int8_reference", int8_attention)
    folder = tmp_path / "dense"
    folder.mkdir()
    with open_checkpoint(folders[name], allow_quantized=True) as checkpoint:
        weights, groups = {}, {}
        for parameter in checkpoint.config.parameter_shapes():
            weight = read_weight(checkpoint, parameter)
            is_packed = isinstance(weight, IntWeight)
            weights[parameter] = weight.dequantize() if is_packed else weight.float32()
            groups[parameter.removesuffix(".weight")] = weight.group_size if is_packed else None
        groups["lm_head"] = groups["model.embed_tokens"]
        (folder / "config.json").write_text(json.dumps(checkpoint.config.with_dtype("float32").to_dict()))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = np.random.default_rng(5).integers(0, 203, 60).tolist()
    with torch.inference_mode():
        model = load_model(open_checkpoint(folder), dtype="float32", device="cpu")
        exact = model(torch.tensor([ids])).logits[0].numpy()
        model.set_attn_implementation("int8_reference")
        for part, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and groups[part]:
                module.register_forward_pre_hook(lambda _, args, G=groups[part]: (rounded_by_group(args[0], G),))
        rounded = model(torch.tensor([ids])).logits[0].numpy()

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return math.sqrt(np.square(one - other).mean() / np.square(exact).mean())

    assert distance(rounded, exact) < 0.04
    assert distance(logits(backends[name], ids), exact) < 1.15 * distance(rounded, exact)


def test_what_was_forgotten_cannot_spoil_what_comes_after():
    sequence, random = NumpySequence(EVEN, 100, INT8), np.random.default_rng(0)
    good = random.standard_normal((5, 2, 64)).astype(np.float32)
    sequence.append(0, good, good)
    sequence.extend([0] * 5)
    bad = np.full((6, 2, 64), np.nan, np.float32)
    sequence.append(0, bad, bad)
    sequence.append(0, good[:1], good[:1])
    assert np.isfinite(attention.attend(random.standard_normal((1, 4, 64)).astype(np.float32), sequence, 0, INT8)).all()


def test_a_quantized_model_answers_without_importing_torch(golden: Path, tmp_path: Path):
    quantize_folder(golden / "minicpm2b_tied", tmp_path / "int4")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from minicpm import LLM\n"
        f"for folder in ({str(tmp_path / 'int4')!r}, {str(golden / 'minicpm2b_tied')!r}):\n"
        "    llm = LLM(folder, backend='auto' if folder.endswith('tied') else 'numpy')\n"
        "    print(llm.backend.name, len(llm.generate('hello', max_tokens=3, ignore_eos=True)[0].ids))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["numpy", "3", "numpy", "3"]
    assert done.stderr.count("torch is not installed") == 1


# --- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.proves("not finite", isa="numpy")
@pytest.mark.parametrize("where", ["model.embed_tokens.weight_scale", "model.norm.weight"])
def test_numbers_that_overflow_are_refused_when_sampled(folders: dict[str, Path], tmp_path: Path, where: str):
    import shutil

    folder = Path(shutil.copytree(folders["even-int4"], tmp_path / "bad"))
    weights = {name: value.copy() for name, value in load_file(folder / "model.safetensors").items()}
    weights["model.norm.weight"][5] = np.inf if where.endswith("norm.weight") else 1
    weights["model.layers.1.input_layernorm.weight"][7] = np.nan if where.endswith("scale") else 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(GenerationError, match="NaN"):
        from minicpm.sampling import Sampler

        Sampler(SamplingParams(), 1).sample(logits(load(folder), [1, 2, 3])[-1], 3)


def test_a_llama_format_model_runs_as_it_is(golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "llama", to="llama")
    ids = [1, 5, 9, 200, 37]
    expected, found = logits(load(golden / "minicpm2b_tied"), ids), logits(load(tmp_path / "llama"), ids)
    # The constants were multiplied into float32 weights, which were rounded once.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "runs on the cpu"),
        ({"dtype": "bfloat16"}, "computes with float32"),
        ({"threads": 2}, "OMP_NUM_THREADS"),
    ],
)
def test_options_it_does_not_have_are_refused(golden: Path, options: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        LLM(golden / "minicpm2b_tied", backend="numpy", **options)


def test_without_torch_auto_takes_numpy_and_says_so(golden: Path, monkeypatch, caplog):
    monkeypatch.setattr("minicpm.engine.loading._has_torch", lambda: False)
    assert LLM(golden / "minicpm2b_tied").backend.name == "numpy"
    assert "torch is not installed" in caplog.text
