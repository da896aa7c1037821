"""Damaged and hostile files: each gives one typed error naming file and field, fast, without running or reading more.

Every case takes a folder with a valid tiny model and spoils it.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minicpm.errors import FormatError, MiniCPMError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.safetensors import SafetensorsFile
from minicpm.formats.torch_bin import TorchFile

Spoil = Callable[[Path], None]
CASES: dict[str, tuple[Spoil, str]] = {}  # name -> what spoils the folder, words of the message
WEIGHTS, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
NORM = "model.norm.weight"
LIMIT_S = 6.0  # several times what a linear reader takes; a quadratic one takes hours


def case(words: str) -> Callable[[Spoil], Spoil]:
    def register(spoil: Spoil) -> Spoil:
        CASES[spoil.__name__] = (spoil, words)
        return spoil

    return register


# --- config.json -------------------------------------------------------------------------------------------------


def config_case(name: str, changes: dict[str, Any], words: str) -> None:
    def spoil(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, **changes}))

    CASES[f"config_{name}"] = (spoil, words)


config_case("negative_hidden_size", {"hidden_size": -16}, "hidden_size")
config_case("huge_hidden_size", {"hidden_size": 1 << 40}, "hidden_size")
config_case("huge_layer_count", {"num_hidden_layers": 1 << 40}, "num_hidden_layers")
config_case("zero_layers", {"num_hidden_layers": 0}, "num_hidden_layers")
config_case("huge_vocabulary", {"vocab_size": 1 << 62}, "vocab_size")
config_case("heads_that_do_not_divide", {"num_attention_heads": 3}, "num_attention_heads")
config_case("groups_that_do_not_divide", {"num_key_value_heads": 3}, "num_key_value_heads")
config_case("text_for_a_number", {"intermediate_size": "24"}, "intermediate_size")
config_case("true_for_a_number", {"num_hidden_layers": True}, "num_hidden_layers")
config_case("list_for_a_number", {"hidden_size": [16]}, "hidden_size")
config_case("infinite_scale", {"scale_emb": float("inf")}, "scale_emb")
config_case("nan_scale", {"scale_depth": float("nan")}, "scale_depth")
config_case("zero_eps", {"rms_norm_eps": 0}, "rms_norm_eps")
config_case("negative_theta", {"rope_theta": -1.0}, "rope_theta")
config_case("unknown_rope", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn")
config_case("rope_as_text", {"rope_scaling": "dynamic"}, "rope_scaling")
config_case("rope_without_factor", {"rope_scaling": {"type": "linear"}}, "factor")
config_case("foreign_family", {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "not a MiniCPM")
config_case("tie_as_text", {"tie_word_embeddings": "yes"}, "tie_word_embeddings")
config_case("negative_token_id", {"bos_token_id": -5}, "bos_token_id")
config_case("more_layers_than_stored", {"num_hidden_layers": 3}, "model.layers.2")
config_case("fewer_layers_than_stored", {"num_hidden_layers": 1}, "model.layers.1")
config_case("another_vocabulary", {"vocab_size": 41}, "model.embed_tokens.weight has shape")
config_case("quantized", {"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes")


@case("not valid JSON")
def config_nested_ten_thousand_deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 10_000 + "]" * 10_000)


@case("not valid JSON")
def config_number_of_a_million_digits(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": ' + "9" * 900_000 + "}")


@case("expected at most 1,048,576")
def config_of_a_hundred_megabytes(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(100 << 20)


@case("not valid JSON")
def config_empty(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"")


@case("not valid JSON")
def config_binary(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\0" * 100)


@case("expected an object")
def config_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


@case("config.json: no such file")
def config_missing(folder: Path) -> None:
    (folder / "config.json").unlink()


@case("not a regular file")
def config_a_named_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


@case("symbolic link out of the model folder")
def config_a_link_to_elsewhere(folder: Path) -> None:
    outside = folder.parent / "secret.json"
    (folder / "config.json").rename(outside)
    (folder / "config.json").symlink_to(outside)


@case("loop of symbolic links")
def config_a_link_to_itself(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


@case("symbolic link out of the model folder")
def tokenizer_a_link_to_elsewhere(folder: Path) -> None:
    (folder / "tokenizer.json").symlink_to("/etc/passwd")


# --- generation_config.json --------------------------------------------------------------------------------------

GENERATION = "generation_config.json"


def generation_case(name: str, content: bytes, words: str) -> None:
    CASES[f"generation_{name}"] = (lambda folder: (folder / GENERATION).write_bytes(content) and None, words)


generation_case("that_is_no_json", b"{'eos_token_id': 2}", "not valid JSON")
generation_case("that_is_a_list", b"[2]", "expected an object")
generation_case("that_is_too_deep", b"[" * 100_000, "not valid JSON")
generation_case("that_is_too_long", b" " * ((1 << 20) + 1), GENERATION)
generation_case("end_as_text", b'{"eos_token_id": "</s>"}', "eos_token_id")
generation_case("end_with_escapes", b'{"eos_token_id": "\\u001b[31m"}', "eos_token_id")
generation_case("end_that_is_true", b'{"eos_token_id": true}', "eos_token_id")
generation_case("end_that_is_a_fraction", b'{"eos_token_id": 2.0}', "eos_token_id")
generation_case("negative_end", b'{"eos_token_id": [2, -1]}', "from 0 to 39")
generation_case("end_beyond_the_vocabulary", b'{"eos_token_id": 40}', "from 0 to 39")
generation_case("end_of_many_digits", b'{"eos_token_id": 1' + b"0" * 4000 + b"}", "eos_token_id")
generation_case("nested_ends", b'{"eos_token_id": [[2]]}', "eos_token_id")
generation_case("too_many_ends", json.dumps({"eos_token_id": [2] * 100_000}).encode(), "at most 256")


@case("out of the model folder")
def generation_config_outside(folder: Path) -> None:
    (folder.parent / "secret.json").write_text('{"eos_token_id": 3}')
    (folder / GENERATION).symlink_to(folder.parent / "secret.json")


# --- safetensors -------------------------------------------------------------------------------------------------


def header_case(name: str, change: Callable[[dict[str, Any]], None], words: str) -> None:
    """Rewrite the JSON header and leave the data alone."""

    def spoil(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        change(header)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[start:])

    CASES[f"safetensors_{name}"] = (spoil, words)


def of_norm(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[NORM].update(changes)


header_case("huge_axis", of_norm(shape=[1 << 62]), "impossible length")
header_case("axes_whose_product_overflows", of_norm(shape=[1 << 32, 1 << 32, 4]), "takes")
header_case("negative_axis", of_norm(shape=[-16]), "impossible length")
header_case("fractional_axis", of_norm(shape=[16.0]), "impossible length")
header_case("true_as_an_axis", of_norm(shape=[True] * 2), "impossible length")
header_case("a_hundred_axes", of_norm(shape=[1] * 100), "a shape is a list")
header_case("shape_as_text", of_norm(shape="16"), "a shape is a list")
header_case("unknown_dtype", of_norm(dtype="F8_E4M3"), "dtype 'F8_E4M3'")
header_case("dtype_as_list", of_norm(dtype=["F32"]), "dtype")
header_case("wrong_dtype_for_its_bytes", of_norm(dtype="F64"), "takes")
header_case("integer_weights", of_norm(dtype="I32"), "is int32; expected")
header_case("negative_offset", of_norm(data_offsets=[-64, 0]), "data_offsets")
header_case("swapped_offsets", lambda h: h[NORM]["data_offsets"].reverse(), "data_offsets")
header_case("three_offsets", of_norm(data_offsets=[0, 1, 2]), "data_offsets")
header_case("huge_offsets", of_norm(data_offsets=[1 << 60, (1 << 60) + 64]), "gap")
header_case("overlap", lambda h: h[NORM].update(data_offsets=[0, 64]), "overlaps")
header_case("extra_field", of_norm(code="import os"), "exactly dtype, shape and data_offsets")
header_case("entry_that_is_a_number", lambda h: h.update({NORM: 7}), "exactly dtype, shape and data_offsets")
header_case("metadata_with_objects", lambda h: h.update(__metadata__={"a": {}}), "__metadata__")
header_case("tensor_missing", lambda h: h.update({"model.other": h.pop(NORM)}), "model.norm.weight is missing")
header_case("control_characters_in_a_name", lambda h: h.update({"\x1b[2J\n": h.pop(NORM)}), "missing")


@case("unexpected")
def safetensors_with_one_tensor_too_many(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}, folder / WEIGHTS)


@case("truncated")
def safetensors_truncated_data(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


@case("truncated")
def safetensors_truncated_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


@case("byte too long")
def safetensors_trailing_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0")


@case("empty")
def safetensors_empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


@case("no safetensors file")
def safetensors_of_five_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"hello")


@case("not a safetensors file")
def safetensors_huge_header_length(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 8 + b"{}")


@case("not a safetensors file")
def safetensors_header_of_a_hundred_megabytes(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.write((100 << 20).to_bytes(8, "little") + b"{")
        file.truncate(101 << 20)


@case("twice")
def safetensors_duplicate_key(folder: Path) -> None:
    entry = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    text = f"{{{entry},{entry}}}".encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + b"\0")


@case("not valid JSON")
def safetensors_nested_header(folder: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


@case("not valid JSON")
def safetensors_number_of_a_million_digits(folder: Path) -> None:
    text = b'{"a":{"dtype":"U8","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,1]}}'
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


@case("not a safetensors file")
def safetensors_that_is_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Tripwire(folder)))


@case("not a safetensors file")
def safetensors_that_is_a_torch_zip(folder: Path) -> None:
    torch.save({"a": torch.zeros(4)}, folder / WEIGHTS)


@case("not a regular file")
def safetensors_that_is_a_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


@case("not a regular file")
def safetensors_that_is_a_named_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@case("symbolic link out of the model folder")
def safetensors_that_is_a_link_to_a_device(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


@case("no weights")
def no_weights_at_all(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


# --- the index of shards -----------------------------------------------------------------------------------------


def sharded(folder: Path) -> tuple[Path, dict[str, str]]:
    """Split the folder's weights into two shards; the index path and its weight_map."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = list(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in halves.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder / INDEX, weight_map


def index_case(name: str, target: object, words: str) -> None:
    """One tensor's file in the index is `target`."""

    def spoil(folder: Path) -> None:
        index, weight_map = sharded(folder)
        index.write_text(json.dumps({"weight_map": {**weight_map, NORM: target}}))

    CASES[f"index_{name}"] = (spoil, words)


index_case("parent_folder", "../outside.safetensors", "expected the name of a .safetensors file")
index_case("absolute_path", "/etc/outside.safetensors", "expected the name of a .safetensors file")
index_case("subfolder_and_back", "x/../../outside.safetensors", "expected the name of a .safetensors file")
index_case("backslashes", "..\\outside.safetensors", "expected the name of a .safetensors file")
index_case("drive", "C:outside.safetensors", "expected the name of a .safetensors file")
index_case("nul_byte", "a\0.safetensors", "expected the name of a .safetensors file")
index_case("new_line", "a\n.safetensors", "expected the name of a .safetensors file")
index_case("number", 7, "expected the name of a .safetensors file")
index_case("null", None, "expected the name of a .safetensors file")
index_case("empty_name", "", "expected the name of a .safetensors file")
index_case("name_of_ten_thousand", "a" * 10_000 + ".safetensors", "expected the name of a .safetensors file")
index_case("the_index_itself", INDEX, "expected the name of a .safetensors file")
index_case("another_format", "pytorch_model.bin", "expected the name of a .safetensors file")
index_case("missing_shard", "model-00003-of-00002.safetensors", "model-00003-of-00002.safetensors: no such file")


@case("as well as in")
def index_tensor_in_two_shards(folder: Path) -> None:
    _, weight_map = sharded(folder)
    other = next(file for file in weight_map.values() if file != weight_map[NORM])
    held = load_file(folder / other)
    save_file({**held, NORM: torch.zeros(16)}, folder / other)


@case("should be in")
def index_that_names_the_wrong_shard(folder: Path) -> None:
    _, weight_map = sharded(folder)
    held = load_file(folder / weight_map[NORM])
    del held[NORM]
    save_file(held, folder / weight_map[NORM])


@case("not in weight_map")
def index_that_lacks_a_tensor(folder: Path) -> None:
    index, weight_map = sharded(folder)
    del weight_map[NORM]
    index.write_text(json.dumps({"weight_map": weight_map}))


@case("twice")
def index_duplicate_key(folder: Path) -> None:
    index, weight_map = sharded(folder)
    entries = ",".join(f'"{NORM}":"{file}"' for file in sorted(set(weight_map.values())))
    index.write_text(f'{{"weight_map":{{{entries}}}}}')


@case("symbolic link out of the model folder")
def index_shard_is_a_link_to_elsewhere(folder: Path) -> None:
    _, weight_map = sharded(folder)
    shard = folder / weight_map[NORM]
    outside = folder.parent / "elsewhere.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


@case("a symbolic link to nothing")
def index_shard_is_a_dangling_link(folder: Path) -> None:
    _, weight_map = sharded(folder)
    (folder / weight_map[NORM]).unlink()
    (folder / weight_map[NORM]).symlink_to("nothing")


@case("loop of symbolic links")
def index_shards_are_a_cycle_of_links(folder: Path) -> None:
    _, weight_map = sharded(folder)
    one, other = (folder / name for name in sorted(set(weight_map.values())))
    one.unlink()
    other.unlink()
    one.symlink_to(other.name)
    other.symlink_to(one.name)


@case("more than any model's")
def index_of_ten_thousand_files(folder: Path) -> None:
    index, _ = sharded(folder)
    index.write_text(json.dumps({"weight_map": {f"t{i}": f"s{i}.safetensors" for i in range(10_000)}}))


@case("weight_map must be an object")
def index_without_a_weight_map(folder: Path) -> None:
    index, _ = sharded(folder)
    index.write_text("{}")


@case("expected an object")
def index_a_list(folder: Path) -> None:
    index, _ = sharded(folder)
    index.write_text("[]")


@case("not valid JSON")
def index_nested(folder: Path) -> None:
    index, _ = sharded(folder)
    index.write_text('{"weight_map":' * 50_000)


@case("expected at most 16,777,216")
def index_of_a_hundred_megabytes(folder: Path) -> None:
    index, _ = sharded(folder)
    with index.open("r+b") as file:
        file.truncate(100 << 20)


# --- torch's zip and its pickle ----------------------------------------------------------------------------------


class Tripwire:
    """Whoever unpickles this creates a file."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.folder.parent}/TRIPPED'",)


def torch_zip(folder: Path, pickled: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> None:
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / BIN, "w", **options) as archive:
        archive.writestr("m/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"m/data/{key}", data)


def tensor_pickle(
    *, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, elements: int = 4, key: str = "0"
) -> bytes:
    """{"a": tensor} with the given layout, in text opcodes' binary cousins."""

    def number(value: int) -> bytes:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(elements) + b"tQ"
    arguments = b"(" + storage + number(offset) + numbers(shape) + numbers(stride) + b"\x89}t"
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def tensor_case(name: str, words: str, **layout: Any) -> None:
    CASES[f"bin_{name}"] = (lambda folder: torch_zip(folder, tensor_pickle(**layout), {"0": bytes(16)}), words)


tensor_case("tensor_past_its_storage", "larger than its storage", shape=(5,))
tensor_case("tensor_of_2_to_the_60", "larger than its storage", shape=(1 << 30, 1 << 30), stride=(0, 0))
tensor_case("huge_axis", "impossible length", shape=(1 << 47,), stride=(0,))
tensor_case("negative_axis", "impossible length", shape=(-4,))
tensor_case("negative_stride", "impossible length", stride=(-1,))
tensor_case("stride_past_the_end", "reaches outside", shape=(2,), stride=(1000,))
tensor_case("offset_past_the_end", "reaches outside", offset=1)
tensor_case("negative_offset", "reaches outside", offset=-1)
tensor_case("absurd_number", "absurdly large", offset=1 << 80)
tensor_case("strides_of_another_length", "different length", stride=(1, 1))
tensor_case("storage_larger_than_the_file", "its storage should have", elements=1 << 40)
tensor_case("storage_that_is_missing", "is missing from the file", key="1")
tensor_case("storage_that_is_a_path", "is missing from the file", key="../../../../etc/passwd")
tensor_case("expanded_tensor", "larger than its storage", shape=(1 << 20,), stride=(0,))


def pickle_case(name: str, pickled: bytes, words: str) -> None:
    CASES[f"pickle_{name}"] = (lambda folder: torch_zip(folder, pickled), words)


pickle_case("calls_eval", b"\x80\x02cbuiltins\neval\nX\x01\0\0\0001\x85R.", "asks for 'builtins.eval'")
pickle_case("stacked_global", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.", "asks for 'os.system'")
pickle_case("instance", b"\x80\x02(cos\nsystem\nX\x02\0\0\0ido.", "asks for 'os.system'")
pickle_case("inst_opcode", b"\x80\x02(X\x02\0\0\0idios\nsystem\n.", "opcode INST")
pickle_case("newobj", b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ")
pickle_case("extension_registry", b"\x80\x02\x82\x01.", "opcode EXT1")
pickle_case("next_buffer", b"\x80\x05\x97.", "opcode NEXT_BUFFER")
pickle_case("torch_load_inside", b"\x80\x02ctorch.serialization\nload\n.", "torch.serialization.load")
pickle_case("dotted_global", b"\x80\x02ctorch\nFloatStorage.__reduce__\n.", "asks for")
pickle_case("numpy_object_array", b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", "asks for")
pickle_case("ordered_dict_of_pairs", b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "unexpected arguments")
pickle_case("storage_called", b"\x80\x02ctorch\nFloatStorage\n)R.", "unexpected arguments")
pickle_case("storage_of_an_unknown_kind", b"\x80\x02(X\x07\0\0\0storagetQ.", "not a storage")
pickle_case("attributes_of_a_list", b"\x80\x02]}b.", "attributes for a list")
pickle_case("empty", b"", "damaged")
pickle_case("without_an_end", b"\x80\x02}", "damaged")
pickle_case("pop_opcode", b"\x80\x02N0.", "opcode POP")
pickle_case("stack_underflow", b"\x80\x02\x85.", "damaged")
pickle_case("reduce_of_nothing", b"\x80\x02R.", "damaged")
pickle_case("tuple_without_a_mark", b"\x80\x02t.", "damaged")
pickle_case("memo_that_was_never_set", b"\x80\x02h\x07.", "damaged")
pickle_case("unknown_opcode", b"\x80\x02\xf0.", "damaged")
pickle_case("protocol_of_the_future", b"\x80\x63}.", "protocol 99")
pickle_case("truncated_string", b"\x80\x02X\xff\xff\xff\x7fabc", "damaged")
pickle_case("long_of_two_gigabytes", b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged")
pickle_case("invalid_text", b"\x80\x02X\x02\0\0\0\xff\xfe.", "damaged")
pickle_case("two_values", b"\x80\x02}}.", "more than one value")
pickle_case("dict_that_holds_itself", b"\x80\x02}q\0X\x01\0\0\0ah\0s.", "expected a dict of tensors by name")
pickle_case("tuple_a_million_deep_as_a_key", b"\x80\x02}" + b")" + b"\x85" * 400_000 + b"K\1s.", "as a key")
pickle_case("a_million_opcodes", b"\x80\x02" + b"]" * 1_000_000 + b".", "opcodes")
pickle_case("key_twice", b"\x80\x02}(X\x01\0\0\0aNX\x01\0\0\0aNu.", "twice")
pickle_case("too_big", b"\x80\x02" + b"N" * (9 << 20) + b".", "more than any model's")
pickle_case("doubling_tuples", b"\x80\x02]q\0" + b"h\0h\0\x86q\0" * 1000 + b".", "more than one value")


@case("asks for 'posix.system'")
def pickle_that_calls_os_system(folder: Path) -> None:
    torch_zip(folder, pickle.dumps({"a": Tripwire(folder)}, protocol=2))


@case("asks for 'posix.system'")
def pickle_that_calls_os_system_beside_good_tensors(folder: Path) -> None:
    weights: dict[str, Any] = dict(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    torch.save({**weights, "extra": Tripwire(folder)}, folder / BIN)


@case("not a torch zip checkpoint")
def bin_that_is_a_bare_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / BIN).write_bytes(pickle.dumps(Tripwire(folder)))


@case("before 1.6")
def bin_of_an_old_torch_with_a_payload(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"a": Tripwire(folder)}, folder / BIN, _use_new_zipfile_serialization=False)


@case("not a torch zip checkpoint")
def bin_that_is_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / BIN)


@case("is compressed")
def zip_bomb(folder: Path) -> None:
    torch_zip(folder, tensor_pickle(elements=25 << 20), {"0": bytes(100 << 20)}, compression=zipfile.ZIP_DEFLATED)


def spoiled_zip(name: str, change: Callable[[bytearray], None], words: str) -> None:
    def spoil(folder: Path) -> None:
        torch_zip(folder, tensor_pickle(), {"0": bytes(16)})
        content = bytearray((folder / BIN).read_bytes())
        change(content)
        (folder / BIN).write_bytes(content)

    CASES[f"zip_{name}"] = (spoil, words)


def patch(marker: bytes, at: int, data: bytes, last: bool = False) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        start = (content.rfind(marker) if last else content.find(marker)) + at
        content[start : start + len(data)] = data

    return change


def half(content: bytearray) -> None:
    del content[len(content) // 2 :]


ENTRY, END = b"PK\x01\x02", b"PK\x05\x06"
spoiled_zip("truncated", half, "truncated")
spoiled_zip("with_trailing_bytes", lambda content: content.extend(b"tail"), "damaged zip directory")
spoiled_zip("size_past_the_end", patch(ENTRY, 20, b"\xff\xff\xff\x7f" * 2), "reaches outside the file")
spoiled_zip("two_different_sizes", patch(ENTRY, 24, b"\x01\0\0\0"), "has two sizes")
spoiled_zip("offset_past_the_end", patch(ENTRY, 42, b"\xff\xff\xff\x7f"), "begins outside the file")
spoiled_zip("offset_of_another_entry", patch(ENTRY, 42, b"\0\0\0\0", last=True), "damaged header")
spoiled_zip("encrypted", patch(ENTRY, 8, b"\x01\0"), "encrypted")
spoiled_zip("two_disks", patch(END, 4, b"\x01\0"), "damaged zip directory")
spoiled_zip("more_entries_than_there_are", patch(END, 8, b"\x09\0\x09\0"), "fewer entries than it claims")
spoiled_zip("a_directory_past_the_end", patch(END, 12, b"\0\xff\xff\0"), "damaged zip directory")
spoiled_zip("zip64_without_its_record", patch(END, 16, b"\xff\xff\xff\xff"), "damaged zip64 directory")
spoiled_zip("local_header_damaged", patch(b"PK\x03\x04", 0, b"PK\x03\x05", last=True), "damaged header")


@case("overlap")
def zip_with_overlapping_entries(folder: Path) -> None:
    """The outer entry's content is a whole local entry of its own, as in quoted-overlap zip bombs."""
    torch_zip(folder, tensor_pickle(), {"0": bytes(16)})
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("m/data/0", bytes(16))
    local = inner.getvalue()[: inner.getvalue().find(ENTRY)]
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("m/data.pkl", tensor_pickle())
        archive.writestr("m/outer", local)
        outer = archive.getinfo("m/outer")
        hidden = zipfile.ZipInfo("m/data/0")
        hidden.file_size, hidden.compress_size, hidden.CRC = 16, 16, 0
        hidden.header_offset = outer.header_offset + 30 + len("m/outer")
        archive.filelist.append(hidden)


@case("appears twice")
def zip_with_an_entry_twice(folder: Path) -> None:
    torch_zip(folder, tensor_pickle(), {"0": bytes(16)})
    with zipfile.ZipFile(folder / BIN, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("m/data/0", bytes(16))


@case("exactly one NAME/data.pkl")
def zip_that_is_no_checkpoint(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("readme.txt", "hello")


@case("byte order")
def zip_of_a_big_endian_machine(folder: Path) -> None:
    torch_zip(folder, tensor_pickle(), {"0": bytes(16)})
    with zipfile.ZipFile(folder / BIN, "a") as archive:
        archive.writestr("m/byteorder", "big")


# --- the tests ---------------------------------------------------------------------------------------------------

_opened: list[str] | None = None
FORBIDDEN_EVENTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect"}


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            _opened.append(os.fsdecode(arguments[0]))
        elif event in FORBIDDEN_EVENTS:
            _opened.append(f"!{event}")


sys.addaudithook(_watch)  # cannot be removed; it listens only while `watched` is open


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """Every path opened while the fixture lives, and a '!event' for every attempt to run something."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


def test_the_corpus_is_large():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_gives_one_clear_error(model_folder: Callable[..., Path], watched: list[str], name: str):
    spoil, words = CASES[name]
    folder = model_folder()
    spoil(folder)
    watched.clear()
    start_s = time.process_time()
    with pytest.raises(MiniCPMError) as caught:
        open_checkpoint(folder)
    elapsed_s = time.process_time() - start_s
    message = str(caught.value)
    assert words in message
    assert str(folder) in message, "the message must name the file"
    assert message.isprintable(), "a file must not write control characters to the terminal"
    assert len(message) < 1000
    # CPU time, so that a busy machine does not count; a quadratic reader does.
    assert elapsed_s < LIMIT_S
    assert not (folder.parent / "TRIPPED").exists()
    outside = [path for path in watched if path.startswith("!") or not is_inside(path, folder)]
    assert not outside


def is_inside(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder) or path.endswith((".py", ".pyc", ".so"))


def test_the_watch_sees_what_it_should(model_folder: Callable[..., Path], watched: list[str]):
    folder = model_folder()
    watched.clear()
    (folder.parent / "other").write_text("x")
    os.system("true")
    pickle.loads(pickle.dumps(collections.Counter()))
    assert str(folder.parent / "other") in watched
    assert "!os.system" in watched
    assert "!pickle.find_class" in watched


FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module")
def valid_safetensors(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / WEIGHTS
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, path, metadata={"format": "pt"})
    return path.read_bytes()


@pytest.fixture(scope="module")
def valid_bin(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / BIN
    torch.save({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, path)
    return path.read_bytes()


EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=0, max_size=4)), min_size=1, max_size=4)


def edited(content: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    """Overwrite bytes here and there; an empty edit cuts the file."""
    data = bytearray(content)
    for position, replacement in edits:
        at = position % max(1, len(data))
        if replacement:
            data[at : at + len(replacement)] = replacement
        else:
            del data[at:]
    return bytes(data)


def reads_or_refuses(reader: Callable[[Path], SafetensorsFile | TorchFile], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        file = reader(path)
    except FormatError:
        return
    for name, info in file.tensors.items():
        assert len(bytes(file.read(name).buffer)) == info.nbytes
    file.close()


@FUZZ
@given(edits=EDITS)
def test_a_damaged_safetensors_reads_or_is_refused(tmp_path: Path, valid_safetensors: bytes, edits: list):
    reads_or_refuses(SafetensorsFile, tmp_path / "fuzz.safetensors", edited(valid_safetensors, edits))


@FUZZ
@given(header=st.binary(max_size=200), data=st.binary(max_size=50))
def test_a_random_safetensors_header_reads_or_is_refused(tmp_path: Path, header: bytes, data: bytes):
    content = (len(header) + 1).to_bytes(8, "little") + b"{" + header + data
    reads_or_refuses(SafetensorsFile, tmp_path / "fuzz.safetensors", content)


@FUZZ
@given(edits=EDITS)
def test_a_damaged_torch_file_reads_or_is_refused(tmp_path: Path, valid_bin: bytes, edits: list):
    reads_or_refuses(TorchFile, tmp_path / "fuzz.bin", edited(valid_bin, edits))


OPCODES = st.lists(
    st.one_of(
        st.sampled_from(
            [bytes([opcode]) for opcode in b"()]}N\x88\x89t\x85\x86\x87RbsuaeQ\x94\x93"]
            + [b"q\0", b"h\0", b"K\1", b"X\1\0\0\0a", b"X\7\0\0\0storage"]
            + [b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]
        ),
        st.binary(min_size=1, max_size=3),
    ),
    max_size=30,
)


@FUZZ
@given(opcodes=OPCODES)
def test_a_random_pickle_reads_or_is_refused(tmp_path: Path, opcodes: list[bytes]):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + b"".join(opcodes) + b".")
        archive.writestr("m/data/a", bytes(16))
    reads_or_refuses(TorchFile, tmp_path / "fuzz.bin", buffer.getvalue())
