"""`write_gguf`, read back by the package gguf, by ourselves, and by the numpy engine."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from minicpm.engine.backend import Row
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.engine.llm import LLM
from minicpm.errors import FormatError, ModelError
from minicpm.export.convert import convert
from minicpm.export.destination import new_file
from minicpm.export.gguf import write_gguf
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.config import RopeScaling
from minicpm.formats.gguf import Q4_0, Q6_K, Q8_0, GgufFile
from minicpm.formats.gguf_model import rows_to_store, stored_name
from minicpm.quant.format import Int4Weight, Int8Weight, IntWeight, read_weight
from minicpm.sampling import SamplingParams
from small_gguf import Parts
from small_models import WIDE, random_weights, write_model

# The toy tokenizer's vocabulary; every K is a multiple of 32, none of the feed-forward one of 256.
CONFIG = replace(WIDE, vocab_size=1000)
IDS = [1, *range(300, 330)]


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A small random model with the toy tokenizer."""
    return with_toy_tokenizer(write_model(tmp_path / "source", CONFIG, random_weights(CONFIG, std=0.1)), golden)


def with_toy_tokenizer(folder: Path, golden: Path) -> Path:
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(golden / "minicpm2b_tied" / name, folder)
    return folder


def logits(checkpoint: Checkpoint) -> np.ndarray:
    backend = NumpyBackend(checkpoint)
    return backend.forward([Row(backend.new_sequence(64), IDS, "all")])[0]


def logits_of(path: Path) -> np.ndarray:
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        return logits(checkpoint)


def weight(path: Path, name: str) -> np.ndarray:
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        found = read_weight(checkpoint, name)
        return found.dequantize() if isinstance(found, IntWeight) else found.float32().copy()


# --- against llama.cpp's converter -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, manifest", [("float16", "a1-f16"), ("float32", "a1-f32")])
def test_the_file_says_and_holds_what_llama_cpps_converter_writes(
    golden: Path, tmp_path: Path, dtype: str, manifest: str
):
    expected = json.loads((golden / "gguf" / f"{manifest}.manifest.json").read_text())
    write_gguf(golden / "minicpm2b_tied", tmp_path / "model.gguf", dtype=dtype, name="Minicpm2B_Tied")
    read = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = [
        {"name": t.name, "ggml_type": t.tensor_type.name, "gguf_ne_shape": t.shape.tolist(), "sha256": sha256(t.data)}
        for t in read.tensors
    ]
    wanted = [{key: tensor[key] for key in tensors[0]} for tensor in expected["tensors"]]
    assert sorted(tensors, key=lambda t: t["name"]) == sorted(wanted, key=lambda t: t["name"])
    for entry in expected["metadata"]:
        if entry["key"] == "GGUF.kv_count":
            continue
        field = read.fields[entry["key"]]
        assert [kind.name for kind in field.types] == entry["types"], entry["key"]
        assert digest(field.contents()) == digest_of(entry["value"]), entry["key"]
    # Written on purpose, though the converter leaves them to defaults.
    added = {"minicpm.rope.dimension_count", "minicpm.vocab_size", "tokenizer.ggml.add_space_prefix"}
    assert read.fields.keys() - {entry["key"] for entry in expected["metadata"]} == added


def sha256(data: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()


def digest(value: object) -> object:
    if not isinstance(value, list):
        return value
    return len(value), hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def digest_of(value: object) -> object:
    return (value["len"], value["sha256_json"]) if isinstance(value, dict) else value


def test_tensor_names_are_llama_cpps(golden: Path):
    names = json.loads((golden / "gguf" / "tensor_map.json").read_text())["gguf_to_hf"]
    assert all(stored_name(published) == stored for stored, published in names.items())


# --- the package gguf --------------------------------------------------------------------------------------------

GGUF_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_the_package_gguf_reads_what_it_would_have_written(folder: Path, tmp_path: Path, dtype: str):
    write_gguf(folder, tmp_path / "model.gguf", dtype=dtype)
    read = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in read.tensors}
    weights = random_weights(CONFIG, std=0.1)
    assert tensors.keys() == {stored_name(name) for name in weights}
    for name, values in weights.items():
        order = rows_to_store(CONFIG, name)
        kind = gguf.GGMLQuantizationType[GGUF_TYPES[dtype]]
        if values.ndim == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif dtype == "q4_0" and "proj" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
        tensor = tensors[stored_name(name)]
        assert (tensor.tensor_type, tensor.shape.tolist()) == (kind, list(values.shape[::-1]))
        expected = gguf.quants.quantize(values if order is None else values[order], kind)
        assert np.ascontiguousarray(tensor.data).tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("alignment", [32, 128])
@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_what_the_package_gguf_writes_is_read(tmp_path: Path, dtype: str, alignment: int):
    weights = random_weights(CONFIG, std=0.1)
    kind = gguf.GGMLQuantizationType[GGUF_TYPES[dtype]]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "minicpm")
    writer.add_custom_alignment(alignment)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_embedding_scale(CONFIG.scale_emb)
    writer.add_residual_scale(CONFIG.residual_scale)
    writer.add_logit_scale(CONFIG.hidden_size / CONFIG.dim_model_base)
    stored = {}
    for name, values in weights.items():
        order = rows_to_store(CONFIG, name)
        rows = values if order is None else values[order]
        stored[name] = gguf.quants.quantize(rows, kind) if values.ndim == 2 else rows
        raw_dtype = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(stored_name(name), stored[name], raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "model.gguf", allow_quantized=True) as checkpoint:
        # What a GGUF file without a tokenizer cannot say.
        kept = replace(CONFIG, dtype=checkpoint.config.dtype, bos_token_id=None, eos_token_id=None)
        assert checkpoint.config == kept
    for name, values in weights.items():
        expected = values
        if values.ndim == 2:
            rows = gguf.quants.dequantize(stored[name], kind)
            order = rows_to_store(CONFIG, name)
            expected = rows if order is None else rows[np.argsort(order)]
        assert np.array_equal(weight(tmp_path / "model.gguf", name), expected), name


# --- the numpy engine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["minicpm2b_tied", "minicpm2b_untied_sharded"])
def test_a_float32_file_computes_what_its_folder_does(golden: Path, tmp_path: Path, source: str):
    shutil.copytree(golden / source, tmp_path / "m")
    if source != "minicpm2b_tied":
        with_toy_tokenizer(tmp_path / "m", golden)  # 1,000 pieces for 1,003 rows: the rest is padding
    write_gguf(tmp_path / "m", tmp_path / "model.gguf")
    assert np.array_equal(logits_of(tmp_path / "model.gguf"), logits_of(tmp_path / "m"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_16_bit_file_computes_what_a_16_bit_folder_does(folder: Path, tmp_path: Path, dtype: str):
    convert(folder, tmp_path / "rounded", to="hf", dtype=dtype)
    write_gguf(tmp_path / "rounded", tmp_path / "model.gguf")
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.config.dtype == dtype
    assert np.array_equal(logits_of(tmp_path / "model.gguf"), logits_of(tmp_path / "rounded"))


@pytest.mark.parametrize("preset", ["int4", "int4-small", "int4-hf", "int8"])
def test_codes_of_a_quantized_folder_go_over_as_they_are(folder: Path, tmp_path: Path, preset: str):
    quantize_folder(folder, tmp_path / "quantized", preset=preset)
    write_gguf(tmp_path / "quantized", tmp_path / "model.gguf")
    for name in CONFIG.parameter_shapes():
        assert np.array_equal(weight(tmp_path / "model.gguf", name), weight(tmp_path / "quantized", name)), name


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_a_quantized_file_runs_as_the_weights_that_it_holds(
    folder: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    """The engine on the file equals the engine on codes and scales that the package gguf took out of it."""
    write_gguf(folder, tmp_path / "model.gguf", dtype=dtype)
    found = logits_of(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}

    def weight_of_gguf(checkpoint: Checkpoint, name: str) -> IntWeight:
        tensor = tensors[stored_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        order = rows_to_store(CONFIG, name)
        published = np.arange(len(values)) if order is None else np.argsort(order)
        is_int4 = tensor.tensor_type.name == "Q4_0"
        raw = tensor.data.reshape(*values.shape[:-1], -1, 18 if is_int4 else 34)[published]
        scales = np.ascontiguousarray(raw[..., :2]).view("<f2")[..., 0]
        codes = values[published].reshape(*scales.shape, 32) / scales.astype(np.float32)[..., None]
        kind = Int4Weight if is_int4 else Int8Weight
        return kind.pack(np.rint(codes).astype(np.int8).reshape(values.shape), scales, 32)

    assert {tensor.tensor_type.name for tensor in tensors.values()} == {"F32", "Q8_0", dtype.upper()}
    monkeypatch.setattr("minicpm.engine.backends.numpy.read_weight", weight_of_gguf)
    assert np.array_equal(found, logits_of(tmp_path / "model.gguf"))


@pytest.mark.parametrize("dtype, bound", [("q8_0", 0.02), ("q4_0", 0.2)])
def test_rounding_the_weights_keeps_the_logits_close(folder: Path, tmp_path: Path, dtype: str, bound: float):
    write_gguf(folder, tmp_path / "model.gguf", dtype=dtype)
    exact = logits_of(folder)
    assert np.abs(logits_of(tmp_path / "model.gguf") - exact).max() < bound * np.abs(exact).max()


def test_a_negative_scale_gives_the_largest_weight_the_side_of_eight(tmp_path: Path):
    name = "model.layers.0.mlp.up_proj.weight"
    values = np.zeros((64, 32), np.float32)
    values[0, :2] = 8, -7
    parts = Parts()
    parts.store(stored_name(name), Q4_0, gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0), (64, 32))
    path = parts.write(tmp_path / "model.gguf")
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        found = read_weight(checkpoint, name)
        assert isinstance(found, Int4Weight)
        assert found.scales[0, 0] == -1
        assert np.array_equal(found.dequantize(), values)
        assert np.isfinite(logits_of_ids(checkpoint, [1, 5, 6])).all()


def logits_of_ids(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    backend = NumpyBackend(checkpoint)
    return backend.forward([Row(backend.new_sequence(8), ids, "all")])[0]


def test_a_code_that_int8_does_not_have_is_refused(tmp_path: Path):
    name = "model.layers.0.mlp.up_proj.weight"
    blocks = np.zeros((64, Q8_0.nbytes), np.uint8)
    blocks[3, 7] = 0x80
    parts = Parts()
    parts.store(stored_name(name), Q8_0, blocks, (64, 32))
    path = parts.write(tmp_path / "model.gguf")
    with (
        open_checkpoint(path, allow_quantized=True) as checkpoint,
        pytest.raises(FormatError, match=r"up_proj\.weight.*holds the code -128"),
    ):
        read_weight(checkpoint, name)


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path):
    name = "model.layers.0.mlp.up_proj.weight"
    blocks = np.zeros((64, Q4_0.nbytes), np.uint8)
    blocks[5, :2] = np.array([np.nan], "<f2").view(np.uint8)
    parts = Parts()
    parts.store(stored_name(name), Q4_0, blocks, (64, 32))
    path = parts.write(tmp_path / "model.gguf")
    with (
        open_checkpoint(path, allow_quantized=True) as checkpoint,
        pytest.raises(FormatError, match=r"up_proj\.weight.*not finite"),
    ):
        read_weight(checkpoint, name)


@pytest.mark.parametrize("scale, is_readable", [(0.01, True), (np.inf, False), (60000.0, False)])
def test_a_q6_k_embedding_is_rounded_once_to_float16(tmp_path: Path, scale: float, is_readable: bool):
    config = replace(CONFIG, hidden_size=256, dim_model_base=64, vocab_size=12)
    blocks = np.random.default_rng(0).integers(0, 256, (12, Q6_K.nbytes), dtype=np.uint8)
    blocks[:, 208:] = np.array([scale], "<f2").view(np.uint8)
    parts = Parts(config)
    parts.store("token_embd.weight", Q6_K, blocks, (12, 256))
    path = parts.write(tmp_path / "model.gguf")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.dtype == "float16"
        if not is_readable:
            with pytest.raises(FormatError, match=r"token_embd\.weight holds numbers that are not finite or too large"):
                checkpoint.read("model.embed_tokens.weight")
            return
        found = checkpoint.read("model.embed_tokens.weight").storage()
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q6_K)
    assert np.array_equal(found, expected.astype(np.float16))
    assert np.abs(found - expected).max() <= 2.0**-11 * np.abs(expected).max()


# --- text --------------------------------------------------------------------------------------------------------


def test_a_file_needs_no_other_to_chat(golden: Path, tmp_path: Path):
    toy = golden / "minicpm2b_tied"
    write_gguf(toy, tmp_path / "model.gguf")
    one, other = LLM(toy, backend="numpy"), LLM(tmp_path / "model.gguf", backend="numpy")
    assert other.template.text == one.template.text
    question = "Which city?\n  1234 你好"
    assert other.tokenizer.encode(one.template.render([{"role": "user", "content": question}])) == one.tokenizer.encode(
        one.template.render([{"role": "user", "content": question}])
    )
    answers = [llm.chat(question, temperature=0, max_tokens=12) for llm in (one, other)]
    assert answers[0].text == answers[1].text
    assert answers[0].ids == answers[1].ids


def test_the_real_tokenizer_survives(real_tokenizer: Path, tmp_path: Path):
    """122,753 pieces, of which 1,086 are the user's: ids are those of the official tokenizer.json."""
    config = replace(CONFIG, vocab_size=122_753, hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    config = replace(config, intermediate_size=32, num_hidden_layers=1)
    folder = write_model(tmp_path / "model", config, random_weights(config))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(real_tokenizer / name, folder)
    write_gguf(folder, tmp_path / "model.gguf", dtype="float16")
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        tokenizer = checkpoint.tokenizer()
    text = "<用户>Which city is the capital of China?<AI>"
    assert tokenizer.encode(text) == [
        1, 1786, 4194, 95388, 28780, 4342, 1410, 1358, 8107, 1379, 6213, 74, 95396, 10850, 95388,
    ]  # fmt: skip
    scores = GgufFile(tmp_path / "model.gguf").metadata["tokenizer.ggml.scores"].items
    assert scores[1345:1348].tolist() == [0, -1, -2]
    assert scores[-1] == -(122_752 - 1345)


def test_pieces_of_the_user_are_marked_where_no_blank_is_put_in_front(folder: Path, tmp_path: Path):
    """llama.cpp puts a blank behind every such piece if it puts one in front of a text: then they stay normal."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for prefix, kind in ((True, 1), (False, 4)):
        (folder / "tokenizer.json").unlink(missing_ok=True)
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_prefix_space": prefix}))
        path = tmp_path / f"{prefix}.gguf"
        write_gguf(folder, path, dtype="float16")
        fields = gguf.GGUFReader(path).fields
        assert fields["tokenizer.ggml.token_type"].contents()[:16] == [3] * 3 + [kind] * 12 + [6]
        assert fields["tokenizer.ggml.add_space_prefix"].contents() is prefix
        with open_checkpoint(path) as checkpoint, open_checkpoint(folder) as source:
            for text in ("<image>", "a <box>1</box>\n b", " x"):
                assert checkpoint.tokenizer().encode(text) == source.tokenizer().encode(text)


def test_tokenizer_files_that_disagree_are_refused(folder: Path, tmp_path: Path):
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"tokenizer\.model, which GGUF carries, differs"):
        write_gguf(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*")) + list(tmp_path.glob(".*"))


def test_an_added_token_far_away_is_refused_before_room_is_made_for_it(folder: Path, tmp_path: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["999999999"] = {"content": "<far>", "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="gives '<far>' the id 999999999"):
        write_gguf(folder, tmp_path / "model.gguf")


def test_ends_and_advice_go_along(folder: Path, tmp_path: Path):
    advice = {"eos_token_id": [2, 7], "temperature": 0.7, "top_k": 40, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(advice))
    write_gguf(folder, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["general.sampling.top_k"].contents() == 40
    assert fields["general.sampling.temp"].contents() == pytest.approx(0.7)
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.eos_token_ids == (2, 7)
    assert LLM(tmp_path / "model.gguf").sampling == SamplingParams(temperature=0.7, top_k=40, top_p=0.9)


@pytest.mark.parametrize(
    "advice",
    [{"do_sample": False, "top_p": 0.5}, {"min_p": 0.05, "repetition_penalty": 1.1}, {"max_new_tokens": 5}, {}],
)
def test_a_file_advises_what_its_folder_does(folder: Path, tmp_path: Path, advice: dict):
    (folder / "generation_config.json").write_text(json.dumps(advice))
    write_gguf(folder, tmp_path / "model.gguf")
    # A GGUF file has no key for the longest answer.
    expected = replace(LLM(folder).sampling, max_tokens=None)
    assert LLM(tmp_path / "model.gguf").sampling == expected


def test_advice_of_a_file_that_cannot_be_followed_names_it(folder: Path, tmp_path: Path):
    (folder / "generation_config.json").write_text('{"temperature": 1000}')
    write_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(FormatError, match=r"model\.gguf: its advice about sampling cannot be followed: temperature"):
        LLM(tmp_path / "model.gguf")


@pytest.mark.parametrize("scaling", [RopeScaling("linear", 2.0), RopeScaling("dynamic", 4.0)])
def test_context_extension_survives(golden: Path, tmp_path: Path, scaling: RopeScaling):
    config = replace(CONFIG, rope_scaling=scaling, rope_theta=4.3e6)
    folder = with_toy_tokenizer(write_model(tmp_path / "m", config, random_weights(config)), golden)
    write_gguf(folder, tmp_path / "model.gguf")
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.config == config


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_row_that_is_no_whole_block_is_refused_by_name(golden: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"embed_tokens.weight has 144 input features, not a multiple of 32, which Q8"):
        write_gguf(golden / "minicpm2b_tied", tmp_path / "model.gguf", dtype="q4_0")


def test_what_cannot_be_written_is_refused_and_leaves_nothing(folder: Path, golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "llama", to="llama")
    no_model = shutil.copytree(folder, tmp_path / "no_model")
    (no_model / "tokenizer.model").unlink()
    for source, dtype, words in (
        (tmp_path / "llama", None, "multiplied into the weights"),
        (no_model, None, "no tokenizer.model"),
    ):
        with pytest.raises(ModelError, match=words):
            write_gguf(source, tmp_path / "out" / "model.gguf", dtype=dtype)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, words", [("model", "ends in .gguf"), ("text.gguf", "GGUF files only")])
def test_a_destination_is_a_new_gguf_file(folder: Path, tmp_path: Path, name: str, words: str):
    (tmp_path / "text.gguf").write_text("a text")
    with pytest.raises(ValueError, match=words):
        write_gguf(folder, tmp_path / name, overwrite=True)
    assert (tmp_path / "text.gguf").read_text() == "a text"


def test_an_existing_file_is_replaced_only_when_forced(folder: Path, tmp_path: Path):
    write_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="already exists"):
        write_gguf(folder, tmp_path / "model.gguf", dtype="q8_0")
    write_gguf(folder, tmp_path / "model.gguf", dtype="q8_0", overwrite=True)
    with open_checkpoint(tmp_path / "model.gguf", allow_quantized=True) as checkpoint:
        assert len(checkpoint.packings) == 15


def test_a_failed_run_keeps_the_file_that_was_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(folder, tmp_path / "model.gguf")
    before = (tmp_path / "model.gguf").read_bytes()
    monkeypatch.setattr("minicpm.export.gguf._check", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_gguf(folder, tmp_path / "model.gguf", dtype="q8_0", overwrite=True)
    assert (tmp_path / "model.gguf").read_bytes() == before
    assert not list(tmp_path.glob(".*.partial"))


def test_what_a_killed_run_left_is_reused(folder: Path, tmp_path: Path):
    (tmp_path / ".model.gguf.partial").write_bytes(b"half" * 1_000_000)
    done = write_gguf(folder, tmp_path / "model.gguf", dtype="q8_0")
    assert (tmp_path / "model.gguf").stat().st_size == done.nbytes < 1_000_000
    assert not (tmp_path / ".model.gguf.partial").exists()


def test_two_runs_to_one_file_do_not_mix(folder: Path, tmp_path: Path):
    with new_file(tmp_path / "model.gguf") as partial:
        with pytest.raises(ModelError, match="another process is writing this model"):
            write_gguf(folder, tmp_path / "model.gguf")
        partial.write_bytes(b"the first one")
    assert (tmp_path / "model.gguf").read_bytes() == b"the first one"


def test_a_byte_that_reads_back_wrong_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from minicpm.export import gguf as writing

    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(-200, 2)
            file.write(b"\xff" * 8)

    monkeypatch.setattr(writing, "forget_cached_pages", spoil)
    with pytest.raises(FormatError, match="reads back with other bytes"):
        write_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
