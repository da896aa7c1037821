"""The GGUF container and a model's metadata: damage is one error sentence, never a crash or exhausted memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicpm.errors import FormatError, MiniCPMError, ModelError
from minicpm.formats import gguf_blocks
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import F32, Q4_0, Q6_K, Q8_0, BlockType, Field, GgufFile, ValueType
from minicpm.formats.gguf_model import stored_name
from small_gguf import PIECES, Parts
from small_models import ONE_BLOCK

Spoil = Callable[[Parts], object]
GGUF_TYPES = {
    Q4_0.id: gguf.GGMLQuantizationType.Q4_0,
    Q8_0.id: gguf.GGMLQuantizationType.Q8_0,
}


@pytest.fixture
def parts() -> Parts:
    return Parts()


# --- blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Q4_0, Q8_0], ids=lambda kind: kind.name)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_rounding_gives_the_bytes_of_ggml(kind: BlockType, data: st.DataObject):
    seed, exponent = data.draw(st.integers(0, 1 << 32)), data.draw(st.integers(-40, 8))
    random = np.random.default_rng(seed)
    values = random.standard_normal((6, 96), np.float32) * np.float32(2.0**exponent)
    values[1] = 0
    values[2, 5] *= 100  # an outlier
    values[3] = random.integers(-8, 8, 96)  # halves and ties of magnitude
    values[4] = values[4, 0]
    assert np.array_equal(gguf_blocks.quantize(values, kind), gguf.quants.quantize(values, GGUF_TYPES[kind.id]))


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e9], ids=str)
@pytest.mark.parametrize("kind", [Q4_0, Q8_0], ids=lambda kind: kind.name)
def test_numbers_beyond_a_scale_are_refused(kind: BlockType, bad: float):
    values = np.ones((2, 64), np.float32)
    values[1, 40] = bad
    with pytest.raises(ModelError, match="not finite or too large"):
        gguf_blocks.quantize(values, kind)


@pytest.mark.parametrize("kind", [Q4_0, Q8_0], ids=lambda kind: kind.name)
def test_blocks_to_codes_and_back_is_identity(kind: BlockType):
    blocks = np.random.default_rng(0).integers(0, 256, (5, 3 * kind.nbytes), dtype=np.uint8)
    packed, scales = gguf_blocks.packed_codes(blocks, kind), gguf_blocks.scales_of(blocks, kind)
    assert np.array_equal(gguf_blocks.from_packed(packed, scales, kind), blocks)


# --- damage and malice -------------------------------------------------------------------------------------------


def opened(path: Path) -> None:
    """Everything that using a file touches."""
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        checkpoint.tokenizer().encode("ab abc\n")
        checkpoint.chat_template()
        for name in checkpoint.tensors:
            checkpoint.read(name)


def test_the_unspoiled_file_opens(parts: Parts, tmp_path: Path):
    opened(parts.write(tmp_path / "model.gguf"))


def drop(*keys: str) -> Spoil:
    def spoil(parts: Parts) -> None:
        for key in keys:
            del parts.fields[key]

    return spoil


def change(key: str, value: object) -> Spoil:
    return lambda parts: parts.set(key, value)


def add(key: str, kind: ValueType, value: object) -> Spoil:
    return lambda parts: parts.put(key, kind, value)


def many(key: str) -> Spoil:
    return lambda parts: parts.fields.update({key: Field(key, ValueType.ARRAY, [4] * 100, ValueType.UINT32)})


def text(key: str) -> Spoil:
    return lambda parts: parts.put(key, ValueType.STRING, "four")


def without(name: str) -> Spoil:
    return lambda parts: parts.tensors.pop(name)


def extra(name: str) -> Spoil:
    return lambda parts: parts.store(name, F32, np.zeros(32, np.float32), (32,))


def stored_as(name: str, kind: BlockType, *shape: int) -> Spoil:
    return lambda parts: parts.store(name, kind, np.zeros(kind.size(shape), np.uint8), shape)


SPOILED: dict[str, tuple[Spoil, str]] = {
    "another_family": (change("general.architecture", "qwen2"), "architecture is 'qwen2'"),
    "no_architecture": (drop("general.architecture"), "architecture is None"),
    "a_mixture": (add("minicpm.expert_count", ValueType.UINT32, 8), "mixture of experts"),
    "no_mup_keys": (
        drop("minicpm.embedding_scale", "minicpm.residual_scale", "minicpm.logit_scale"),
        "minicpm.embedding_scale and minicpm.residual_scale and minicpm.logit_scale are missing.*convert it again",
    ),
    "no_logit_scale": (drop("minicpm.logit_scale"), "minicpm.logit_scale is missing"),
    "zero_scale": (change("minicpm.residual_scale", 0.0), "residual_scale must be a positive number"),
    "infinite_scale": (change("minicpm.embedding_scale", np.inf), "embedding_scale must be a positive number"),
    "text_for_a_scale": (text("minicpm.logit_scale"), "logit_scale must be a positive number"),
    "broken_logit_scale": (change("minicpm.logit_scale", 1.7), "is not embedding_length 32 over a whole number"),
    "no_layers": (change("minicpm.block_count", 0), "num_hidden_layers"),
    "a_million_layers": (change("minicpm.block_count", 1_000_000), "num_hidden_layers"),
    "text_for_heads": (text("minicpm.attention.head_count"), "num_attention_heads"),
    "many_heads": (many("minicpm.attention.head_count"), "num_attention_heads.*an array of 100"),
    "many_architectures": (many("general.architecture"), "architecture is an array of 100"),
    "many_types": (many("general.type"), "general.type is an array of 100"),
    "many_alignments": (many("general.alignment"), "general.alignment is an array of 100"),
    "many_vocabularies": (many("minicpm.vocab_size"), "vocab_size"),
    "many_scales": (many("minicpm.logit_scale"), "logit_scale must be a positive number"),
    "many_head_dims": (many("minicpm.rope.dimension_count"), "dimension_count is an array of 100, expected 8"),
    "many_experts": (many("minicpm.expert_count"), "mixture of experts"),
    "many_scalings": (many("minicpm.rope.scaling.type"), "rope_scaling type an array of 100"),
    "many_ends": (many("tokenizer.ggml.eos_token_id"), "eos_token_id.*an array of 100"),
    "many_tokenizers": (many("tokenizer.ggml.model"), "tokenizer.ggml.model is an array of 100"),
    "many_templates": (many("tokenizer.chat_template"), "chat_template must be a text, got an array of 100"),
    "a_text_for_tokens": (text("tokenizer.ggml.tokens"), "the file has no tokenizer|vocab_size"),
    "numbers_for_tokens": (many("tokenizer.ggml.tokens"), "the file has no tokenizer"),
    "no_heads": (drop("minicpm.attention.head_count"), "minicpm.attention.head_count is missing"),
    "no_key_heads": (change("minicpm.attention.head_count_kv", 0), "head_count_kv is 0"),
    "another_head_dim": (change("minicpm.rope.dimension_count", 4), "rope.dimension_count is 4, expected 8"),
    "nan_theta": (change("minicpm.rope.freq_base", np.nan), "rope_theta"),
    "yarn": (add("minicpm.rope.scaling.type", ValueType.STRING, "yarn"), "yarn"),
    "more_layers_than_stored": (change("minicpm.block_count", 3), "model.layers.2.*missing"),
    "fewer_layers_than_stored": (change("minicpm.block_count", 1), "blk.1.*not a tensor of the MiniCPM"),
    "another_vocabulary": (change("minicpm.vocab_size", 13), "embed_tokens.weight has shape"),
    "a_part": (add("split.count", ValueType.UINT16, 3), "one of 3 parts"),
    "an_adapter": (add("general.type", ValueType.STRING, "adapter"), "general.type is 'adapter'"),
    "a_missing_norm": (without("output_norm.weight"), "model.norm.weight is missing"),
    "an_unknown_tensor": (extra("blk.0.attn_q.bias"), "attn_q.bias.*not a tensor of the MiniCPM"),
    "biases": (extra("blk.0.attn_k.bias"), "projections with biases are not supported"),
    "rope_factors": (extra("rope_freqs.weight"), "rope scaling by a factor for each frequency .llama3, longrope"),
    "an_expert": (extra("blk.0.ffn_gate_inp.weight"), "mixtures of experts are not supported"),
    "a_sliding_window": (
        add("minicpm.attention.sliding_window", ValueType.UINT32, 16),
        "sliding_window is 16, but this version computes full attention only",
    ),
    "a_quantized_norm": (stored_as("output_norm.weight", Q8_0, 32), "Q8_0, but not a matrix"),
    "a_cube": (stored_as("blk.0.ffn_up.weight", Q4_0, 2, 32, 32), "Q4_0, but not a matrix"),
    "a_wider_matrix": (stored_as("blk.0.attn_v.weight", Q6_K, 16, 256), "v_proj.weight is stored as|v_proj.weight has"),
    "alignment_of_three": (add("general.alignment", ValueType.UINT32, 3), "general.alignment is 3"),
    "alignment_of_zero": (add("general.alignment", ValueType.UINT32, 0), "general.alignment is 0"),
    "alignment_as_text": (add("general.alignment", ValueType.STRING, "32"), "general.alignment is '32'"),
    "another_alignment": (add("general.alignment", ValueType.UINT32, 512), "starts at .*expected 512|each at a mult"),
    "another_tokenizer": (change("tokenizer.ggml.model", "gpt2"), "expected 'llama'"),
    "an_unknown_tokenizer": (change("tokenizer.ggml.model", "bert"), "is 'bert', expected 'llama' .* or 'gpt2'"),
    "no_tokens": (drop("tokenizer.ggml.tokens"), "the file has no tokenizer"),
    "no_scores": (drop("tokenizer.ggml.scores"), "tokenizer.ggml.scores must be 12 numbers"),
    "dead_scores": (change("tokenizer.ggml.scores", [-1000.0] * 12), "all scores of its tokenizer are -1000.*again"),
    "too_few_scores": (change("tokenizer.ggml.scores", [0.0] * 11), "must be 12 numbers"),
    "a_score_that_is_none": (change("tokenizer.ggml.scores", [np.nan] * 12), "one that is no number"),
    "an_unknown_piece_type": (change("tokenizer.ggml.token_type", [9] * 12), "no type of a piece"),
    "a_piece_twice": (change("tokenizer.ggml.tokens", [*PIECES[:-1], "a"]), "names a piece twice"),
    "an_empty_piece": (change("tokenizer.ggml.tokens", [*PIECES[:-1], ""]), "texts of 1 to 256"),
    "an_endless_piece": (change("tokenizer.ggml.tokens", [*PIECES[:-1], "x" * 300]), "texts of 1 to 256"),
    "a_bos_beyond": (change("tokenizer.ggml.bos_token_id", 12), "bos_token_id is 12"),
    "an_eos_beyond": (change("tokenizer.ggml.eos_token_id", 999), "eos_token_id is 999"),
    "a_bos_flag_as_text": (add("tokenizer.ggml.add_bos_token", ValueType.STRING, "yes"), "must be true or false"),
    "a_template_as_number": (add("tokenizer.chat_template", ValueType.UINT32, 1), "chat_template must be a text"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_says_what_cannot_be_is_refused_in_a_sentence(name: str, parts: Parts, tmp_path: Path):
    spoil, words = SPOILED[name]
    spoil(parts)
    path = parts.write(tmp_path / "model.gguf")
    with pytest.raises((FormatError, ModelError), match=words) as caught:
        opened(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def replace(data: bytes) -> bytes:
        assert data.count(old) >= 1
        return data.replace(old, new, 1)

    return replace


def at(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + new + data[offset + len(new) :]


def key(name: str, kind: int, *rest: int) -> bytes:
    """A key, its value's type and what follows, as 64-bit numbers."""
    return name.encode() + struct.pack("<I", kind) + b"".join(struct.pack("<Q", n) for n in rest)


NORM = b"output_norm.weight"
NORM_ENTRY = NORM + struct.pack("<IQI", 1, 32, 0)
EMBEDDING = b"token_embd.weight"
TOKENS = b"tokenizer.ggml.tokens" + struct.pack("<II", 9, 8)
SCORES = b"tokenizer.ggml.scores" + struct.pack("<I", 9)
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "empty"),
    "three_bytes": (lambda data: data[:3], "not a GGUF file"),
    "another_magic": (at(0, b"GGML"), "not a GGUF file"),
    "version_1": (at(4, struct.pack("<I", 1)), "of version 1"),
    "version_99": (at(4, struct.pack("<I", 99)), "of version 99"),
    "big_endian": (at(4, struct.pack(">I", 3)), "big-endian"),
    "only_magic": (lambda data: data[:8], "truncated"),
    "countless_tensors": (at(8, struct.pack("<Q", 1 << 62)), "tensors, expected at most"),
    "countless_keys": (at(16, struct.pack("<Q", 1 << 62)), "metadata keys, expected at most"),
    "more_keys_than_there": (at(16, struct.pack("<Q", 4000)), "model.gguf"),
    "an_endless_key": (at(24, struct.pack("<Q", 1 << 62)), "a metadata key has"),
    "an_endless_text": (
        replaced(b"architecture" + struct.pack("<IQ", 8, 7), b"architecture" + struct.pack("<IQ", 8, 1 << 62)),
        "general.architecture' has",
    ),
    "a_text_beyond_the_file": (
        replaced(b"architecture" + struct.pack("<IQ", 8, 7), b"architecture" + struct.pack("<IQ", 8, 1 << 20)),
        "truncated",
    ),
    "a_text_that_is_none": (replaced(b"minicpm", b"minic\xff\xff"), "not UTF-8"),
    "an_unknown_value_type": (replaced(SCORES, SCORES[:-4] + struct.pack("<I", 77)), "unknown type 77"),
    "an_array_of_arrays": (replaced(SCORES + b"\6", SCORES + b"\t"), "array of arrays"),
    "a_countless_array": (replaced(TOKENS, TOKENS + struct.pack("<Q", 1 << 60)), "values of 'tokenizer.ggml.tokens'"),
    "a_long_array": (replaced(TOKENS + b"\x0c\0\0", TOKENS + b"\0\0\x10"), "tokenizer.ggml.tokens|truncated"),
    "a_key_twice": (replaced(b"ggml.scores", b"ggml.tokens"), "names 'tokenizer.ggml.tokens' twice"),
    "a_name_twice": (replaced(b"blk.1.attn_q", b"blk.0.attn_q"), "two tensors are called 'blk.0.attn_q.weight'"),
    "no_axes": (replaced(NORM + b"\1", NORM + b"\0"), "has 0 axes"),
    "five_axes": (replaced(NORM + b"\1", NORM + b"\5"), "has 5 axes"),
    "an_axis_of_nothing": (replaced(NORM_ENTRY, NORM + struct.pack("<IQI", 1, 0, 0)), "impossible length"),
    "an_endless_axis": (replaced(NORM_ENTRY, NORM + struct.pack("<IQI", 1, 1 << 62, 0)), "impossible length"),
    "an_axis_beyond_the_file": (replaced(NORM_ENTRY, NORM + struct.pack("<IQI", 1, 1 << 39, 0)), "truncated"),
    "axes_whose_product_overflows": (
        replaced(EMBEDDING + struct.pack("<IQQ", 2, 32, 12), EMBEDDING + struct.pack("<IQQ", 2, 1 << 40, 1 << 24)),
        "truncated",
    ),
    "an_unknown_tensor_type": (replaced(NORM_ENTRY, NORM + struct.pack("<IQI", 1, 32, 200)), "unknown type 200"),
    "an_unread_type": (replaced(NORM_ENTRY, NORM + struct.pack("<IQI", 1, 32, 21)), "weight' is IQ3_S; this"),
    "no_whole_k_blocks": (replaced(NORM_ENTRY, NORM + struct.pack("<IQI", 1, 32, 12)), "32 are no whole Q4_K blocks"),
    "no_whole_blocks": (replaced(NORM_ENTRY, NORM + struct.pack("<IQI", 1, 33, 2)), "no whole Q4_0 blocks"),
    "an_offset_beyond": (replaced(NORM_ENTRY, NORM_ENTRY + struct.pack("<Q", 1 << 62)), "starts at"),
    "half_the_data": (lambda data: data[: len(data) // 2], "truncated"),
    "the_last_byte_missing": (lambda data: data[:-1], "truncated"),
    "a_byte_more": (lambda data: data + b"\0", "1 byte too long"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_a_sentence(name: str, parts: Parts, tmp_path: Path):
    spoil, words = DAMAGED[name]
    path = parts.write(tmp_path / "model.gguf")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(FormatError, match=words) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"second", b"sec\xffnd", "a string of 'some.texts' is not UTF-8 text"),
        (b"second", "secön".encode()[:-1] + b"\xc3", "a string of 'some.texts' is not UTF-8 text"),
        (struct.pack("<Q", 6) + b"second", struct.pack("<Q", 1 << 40) + b"second", "a string of 'some.texts' has"),
        (struct.pack("<Q", 6) + b"second", struct.pack("<Q", 1 << 25) + b"second", "truncated"),
        (
            struct.pack("<Q", 6) + b"second",
            struct.pack("<Q", (1 << 64) - 1) + b"second",
            "a string of 'some.texts' has",
        ),
    ],
    ids=["no text", "cut letter", "longer than any file", "longer than this file", "longest"],
)
def test_a_damaged_string_of_an_array_is_named(parts: Parts, tmp_path: Path, old: bytes, new: bytes, words: str):
    parts.fields["some.texts"] = Field("some.texts", ValueType.ARRAY, ["first", "second", "third"], ValueType.STRING)
    path = parts.write(tmp_path / "model.gguf")
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    with pytest.raises(FormatError, match=words):
        GgufFile(path)


def test_an_array_that_ends_with_the_file_is_truncated(parts: Parts, tmp_path: Path):
    parts.fields["some.texts"] = Field("some.texts", ValueType.ARRAY, ["first", "second", "third"], ValueType.STRING)
    path = parts.write(tmp_path / "model.gguf")
    data = path.read_bytes()
    start = data.index(struct.pack("<Q", 6) + b"second")
    for stop in (start, start + 5, start + 8, start + 13):
        path.write_bytes(data[:stop])
        with pytest.raises(FormatError, match="truncated"):
            GgufFile(path)


def test_a_long_array_of_short_strings_does_not_fill_the_memory(parts: Parts, tmp_path: Path):
    """Eight bytes in the file must not become a hundred in memory."""
    parts.fields["many"] = Field("many", ValueType.ARRAY, [], ValueType.STRING)
    path = parts.write(tmp_path / "model.gguf")
    data = path.read_bytes()
    start = data.index(b"many") + len(b"many") + 8
    with path.open("wb") as file:
        file.write(data[:start] + struct.pack("<Q", 3_000_000))
        file.truncate(start + 8 + 8 * 3_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="more than 1,048,576 strings"):
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_refused_or_read_in_bounded_memory(tmp_path: Path, data: st.DataObject):
    good = tmp_path / "good.gguf"
    whole = (good if good.exists() else Parts().write(good)).read_bytes()
    spoiled = bytearray(whole)
    header = whole.rindex(b"output_norm.weight") + 40
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(0, header))
        new = data.draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\1", b"\0" * 8, b"\xff" * 8, b"\x08\0\0\0"]))
        spoiled[offset : offset + len(new)] = new
    keep = data.draw(st.one_of(st.just(len(spoiled)), st.integers(0, len(spoiled))))
    path = tmp_path / "bad.gguf"
    path.write_bytes(spoiled[:keep])
    tracemalloc.start()
    try:
        opened(path)
    except MiniCPMError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


# --- what is read ------------------------------------------------------------------------------------------------


def test_numbers_are_read_as_they_were_meant(parts: Parts, tmp_path: Path):
    with open_checkpoint(parts.write(tmp_path / "model.gguf")) as checkpoint:
        assert checkpoint.config == ONE_BLOCK
        assert (checkpoint.format, checkpoint.eos_token_ids) == ("gguf", (2,))
    metadata = GgufFile(tmp_path / "model.gguf").metadata
    assert metadata["minicpm.attention.layer_norm_rms_epsilon"] == 1e-6


def test_a_llama_file_is_a_minicpm_whose_scales_are_one(parts: Parts, tmp_path: Path):
    for key in [key for key in parts.fields if key.startswith("minicpm.")]:
        field = parts.fields.pop(key)
        if not key.endswith("_scale"):
            parts.put(key.replace("minicpm", "llama"), field.type, field.value)
    parts.set("general.architecture", "llama")
    with open_checkpoint(parts.write(tmp_path / "model.gguf")) as checkpoint:
        config = checkpoint.config
        assert (config.scale_emb, config.residual_scale, config.logit_scale) == (1.0, 1.0, 1.0)


def test_padding_of_the_vocabulary_is_no_text(parts: Parts, tmp_path: Path):
    parts.set("tokenizer.ggml.tokens", [*PIECES[:-1], "[PAD11]"])
    parts.set("tokenizer.ggml.token_type", [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 5])
    with open_checkpoint(parts.write(tmp_path / "model.gguf")) as checkpoint:
        tokenizer = checkpoint.tokenizer()
    assert tokenizer.vocab_size == 11
    assert tokenizer.decode([5, 11, 6]) == "ab"


def test_the_prefix_blank_is_the_files_to_decide(parts: Parts, tmp_path: Path):
    with open_checkpoint(parts.write(tmp_path / "default.gguf")) as checkpoint:
        assert checkpoint.tokenizer().encode("ab") == [1, 10]
    parts.put("tokenizer.ggml.add_space_prefix", ValueType.BOOL, False)
    parts.put("tokenizer.ggml.add_bos_token", ValueType.BOOL, False)
    with open_checkpoint(parts.write(tmp_path / "without.gguf")) as checkpoint:
        assert checkpoint.tokenizer().encode("ab") == [8]


def test_the_second_end_of_text_is_read_too(parts: Parts, tmp_path: Path):
    parts.put("tokenizer.ggml.eot_token_id", ValueType.UINT32, 7)
    with open_checkpoint(parts.write(tmp_path / "model.gguf")) as checkpoint:
        assert checkpoint.eos_token_ids == (2, 7)


def test_a_file_without_tokenizer_opens_and_says_so_when_asked(parts: Parts, tmp_path: Path):
    for key in [key for key in parts.fields if key.startswith("tokenizer.")]:
        parts.fields.pop(key)
    with open_checkpoint(parts.write(tmp_path / "model.gguf")) as checkpoint:
        assert checkpoint.tokenizer_files == ()
        with pytest.raises(FormatError, match=r"tokenizer\.ggml\.model is None"):
            checkpoint.tokenizer()


def test_a_folder_with_one_gguf_file_alone_is_that_file(parts: Parts, tmp_path: Path):
    parts.write(tmp_path / "model.gguf")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "model.gguf"
    parts.write(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files; give one of them, e\.g\. 'model\.gguf'"):
        open_checkpoint(tmp_path)


def test_quantized_weights_are_refused_where_they_are_not_expected(parts: Parts, tmp_path: Path):
    name = stored_name("model.layers.0.mlp.up_proj.weight")
    parts.store(name, Q4_0, np.zeros(Q4_0.size((64, 32)), np.uint8), (64, 32))
    with pytest.raises(ModelError, match="its weights are quantized"):
        open_checkpoint(parts.write(tmp_path / "model.gguf"))


def test_a_file_is_recognised_by_its_content(tmp_path: Path):
    (tmp_path / "model.gguf").write_text("a text")
    with pytest.raises(FormatError, match="not a GGUF file"):
        open_checkpoint(tmp_path / "model.gguf")
