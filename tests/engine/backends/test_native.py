"""The native engine gives the bits of the numpy engine: on every instruction set that runs here, with any threads."""

from __future__ import annotations

import os
import resource
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from isas import ARM_ISAS, X86_ISAS, every_isa, runnable_isas
from minicpm import LLM, SamplingParams, native
from minicpm.engine.backend import Row, StepBackend
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.engine.cache.blocks import common_prefix_length
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.engine.prompt import EmbeddingSpan, MixedIds, checked_ids
from minicpm.errors import FormatError, ModelError
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.compressed_tensors import PACKED, SCALE, Packing
from minicpm.formats.config import DecoderConfig
from minicpm.hub import embedded
from minicpm.quant import rtn
from minicpm.quant.format import PRESETS, Preset
from small_models import EVEN, ODD, write_model

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}")

ISAS, EVERY_ISA = runnable_isas(), every_isa()
VOCABULARY = EVEN.vocab_size


def load_native(folder: Path, isa: str, threads: int = 1, **options: Any) -> StepBackend:
    from minicpm.engine.backends.native import NativeBackend

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MINICPM_ISA", isa)
        return NativeBackend(open_checkpoint(folder, allow_quantized=True), threads, **options)


def load_numpy(folder: Path, **options: Any) -> NumpyBackend:
    return NumpyBackend(open_checkpoint(folder, allow_quantized=True), **options)


def some_ids(seed: int, count: int, vocabulary: int = VOCABULARY) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()


def logits(backend: StepBackend, ids: list[int], chunks: list[int] | None = None) -> np.ndarray:
    """(T, vocab) of one sequence computed in chunks of the given sizes."""
    sequence = backend.new_sequence(len(ids))
    parts, start = [], 0
    for size in chunks or [len(ids)]:
        parts.append(backend.forward([Row(sequence, ids[start : start + size], "all")])[0])
        start += size
    assert sequence.length == start
    return np.concatenate(parts)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype == np.float32 and np.array_equal(one.view(np.uint32), other.view(np.uint32))


def edited(folder: Path, destination: Path, **tensors: np.ndarray) -> Path:
    """A copy of a model with some stored tensors replaced, or removed by None; `__` in a name stands for its dots."""
    shutil.copytree(folder, destination)
    weights = {name: value.copy() for name, value in load_file(folder / "model.safetensors").items()}
    for name, value in tensors.items():
        if value is None:
            del weights[name.replace("__", ".")]
        else:
            weights[name.replace("__", ".")] = value
    save_file(weights, destination / "model.safetensors")
    return destination


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Quantized models by a name that tells shape and preset, and the sources they were made of."""
    root = tmp_path_factory.mktemp("native")
    found = {"odd": write_model(root / "odd", ODD), "even": write_model(root / "even", EVEN)}
    for shape, presets in (("odd", ("int4", "int8")), ("even", tuple(PRESETS))):
        for preset in presets:
            found[f"{shape}-{preset}"] = root / f"{shape}-{preset}"
            quantize_folder(found[shape], found[f"{shape}-{preset}"], preset=preset)
    return found


MODELS = ("odd-int4", "odd-int8", *(f"even-{preset}" for preset in PRESETS))
PROVES_PRODUCTS = {bits: pytest.mark.proves(f"int{bits} products") for bits in (4, 8)}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, NumpyBackend]:
    return {name: load_numpy(folders[name]) for name in MODELS}


# --- the same bits as the numpy engine ---------------------------------------------------------------------------


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=PROVES_PRODUCTS[8 if name.endswith("int8") else 4]) for name in MODELS]
)
def test_every_preset_gives_numpys_bits_for_any_number_of_tokens(folders, references, name: str, isa: str):
    """One token, register tiles of every width, panels with and without a rest."""
    backend = load_native(folders[name], isa)
    for count in (*range(1, 10), 11, 16, 17, 24, 28, 61):
        ids = some_ids(count, count)
        assert same_bits(logits(backend, ids), logits(references[name], ids)), count


FLOAT_CONFIGS = {"odd": ODD, "even": EVEN}


@pytest.mark.proves("float weights")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", FLOAT_CONFIGS)
def test_weights_that_are_not_quantized_give_numpys_bits(tmp_path: Path, shape: str, dtype: str, isa: str):
    """Whole and in chunks, by one thread and several: register tiles of every width, rows in slabs and their ends."""
    folder = write_model(tmp_path / "float", FLOAT_CONFIGS[shape].with_dtype(dtype))
    ids = some_ids(5, 45)
    expected = logits(NumpyBackend(open_checkpoint(folder), is_exact=True), ids)
    for threads, chunks in ((1, [45]), (3, [1, 2, 3, 4, 5, 6, 7, 17])):
        assert same_bits(logits(load_native(folder, isa, threads), ids, chunks), expected), threads


@pytest.mark.proves("float weights")
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_wide_bfloat16_rows_give_numpys_bits(tmp_path: Path, isa: str):
    """Inputs so wide that many tokens take a row in several slabs."""
    config = DecoderConfig.from_dict({**EVEN.to_dict(), "intermediate_size": 4010, "num_hidden_layers": 1})
    folder = write_model(tmp_path / "wide", config.with_dtype("bfloat16"))
    ids = some_ids(6, 20)
    expected = logits(NumpyBackend(open_checkpoint(folder), is_exact=True), ids)
    assert same_bits(logits(load_native(folder, isa, 2), ids), expected)
    assert same_bits(logits(load_native(folder, isa, 2), ids, [1] * 20), expected)


@pytest.mark.proves("not finite")
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_what_is_not_finite_in_bfloat16_is_nan_where_numpy_has_nan(tmp_path: Path, isa: str):
    def damage(weights: dict[str, np.ndarray]) -> None:
        weights["model.embed_tokens.weight"][7, 2] = np.inf
        weights["model.layers.1.mlp.down_proj.weight"][3, -1] = np.nan  # in the last column, behind whole steps

    folder = write_model(tmp_path / "float", ODD.with_dtype("bfloat16"), edit=damage)
    ids = [*range(8, 20), 7, *range(8, 20)]
    expected = logits(NumpyBackend(open_checkpoint(folder), is_exact=True), ids)
    assert np.array_equal(logits(load_native(folder, isa), ids), expected, equal_nan=True)
    assert np.isnan(expected).any()


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_bfloat16_weights_err_at_most_twice_as_much_as_the_originals_bfloat16(golden: Path, isa: str):
    """Sums are float32 here, keys and values int8; the original rounds everything to bfloat16 (golden/README.md)."""
    folder = golden / "minicpm2b_tied_bf16_bin"
    reference = load_file(folder / "golden.safetensors")
    exact = reference["logits_fp32_compute"]
    backend = load_native(folder, isa)
    found = np.stack([logits(backend, ids.tolist()) for ids in reference["input_ids"]])
    theirs = np.abs(reference["logits_bf16_compute"] - exact)
    assert np.abs(found - exact).max() <= 2 * theirs.max()
    assert np.abs(found - exact).mean() <= 2 * theirs.mean()


configs = st.builds(
    lambda head, queries, kv_heads, inter, layers, vocabulary, tied: DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=2 * head * queries * kv_heads,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=queries * kv_heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        scale_emb=12,
        scale_depth=1.4,
        dim_model_base=16,
    ),
    head=st.integers(1, 40),
    queries=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    inter=st.integers(1, 300),
    layers=st.integers(1, 2),
    vocabulary=st.integers(3, 200),
    tied=st.booleans(),
)


@settings(max_examples=15, deadline=None)
@given(
    config=configs,
    linear=st.builds(Packing, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128])),
    outer=st.none() | st.builds(Packing, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128])),
    count=st.integers(1, 40),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_any_model_gives_numpys_bits(tmp_path_factory, config, linear, outer, count, threads, data):
    # Two sizes of groups with the same bits look the same in a file whose rows have one group.
    assume(outer is None or outer.bits != linear.bits or outer == linear)
    # Nor can 4 and 8 bits be told apart where a row has one word of either.
    assume(outer is None or outer == linear or min(config.hidden_size, config.intermediate_size) > 4)
    root = tmp_path_factory.mktemp("any")
    if outer is None:  # a folder for others holds no padded groups
        linear = Packing(linear.bits, 32)
        config = DecoderConfig.from_dict(
            {**config.to_dict(), "hidden_size": 32 * config.num_attention_heads, "intermediate_size": 96}
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "any", Preset("any", linear, outer))
        quantize_folder(write_model(root / "source", config, seed=count), root / "any", preset="any")
    ids = some_ids(count, count, config.vocab_size)
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(data.draw(st.integers(1, count - sum(sizes))))
    expected = logits(load_numpy(root / "any"), ids)
    for isa in ISAS:
        assert same_bits(logits(load_native(root / "any", isa, threads), ids, sizes), expected), isa
    shutil.rmtree(root)


@pytest.mark.proves("attention")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (5, 1)], ids=["a head each", "five share a head"])
def test_long_texts_give_numpys_bits(tmp_path: Path, heads: int, kv_heads: int, isa: str):
    """Many blocks of keys, queries cut among threads that outnumber heads, and few queries far behind the start."""
    config = DecoderConfig.from_dict(
        {
            **EVEN.to_dict(),
            "hidden_size": 64 * heads,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "num_hidden_layers": 1,
            "max_position_embeddings": 512,
        }
    )
    quantize_folder(write_model(tmp_path / "source", config), tmp_path / "int8", preset="int8")
    ids = some_ids(3, 330)
    expected = logits(load_numpy(tmp_path / "int8"), ids)
    for threads, chunks in ((1, [330]), (4, [130, 170, 1, 2, 3, 4, 8, 12])):
        assert same_bits(logits(load_native(tmp_path / "int8", isa, threads), ids, chunks), expected), threads


@settings(max_examples=8, deadline=None)
@given(
    config=configs,
    linear=st.builds(Packing, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128])),
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    threads=st.integers(2, 5),
    data=st.data(),
)
def test_any_model_gives_its_own_bits_however_it_is_asked(tmp_path_factory, config, linear, counts, threads, data):
    """Alone, whole, by one thread; then in a batch, in chunks, by several, over reused keys, from the packed file."""
    root = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "own", Preset("own", linear, linear))
        quantize_folder(write_model(root / "source", config, seed=len(counts)), root / "own", preset="own")
        patch.setattr("minicpm.engine.backends.packed.SMALLEST_FILE_BYTES", 0)
        patch.setenv("MINICPM_HOME", str(root / "home"))
        texts = [some_ids(i, count, config.vocab_size) for i, count in enumerate(counts)]
        cuts = [data.draw(st.integers(0, count)) for count in counts]
        for isa in ISAS:
            one = load_native(root / "own", isa, 1)
            alone = [logits(one, ids) for ids in texts]
            many = load_native(root / "own", isa, threads)
            sequences = [many.new_sequence(128) for _ in texts]
            started = [i for i, cut in enumerate(cuts) if cut]
            if started:  # first with other tokens behind the cut, which are forgotten again
                other = [[*texts[i][: cuts[i]], *some_ids(9, 5, config.vocab_size)] for i in started]
                many.forward([Row(sequences[i], ids, "none") for i, ids in zip(started, other)])
                for i in started:
                    sequences[i].truncate(cuts[i])
            rest = [i for i, cut in enumerate(cuts) if cut < counts[i]]
            if rest:
                found = many.forward([Row(sequences[i], texts[i][cuts[i] :], "all") for i in rest])
                for i, part in zip(rest, found):
                    assert same_bits(part, alone[i][cuts[i] :]), isa
    assert len(list((root / "home" / "packed").iterdir())) == 1
    shutil.rmtree(root)


@pytest.mark.proves("attention", "whole models")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("preset", ["int4", "int4-small", "int8"])
def test_the_head_counts_of_minicpm_1b_give_numpys_bits(tmp_path: Path, preset: str, isa: str):
    """24 query heads share 8 key heads, 73,440 is no multiple of 64; smaller otherwise."""
    config = DecoderConfig(
        vocab_size=734,
        hidden_size=384,
        intermediate_size=960,
        num_hidden_layers=1,
        num_attention_heads=24,
        num_key_value_heads=8,
        max_position_embeddings=128,
        scale_emb=12,
        scale_depth=1.4,
        dim_model_base=256,
    )
    quantize_folder(write_model(tmp_path / "source", config), tmp_path / preset, preset=preset)
    backend, reference = load_native(tmp_path / preset, isa, 3), load_numpy(tmp_path / preset)
    ids = some_ids(1, 37, 734)
    expected = logits(reference, ids)
    assert same_bits(logits(backend, ids), expected)
    assert same_bits(logits(backend, ids, [1, 16, 20]), expected)


@pytest.mark.proves("whole models")
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_the_built_in_model_gives_numpys_bits(isa: str):
    backend, reference = load_native(embedded.FOLDER, isa, 2), load_numpy(embedded.FOLDER)
    ids = some_ids(3, 41, backend.vocab_size)
    expected = logits(reference, ids)
    assert same_bits(logits(backend, ids), expected)
    assert same_bits(logits(backend, ids, [3, 1, 37]), expected)


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("end", ["lowest", "highest"])
@pytest.mark.parametrize("bits", [pytest.param(bits, marks=PROVES_PRODUCTS[bits]) for bits in (4, 8)])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("shape", ["odd", "even"])
def test_extreme_codes_do_not_saturate(
    folders, tmp_path: Path, monkeypatch, shape: str, group_size: int, bits: int, end: str, isa: str
):
    """All codes at one end, and inputs that are all 127 or all -127 steps: the embedding's rows are constant."""
    monkeypatch.setitem(PRESETS, "any", Preset("any", Packing(bits, group_size), Packing(8, group_size)))
    quantize_folder(folders[shape], tmp_path / "any", preset="any")
    lowest = 0 if bits == 4 else 0x01010101
    weights = load_file(tmp_path / "any" / "model.safetensors")
    changes = {
        key: np.full_like(value, -1 if end == "highest" else lowest)
        for key, value in weights.items()
        if key.endswith(PACKED) and "proj" in key
    }
    rows = weights[f"model.embed_tokens.weight{PACKED}"]
    changes[f"model.embed_tokens.weight{PACKED}"] = np.where(
        np.arange(len(rows))[:, None] % 2, np.full_like(rows, -1), np.full_like(rows, 0x01010101)
    )
    for norm in (key for key in weights if "norm" in key):
        changes[norm] = np.ones_like(weights[norm])
    folder = edited(tmp_path / "any", tmp_path / "extreme", **{key.replace(".", "__"): v for key, v in changes.items()})
    backend, reference = load_native(folder, isa), load_numpy(folder)
    for ids in ([1], [0, 1, 2], [*range(30)]):
        expected = logits(reference, ids)
        assert np.isfinite(expected).all()
        assert same_bits(logits(backend, ids), expected)


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_tokens_without_any_weight_are_zeros(folders, tmp_path: Path, isa: str):
    source = tmp_path / "source"
    shutil.copytree(folders["odd"], source)
    weights = dict(load_file(source / "model.safetensors"))
    weights["model.embed_tokens.weight"][[3, 16]] = 0
    weights["model.layers.0.mlp.down_proj.weight"][:40] = 0
    weights["model.layers.0.self_attn.k_proj.weight"][:] = 0
    save_file(weights, source / "model.safetensors")
    quantize_folder(source, tmp_path / "int4")
    ids = [3, 5, 16, 3, *range(20)]
    assert same_bits(logits(load_native(tmp_path / "int4", isa), ids), logits(load_numpy(tmp_path / "int4"), ids))


@pytest.mark.proves("not finite")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_what_is_not_finite_is_nan_where_numpy_has_nan(folders, tmp_path: Path, bad: float, isa: str):
    """A norm that makes one channel NaN, infinite or huge, and a token whose embedding overflows."""
    name = "model.embed_tokens.weight" + SCALE
    scales = load_file(folders["even-int4"] / "model.safetensors")[name].astype(np.float32)
    scales[7, 2] = 1e37
    norm = np.ones(EVEN.hidden_size, np.float32)
    norm[5] = bad
    folder = edited(
        folders["even-int4"],
        tmp_path / "bad",
        **{name.replace(".", "__"): scales, "model__layers__1__input_layernorm__weight": norm},
    )
    ids = [*range(8, 28), 7, *range(8, 28)]
    found, expected = logits(load_native(folder, isa), ids), logits(load_numpy(folder), ids)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.isnan(found[20:]).all()


@pytest.mark.proves("not finite")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
def test_a_token_that_is_nan_reaches_no_token_before_it(folders, tmp_path: Path, kv_dtype: str, isa: str):
    name = "model.embed_tokens.weight" + SCALE
    scales = load_file(folders["even-int4"] / "model.safetensors")[name].astype(np.float32)
    scales[7] = 3e38
    folder = edited(folders["even-int4"], tmp_path / "bad", **{name.replace(".", "__"): scales})
    ids = [*range(8, 28), 7, *range(8, 18)]
    found = logits(load_native(folder, isa, kv_dtype=kv_dtype), ids)
    expected = logits(load_numpy(folder, kv_dtype=kv_dtype), ids)
    assert same_bits(found[:20], expected[:20])
    assert np.isfinite(np.delete(found[:20], 7, axis=1)).all()  # as a row of the tied head, 7 overflows everywhere
    assert np.isnan(found[20:]).all() and np.isnan(expected[20:]).all()


@pytest.mark.proves("whole models")
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_layers_of_mixed_kinds_give_numpys_bits(folders, tmp_path: Path, isa: str):
    """Weights that share an input in 4 bits, 8 bits and float, some with binary32 scales."""
    four = load_file(folders["even-int4"] / "model.safetensors")
    floats = load_file(folders["even"] / "model.safetensors")
    layer = "model.layers.0.self_attn"
    eight = rtn.quantize(floats[f"{layer}.v_proj.weight"], Packing(8, 64))
    changes: dict[str, np.ndarray | None] = {
        f"{layer}.v_proj.weight{PACKED}": eight.packed.view("<i4"),
        f"{layer}.v_proj.weight{SCALE}": eight.scales,
    }
    changes |= {name: None for name in four if name.startswith((f"{layer}.k_proj", "model.layers.1.mlp.down_proj"))}
    changes[f"{layer}.k_proj.weight"] = floats[f"{layer}.k_proj.weight"].astype(np.float16)
    changes["model.layers.1.mlp.down_proj.weight"] = floats["model.layers.1.mlp.down_proj.weight"]
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        changes[name + SCALE] = four[name + SCALE].astype(np.float32) * np.float32(1.0001)
    folder = edited(
        folders["even-int4"], tmp_path / "mixed", **{name.replace(".", "__"): value for name, value in changes.items()}
    )
    backend, reference = load_native(folder, isa), load_numpy(folder)
    for count in (1, 5, 33):
        assert same_bits(logits(backend, some_ids(1, count)), logits(reference, some_ids(1, count)))


@pytest.mark.proves("whole models")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 4.0}])
def test_stretched_contexts_give_numpys_bits(tmp_path: Path, scaling: dict[str, object], isa: str):
    config = DecoderConfig.from_dict({**ODD.to_dict(), "rope_scaling": scaling, "max_position_embeddings": 16})
    quantize_folder(write_model(tmp_path / "source", config), tmp_path / "int8", preset="int8")
    backend, reference = load_native(tmp_path / "int8", isa), load_numpy(tmp_path / "int8")
    for length in (16, 40):
        rows = [Row(one.new_sequence(length), some_ids(2, min(length, 30)), "all") for one in (backend, reference)]
        assert rows[0].sequence.rope_length == length
        assert same_bits(backend.forward(rows[:1])[0], reference.forward(rows[1:])[0])


def with_spans(ids: list[int], spans: list[tuple[int, int]], embeddings: np.ndarray) -> MixedIds:
    """Ids of which these ranges are spans of the `embeddings` (T, hidden) of all positions."""
    parts: list[int | EmbeddingSpan] = []
    start = 0
    for first, last in spans:
        parts += [*ids[start:first], EmbeddingSpan(embeddings[first:last], b"content")]
        start = last
    return checked_ids([*parts, *ids[start:]], VOCABULARY, embeddings.shape[1])


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("name", ["odd-int4", "even-int4-hf"])
def test_a_span_of_scaled_embedding_rows_gives_the_bits_of_their_tokens(folders, name: str, isa: str):
    """Whole, in chunks that cut spans anywhere, and position by position."""
    ids = some_ids(4, 50)
    reference = load_numpy(folders[name], is_exact=True)
    mixed = with_spans(ids, [(0, 9), (20, 21), (30, 50)], reference._embed(ids, None))
    expected = logits(reference, ids)
    assert same_bits(logits(reference, mixed, [3, 20, 27]), expected)
    for threads, chunks in ((1, [50]), (2, [3, 20, 1, 1, 16, 9]), (2, [1] * 50)):
        assert same_bits(logits(load_native(folders[name], isa, threads), mixed, chunks), expected), chunks


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("window", [None, SlidingWindow(32)], ids=["all", "16+32"])
def test_any_embeddings_give_numpys_bits(folders, window, isa: str):
    """In a batch with other texts, and as hidden states."""
    options = {"kv_dtype": "bfloat16", "window": window}
    reference, backend = load_numpy(folders["odd-int8"], **options), load_native(folders["odd-int8"], isa, 2, **options)
    values = np.random.default_rng(5).standard_normal((90, ODD.hidden_size), np.float32)
    texts = [with_spans(some_ids(1, 90), [(5, 80)], values), some_ids(2, 7), with_spans([], [(0, 12)], values[40:52])]
    for compute in ("forward", "hidden_states"):
        found, expected = (
            getattr(one, compute)([Row(one.new_sequence(90), text, "all") for text in texts])
            for one in (backend, reference)
        )
        assert all(map(same_bits, found, expected))


# --- the same bits as itself -------------------------------------------------------------------------------------


# Few and many queries a step, short of the window, across its beginning, and far behind it.
CACHE_CHUNKS = [1, 5, 16, 3, 40, 1, 1, 2, 7, 100, 9, 61, 1, 4]


@pytest.mark.proves("bfloat16 cache", "sliding window")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("name", ["odd-int4", "even-int4"])
@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("window", [None, SlidingWindow(16), SlidingWindow(48, 32)], ids=["all", "16+16", "32+48"])
def test_every_cache_and_window_gives_numpys_bits(folders, name: str, kv_dtype: str, window, isa: str):
    ids = some_ids(7, sum(CACHE_CHUNKS))
    reference = load_numpy(folders[name], kv_dtype=kv_dtype, window=window)
    backend = load_native(folders[name], isa, threads=2, kv_dtype=kv_dtype, window=window)
    expected = logits(reference, ids)
    assert same_bits(logits(backend, ids, CACHE_CHUNKS), expected)
    assert same_bits(logits(backend, ids), expected)


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("window", [None, SlidingWindow(32)], ids=["all", "16+32"])
def test_a_cache_in_bfloat16_gives_numpys_bits_for_any_heads(tmp_path: Path, window, isa: str):
    """Heads of 40 numbers, five of queries to one of keys and values."""
    config = replace(EVEN, hidden_size=200, num_attention_heads=5, num_key_value_heads=1)
    folder = write_model(tmp_path / "source", config)
    quantize_folder(folder, tmp_path / "int8", preset="int8")
    options = {"kv_dtype": "bfloat16", "window": window}
    reference, backend = load_numpy(tmp_path / "int8", **options), load_native(tmp_path / "int8", isa, **options)
    ids = some_ids(3, 150)
    assert same_bits(logits(backend, ids, [33, 1, 1, 80, 35]), logits(reference, ids))


@pytest.mark.proves("any threads and chunks")
@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("name", ["odd-int4", "even-int8"])
def test_threads_batches_chunks_and_forgotten_tokens_change_nothing(folders, name: str, isa: str):
    one, three = load_native(folders[name], isa, 1), load_native(folders[name], isa, 3)
    texts = [some_ids(i, size) for i, size in enumerate((1, 33, 16, 5, 70))]
    alone = [logits(one, ids) for ids in texts]
    for ids, expected in zip(texts, alone):
        assert same_bits(logits(three, ids), expected)
        assert same_bits(logits(three, ids, [1] * len(ids)), expected)
    sequences = [three.new_sequence(70) for _ in texts]
    first = three.forward([Row(s, ids[:1], "none") for s, ids in zip(sequences, texts)])
    assert all(part.shape == (0, VOCABULARY) for part in first)
    three.forward([Row(s, some_ids(7, 18), "none") for s in sequences])
    for sequence in sequences:
        sequence.truncate(1)
    rows = [Row(s, ids[1:], "all") for s, ids in zip(sequences, texts) if len(ids) > 1]
    for found, expected in zip(three.forward(rows), alone[1:]):
        assert same_bits(found, expected[1:])


def test_a_step_mixes_answers_and_prompts(folders):
    backend = load_native(folders["even-int4"], ISAS[0])
    texts = [some_ids(i, 20) for i in range(3)]
    alone = [logits(backend, ids) for ids in texts]
    sequences = [backend.new_sequence(20) for _ in texts]
    backend.forward([Row(sequences[0], texts[0][:19], "none"), Row(sequences[1], texts[1][:4], "none")])
    rows = [Row(sequences[0], texts[0][19:], "last"), Row(sequences[1], texts[1][4:12], "none")]
    found = backend.forward([*rows, Row(sequences[2], texts[2], "last")])
    assert [part.shape[0] for part in found] == [1, 0, 1]
    assert same_bits(found[0], alone[0][-1:]) and same_bits(found[2], alone[2][-1:])


def test_many_tokens_are_cut_into_steps(folders, monkeypatch):
    backend = load_native(folders["odd-int4"], ISAS[0])
    texts = [some_ids(0, 70), some_ids(1, 9)]
    expected = [logits(backend, ids) for ids in texts]
    monkeypatch.setattr("minicpm.engine.backends.native.MAX_STEP_TOKENS", 16)
    for kind in ("all", "last", "none"):
        sequences = [backend.new_sequence(70) for _ in texts]
        found = backend.forward([Row(s, ids, kind) for s, ids in zip(sequences, texts)])
        assert [s.length for s in sequences] == [70, 9]
        for part, whole in zip(found, expected):
            assert same_bits(part, whole[{"all": 0, "last": -1, "none": len(whole)}[kind] :])


def test_python_threads_share_a_model(folders):
    backend = load_native(folders["odd-int4"], ISAS[0], threads=2)
    texts = [some_ids(i, 25) for i in range(4)]
    expected, found = [logits(backend, ids) for ids in texts], [np.zeros(0)] * 4

    def work(index: int) -> None:
        found[index] = logits(backend, texts[index], [1] * 25)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(same_bits(one, other) for one, other in zip(found, expected))


# --- behind LLM --------------------------------------------------------------------------------------------------


def test_auto_takes_the_native_engine_and_its_texts_are_numpys(folders, golden: Path, tmp_path: Path):
    quantize_folder(golden / "minicpm2b_tied", tmp_path / "int4")
    params = SamplingParams(seed=11, max_tokens=12, ignore_eos=True)
    prompts = ["Which city", "山东省最高的山", "a", "def f(x):"]
    fast, readable = LLM(tmp_path / "int4", threads=2), LLM(tmp_path / "int4", backend="numpy")
    assert (fast.backend.name, readable.backend.name) == ("native", "numpy")
    expected = [completion.text for completion in readable.generate(prompts, params)]
    assert [completion.text for completion in fast.generate(prompts, params)] == expected
    assert fast.backend.cache_bytes_per_token == readable.backend.cache_bytes_per_token
    assert fast.backend.rope_key(100) == readable.backend.rope_key(100)
    free = fast.backend.free_cache_bytes()
    assert free is None or free > 0


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_the_environment_chooses_the_instruction_set(folders, isa: str):
    assert load_native(folders["odd-int4"], isa).isa == isa


def test_an_instruction_set_that_cannot_run_here_is_an_error(folders, monkeypatch):
    monkeypatch.setattr(native.extension(), "runnable_isas", lambda: ["avx2", "generic"])
    monkeypatch.delenv("MINICPM_ISA", raising=False)
    assert native.isa() == "avx2"
    for wanted in ("avx512vnni", "AVX2", "avx2 ", "sse9", "0"):
        monkeypatch.setenv("MINICPM_ISA", wanted)
        with pytest.raises(ValueError, match=f"MINICPM_ISA is '{wanted}'; this machine and build run avx2, generic"):
            native.isa()


def test_the_engine_runs_no_kernels_that_the_processor_lacks():
    known = {*X86_ISAS, *ARM_ISAS}
    assert set(ISAS) <= known and ISAS[-1] == "generic"
    shape = {"threads": 1, "hidden": 64, "heads": 1, "kv_heads": 1, "intermediate": 64, "vocabulary": 9, "eps": 1e-5}
    scales = {"embedding_scale": 1, "residual_scale": 1, "logit_scale": 1, "query_scale": 1}
    for isa in (known | {"neon", ""}) - set(ISAS):
        with pytest.raises(ValueError, match="this machine cannot run that instruction set"):
            native.extension().Model(isa=isa, **shape, **scales)


def test_it_says_what_it_cannot_do(folders, monkeypatch):
    with pytest.raises(ValueError, match="MINICPM_ISA is 'sse9'; this machine and build run"):
        load_native(folders["odd-int4"], "sse9")
    monkeypatch.setenv("MINICPM_THREADS", "many")
    with pytest.raises(ValueError, match="MINICPM_THREADS is 'many'"):
        native.thread_count()
    monkeypatch.setenv("MINICPM_THREADS", "3")
    assert (native.thread_count(), native.thread_count(2)) == (3, 2)


def test_a_sequence_of_another_model_is_refused(folders):
    backend, other = load_native(folders["even-int4"], ISAS[0]), load_native(folders["odd-int4"], ISAS[0])
    with pytest.raises(ValueError, match="another model"):
        backend.forward([Row(other.new_sequence(9), [1], "last")])
    sequence = backend.new_sequence(9)
    with pytest.raises(ValueError, match="twice"):
        backend.forward([Row(sequence, [1], "last"), Row(sequence, [2], "last")])
    with pytest.raises(ValueError, match="token id"):
        backend.forward([Row(sequence, [VOCABULARY], "last")])
    assert sequence.length == 0


def forwarded(backend: StepBackend, tables: list[list[int]], lengths: list[int], counts: list[int], pool: Any) -> None:
    """One step of the extension itself, with tables that no BlockCache made."""
    tokens, half = sum(counts), backend.config.head_dim // 2
    batch = native.extension().Batch(
        pools=[pool] * len(counts),
        tables=[np.array(table, np.int32) for table in tables],
        lengths=lengths,
        counts=counts,
        token_ids=np.ones(tokens, np.int32),
        cos=np.ones((tokens, half), np.float32),
        sin=np.zeros((tokens, half), np.float32),
        wanted=np.zeros(0, np.int32),
        out=np.zeros((0, VOCABULARY), np.float32),
    )
    backend._model.forward(batch)


@pytest.mark.parametrize(
    ("tables", "lengths", "counts", "message"),
    [
        ([[8]], [0], [1], "none of the pool's"),
        ([[-1]], [0], [1], "none of the pool's"),
        ([[0, 8]], [16], [1], "none of the pool's"),
        ([[0]], [0], [17], "fewer blocks"),
        ([[0, 1]], [31], [2], "fewer blocks"),
        ([[]], [0], [1], "fewer blocks"),
        ([[0]], [-1], [1], "length"),
        ([[0]], [0], [0], "1 or more tokens"),
        ([[0, 0]], [0], [17], "twice"),
        ([[0, 1], [1]], [16, 0], [1, 1], "twice"),
        ([[0, 1], [1, 2]], [16, 16], [1, 1], "twice"),
        ([[1, 2], [0, 1]], [16, 16], [1, 1], "twice"),
        ([[3, 3]], [16], [1], "twice"),
        ([[0], [1]], [0], [1, 1], "one pool, table, length and count"),
    ],
)
def test_a_wrong_table_is_refused(folders, tables, lengths, counts, message: str):
    backend = load_native(folders["even-int4"], ISAS[0])
    pool = backend.new_cache(8 * 16).pool
    with pytest.raises(ValueError, match=message):
        forwarded(backend, tables, lengths, counts, pool)
    # A refusal leaves no trace, and full blocks may be shared.
    forwarded(backend, [[0, 1], [0, 2]], [16, 16], [1, 1], pool)


def test_ids_without_a_row_of_the_embeddings_are_refused(folders):
    backend = load_native(folders["even-int4"], ISAS[0])
    span = EmbeddingSpan(np.zeros((2, EVEN.hidden_size), np.float32), b"k")
    ids = checked_ids([1, span], VOCABULARY, EVEN.hidden_size)
    ids.embeddings = ids.embeddings[:1]
    sequence = backend.new_sequence(9)
    with pytest.raises(ValueError, match="no row of the embeddings"):
        backend.forward([Row(sequence, ids)])
    with pytest.raises(ValueError, match="no row of the embeddings"):
        backend.forward([Row(sequence, [1, -1])])
    narrow = EmbeddingSpan(np.zeros((2, EVEN.hidden_size - 1), np.float32), b"k")
    with pytest.raises(ValueError, match=r"embeddings are \(positions, hidden\)"):
        backend.forward([Row(sequence, checked_ids([narrow], VOCABULARY, EVEN.hidden_size - 1))])
    assert sequence.length == 0


def test_copied_blocks_give_the_same_bits(folders):
    backend = load_native(folders["even-int4"], ISAS[0])
    cache = backend.new_cache(2000)
    ids = some_ids(3, 500)
    expected = logits(backend, [*ids, 7])
    sequence, copies = cache.open([], 501, 501), cache.open([], 501, 501)
    backend.forward([Row(sequence, ids, "none")])
    copies.reserve(501)
    for block, copy in zip(sequence.blocks, copies.blocks):
        cache.pool.copy(block, copy)
    copies.token_ids += ids
    cache.close(sequence)
    cache.drop_idle()  # pages that the copies' blocks share with others stay
    assert same_bits(backend.forward([Row(copies, [7], "last")])[0], expected[-1:])


def test_only_blocks_of_the_pool_are_copied_and_given_back():
    pool = native.extension().KvPool(2, 2, 64, 125)
    for bad in (-1, 125):
        with pytest.raises(ValueError, match="none of the pool's"):
            pool.copy(0, bad)
        with pytest.raises(ValueError, match="none of the pool's"):
            pool.copy(bad, 0)
        with pytest.raises(ValueError, match="none of the pool's"):
            pool.release([0, bad])
    with pytest.raises(ValueError, match="into another"):
        pool.copy(3, 3)


@pytest.mark.parametrize("shape", [(0, 1, 64, 1), (1, -1, 64, 1), (1, 1, 0, 1), (1, 1, 64, 1 << 25)])
def test_a_pool_of_no_shape_is_refused(shape):
    with pytest.raises(ValueError, match="must be 1 to 16777216"):
        native.extension().KvPool(*shape)


def test_a_pool_that_the_system_does_not_give_is_said(folders):
    with pytest.raises(MemoryError):
        native.extension().KvPool(1 << 24, 1 << 24, 1 << 24, 1 << 24)
    backend = load_native(folders["even-int4"], ISAS[0])
    wide = {"num_hidden_layers": 1024, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16}
    backend.config = DecoderConfig.from_dict({**EVEN.to_dict(), **wide})
    with pytest.raises(ModelError, match="GB of address space for the keys and values of 200000000 tokens"):
        backend.new_cache(200_000_000)  # 445 TB


def test_a_pool_takes_memory_only_as_it_fills_and_gives_it_back():
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    before = resident_mb()
    pool = native.extension().KvPool(4, 4, 64, 100_000)  # 3.5 GB
    assert resident_mb() - before < 50
    for block in range(1, 5000):
        pool.copy(0, block)  # 35 KB
    assert resident_mb() - before > 160
    pool.release([*range(2500), *range(5000, 2499, -1)])
    assert resident_mb() - before < 50


@pytest.fixture(scope="module")
def shared_and_alone(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, LLM]:
    """A model with room for 128 tokens in all, and the same one computing every request for itself, with numpy."""
    folder = tmp_path_factory.mktemp("shared") / "int4"
    quantize_folder(golden / "minicpm2b_tied", folder)
    alone = LLM(folder, backend="numpy")
    return LLM(folder, kv_cache_bytes=128 * alone.backend.cache_bytes_per_token, max_batch=3, threads=2), alone


words = st.lists(st.integers(5, 6), min_size=1, max_size=50)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_requests_that_share_a_tiny_pool_say_what_they_say_alone(shared_and_alone: tuple[LLM, LLM], data):
    """Prompts that begin alike, more at once than the pool holds, some abandoned half-way."""
    shared, alone = shared_and_alone
    known: list[list[int]] = [[]]
    for _ in range(data.draw(st.integers(1, 3))):
        prompts = []
        for _ in range(data.draw(st.integers(1, 5))):
            start = data.draw(st.sampled_from(known))
            prompts.append([*start[: data.draw(st.integers(0, min(50, len(start))))], *data.draw(words)])
        params = SamplingParams(
            seed=data.draw(st.integers(0, 9)), max_tokens=data.draw(st.integers(1, 25)), ignore_eos=True
        )
        stream = shared.stream_batch(prompts, params)
        for _ in range(data.draw(st.integers(0, 4))):
            next(stream, None)
        stream.close()
        for prompt, answer in zip(prompts, shared.generate(prompts, params)):
            alone.drop_cache()
            assert answer.ids == alone.generate([prompt], params)[0].ids
            known.append([*prompt, *answer.ids])
        assert shared.steps.cache.usage().held_tokens == 0


def test_a_running_answer_lends_its_beginning_to_the_next_request(shared_and_alone: tuple[LLM, LLM]):
    shared, alone = shared_and_alone
    shared.drop_cache()
    prompt = [5, 6] * 20
    stream = shared.stream_batch([prompt], max_tokens=20, ignore_eos=True, seed=1)
    next(stream)
    other = shared.generate([[*prompt, 7]], max_tokens=4, ignore_eos=True, seed=1)[0]
    assert other.usage.cached_tokens == 32  # two blocks that both hold
    assert other.ids == alone.generate([[*prompt, 7]], max_tokens=4, ignore_eos=True, seed=1)[0].ids
    *_, last = stream
    assert last.completion.ids == alone.generate([prompt], max_tokens=20, ignore_eos=True, seed=1)[0].ids


def test_the_next_turn_of_a_chat_computes_what_is_new_alone():
    """All that the two prompts have in common is reused, the answer's own keys and values with it."""
    llm = LLM(threads=1)
    turns = [{"role": "user", "content": "What is the capital of China?"}]
    for question in ("And of France?", "Tell me more."):
        before = llm.tokenizer.encode(llm.template.render(turns))
        answer = llm.chat(turns, temperature=0, max_tokens=30)
        held = [*before, *answer.ids][: len(before) + len(answer.ids) - (answer.finish_reason == "length")]
        turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
        common = common_prefix_length(held, llm.tokenizer.encode(llm.template.render(turns)))
        assert common > len(before), "nano's answer is rendered into other ids: this test needs another question"
        again = llm.chat(turns, temperature=0, max_tokens=30)
        assert again.usage.cached_tokens == common
        assert again.ids == LLM(threads=1).chat(turns, temperature=0, max_tokens=30).ids


def test_scores_share_a_prefix_and_its_blocks(shared_and_alone: tuple[LLM, LLM]):
    shared, alone = shared_and_alone
    pairs = [([5, 6] * 21, [[7] * 20, [8], [7] * 9 + [5], [9] * 30]), ([5, 6] * 20, [[1, 2]])]
    assert shared.loglikelihood(pairs) == alone.loglikelihood(pairs)
    assert same_bits(shared.logits([5, 6] * 30), alone.logits([5, 6] * 30))


def test_a_model_outlives_the_checkpoint_it_was_read_from(folders):
    import gc

    backend = load_native(folders["even-int4-hf"], ISAS[0])
    expected = logits(backend, [1, 2, 3])
    gc.collect()
    assert same_bits(logits(backend, [1, 2, 3]), expected)


def test_what_one_instruction_set_has_packed_serves_all(folders, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path))
    monkeypatch.setattr("minicpm.engine.backends.packed.SMALLEST_FILE_BYTES", 0)
    for name in ("odd-int4", "odd-int8"):
        expected = logits(load_native(folders[name], ISAS[-1]), [1, 2, 3])
    marks = {path.name: path.stat().st_ino for path in (tmp_path / "packed").iterdir()}
    for isa in ISAS:
        assert same_bits(logits(load_native(folders["odd-int8"], isa), [1, 2, 3]), expected)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "packed").iterdir()} == marks


def test_a_model_from_the_packed_file_has_the_same_bits(folders, tmp_path: Path, monkeypatch):
    """Made, mapped, and made of another layout: with the weights in four bits, eight bits and float."""
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path))
    for name in ("odd-int4", "even-int4-hf"):
        expected = logits(load_native(folders[name], ISAS[0]), [1, 2, 3])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minicpm.engine.backends.packed.SMALLEST_FILE_BYTES", 0)
            for _ in range(2):
                backend = load_native(folders[name], ISAS[0])
                assert same_bits(logits(backend, [1, 2, 3]), expected)
    assert len(list((tmp_path / "packed").iterdir())) == 2


# --- The packed file spares the checks, and only the very files that were checked ---------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quantized folder whose packed file is kept although it is small, and was made."""
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("minicpm.engine.backends.packed.SMALLEST_FILE_BYTES", 0)
    quantize_folder(write_model(tmp_path / "source", ODD), tmp_path / "int4")
    load_native(tmp_path / "int4", ISAS[0])
    return tmp_path / "int4"


def weights_read_by_a_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from minicpm.engine.backends import native as engine

    read = []
    with monkeypatch.context() as patch:
        whole = engine.read_weight
        patch.setattr(engine, "read_weight", lambda checkpoint, name: (read.append(name), whole(checkpoint, name))[1])
        load_native(folder, ISAS[0])
    return read


def packed_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "home" / "packed").glob("*.bin")
    return path


def test_a_load_with_the_packed_file_reads_no_weight_again(kept: Path, monkeypatch: pytest.MonkeyPatch):
    expected = logits(load_numpy(kept), some_ids(1, 20))
    assert weights_read_by_a_load(kept, monkeypatch) == []
    assert same_bits(logits(load_native(kept, ISAS[0]), some_ids(1, 20)), expected)


@pytest.mark.parametrize("change", ["key", "title", "shorter", "longer", "layout", "touched"])
def test_any_other_packed_file_is_made_again_from_checked_weights(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    expected = logits(load_numpy(kept), some_ids(1, 20))
    path = packed_file(tmp_path)
    content = bytearray(path.read_bytes())
    if change == "key":
        place = content.index(b"\n") + 1
        content[place] = ord("1") if content[place] != ord("1") else ord("2")
    elif change == "title":
        content[:64] = content[:64].replace(b"packed weights", b"packed wheels!")
    elif change == "shorter":
        del content[-1]
    elif change == "longer":
        content.append(0)
    elif change == "layout":
        monkeypatch.setattr("minicpm.engine.backends.packed.LAYOUT_VERSION", 99)
    else:
        (kept / "model.safetensors").touch()
    path.write_bytes(content)
    assert set(weights_read_by_a_load(kept, monkeypatch)) == set(open_checkpoint(kept, allow_quantized=True).packings)
    assert weights_read_by_a_load(kept, monkeypatch) == []
    assert same_bits(logits(load_native(kept, ISAS[0]), some_ids(1, 20)), expected)


def test_weights_changed_behind_the_packed_file_are_checked_even_with_their_old_time(kept: Path):
    weights = kept / "model.safetensors"
    before = weights.stat()
    scales = next(tensor for name, tensor in load_file(weights).items() if name.endswith(SCALE))
    with weights.open("r+b") as file:
        file.seek(file.read().index(scales.tobytes()))
        file.write(np.full_like(scales[0, :1], np.nan).tobytes())
    assert weights.stat().st_size == before.st_size
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FormatError, match="negative or not finite"):
        load_native(kept, ISAS[0])
