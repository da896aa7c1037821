"""Folders and weights that are not a model of ours: opened, or named for what they are with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicpm.errors import FormatError, MiniCPMError, ModelError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.tokenizer import Tokenizer
from small_gguf import Parts

ModelFolder = Callable[..., Path]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5450\n"


def touch(folder: Path, *names: str, text: str = "{}") -> Path:
    """A folder with small files; a name that ends in a slash is a folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text(text)
    return folder


# What lies in a folder -> words of the error.
FOLDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a PEFT adapter": (("adapter_config.json", "adapter_model.safetensors"), ("PEFT adapter", "merge_and_unload")),
    "a finished run": (("run.json", "model/x", "final/config.json"), ("training run", "give its model", "final")),
    "an unfinished run": (("run.json", "checkpoints/step-00000002/config.json"), ("not finished", "--resume")),
    "a trainer's output": (
        ("training_args.bin", "checkpoint-20/config.json", "checkpoint-100/config.json"),
        ("output of a trainer", "2 checkpoints", "checkpoint-100"),
    ),
    "a cached repository": (
        ("blobs/", "refs/main", "snapshots/0123abc/config.json"),
        ("Hugging Face cache", "snapshots/0123abc"),
    ),
    "an empty cached repository": (("refs/main", "snapshots/"), ("Hugging Face cache", "give the name openbmb/toy")),
    "a whole cache": (("models--openbmb--MiniCPM-2B-sft-bf16/refs/main",), ("cache", "openbmb/MiniCPM-2B-sft-bf16")),
    "a DeepSpeed checkpoint": (("latest", "zero_to_fp32.py", "global_step4/"), ("DeepSpeed", "zero_to_fp32.py")),
    "an FSDP checkpoint": ((".metadata", "__0_0.distcp"), ("FSDP", "merge-weights")),
    "a folder of models": (("one/config.json", "two/model.gguf", "notes.txt"), ("'one', 'two'", "give one of these")),
    "Meta's files": (("params.json", "consolidated.00.pth"), ("Meta", "Hugging Face's format")),
    "nothing": ((), ("config.json", "no such file")),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_without_a_model_is_named(tmp_path: Path, what: str):
    files, words = FOLDERS[what]
    folder = tmp_path / "models--openbmb--toy" if "cached" in what else tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(MiniCPMError) as caught:
        open_checkpoint(touch(folder, *files))
    assert str(caught.value).startswith(str(folder))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_checkpoints_of_a_run_lead_to_its_model(tmp_path: Path):
    run = touch(tmp_path / "run", "run.json", "checkpoints/step-00000002/config.json", "final/config.json")
    with pytest.raises(ModelError, match=r"give its model: .*final"):
        open_checkpoint(run / "checkpoints")


def test_an_adapter_names_its_model(tmp_path: Path):
    touch(tmp_path, "adapter_config.json", text='{"base_model_name_or_path": "openbmb/MiniCPM-2B-sft-bf16"}')
    with pytest.raises(ModelError, match="adapter of 'openbmb/MiniCPM-2B-sft-bf16'"):
        open_checkpoint(tmp_path)


def test_an_adapter_beside_a_configuration_is_named(model_folder: ModelFolder):
    folder = model_folder()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    touch(folder, "adapter_config.json")
    with pytest.raises(FormatError, match="PEFT adapter"):
        open_checkpoint(folder)


def test_a_weight_file_leads_to_its_folder(model_folder: ModelFolder):
    folder = model_folder()
    with pytest.raises(ModelError, match=f"here {folder}"):
        open_checkpoint(folder / "model.safetensors")


# --- weights -----------------------------------------------------------------------------------------------------


def floats(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32)


def words(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.uint32)


Parted = dict[str, Callable[[tuple[int, ...]], np.ndarray]]
# What a tool stores in place of a matrix, by what follows its name without ".weight".
MATRICES: dict[str, tuple[Parted, str]] = {
    "GPTQ": ({".qweight": words, ".qzeros": words, ".scales": floats, ".g_idx": words}, "GPTQ"),
    "AWQ": ({".qweight": words, ".qzeros": words, ".scales": floats}, "AWQ"),
    "MLX": ({".weight": words, ".scales": floats, ".biases": floats}, "MLX"),
    "bitsandbytes": ({".weight": words, ".weight.absmax": floats, ".weight.quant_map": floats}, "bitsandbytes"),
    "bitsandbytes int8": ({".weight": words, ".SCB": floats}, "bitsandbytes"),
    "HQQ": ({".W_q": words, ".meta": floats}, "HQQ"),
    "AQLM": ({".codes": words, ".codebooks": floats, ".scales": floats}, "codebooks"),
    "quanto": ({".weight._data": words, ".weight._scale": floats}, "quanto"),
    "float8": ({".weight": floats, ".weight_scale_inv": floats}, "8 bits"),
    "compressed-tensors": (
        {".weight_packed": words, ".weight_scale": floats, ".weight_shape": words},
        "no quantization_config",
    ),
    "PEFT unmerged": (
        {".base_layer.weight": floats, ".lora_A.default.weight": floats, ".lora_B.default.weight": floats},
        "merge_and_unload",
    ),
    "PEFT alone": ({".lora_A.weight": floats, ".lora_B.weight": floats}, "PEFT adapter"),
}


@pytest.mark.parametrize("tool", MATRICES)
def test_weights_of_another_tool_are_named(model_folder: ModelFolder, tool: str):
    """As they are met most often: config.json says nothing about them."""
    parts, word = MATRICES[tool]
    folder = model_folder()
    stored = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = values
            continue
        stem = name.removesuffix(".weight")
        stored.update({stem + part: make((4, 4)) for part, make in parts.items()})
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(FormatError, match=word):
        open_checkpoint(folder, allow_quantized=True)


def shards(folder: Path, names: list[str]) -> Path:
    """The weights of a folder in as many files, without an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for i, name in enumerate(names):
        save_file(dict(list(weights.items())[i :: len(names)]), folder / name)
    return folder


def test_shards_without_an_index_open(model_folder: ModelFolder, tiny: DecoderConfig):
    folder = shards(model_folder("model"), [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)])
    with open_checkpoint(folder) as checkpoint, open_checkpoint(model_folder("whole")) as whole:
        assert list(checkpoint.tensors) == list(tiny.parameter_shapes())
        for name in whole.tensors:
            assert np.array_equal(whole.read(name).float32(), checkpoint.read(name).float32())


def test_missing_shards_are_named_by_number(model_folder: ModelFolder):
    folder = shards(model_folder(), [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)])
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FormatError, match="shard 2 of 3 is missing"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(model_folder: ModelFolder):
    folder = shards(model_folder(), ["model-00001-of-00002.safetensors"])
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(FormatError, match="in another shard as well"):
        open_checkpoint(folder)


def test_a_weight_file_under_another_name_is_shown(model_folder: ModelFolder):
    folder = model_folder()
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    touch(folder, "training_args.bin")
    with pytest.raises(FormatError, match=r"found 'model\.fp16\.safetensors'.*name it model\.safetensors"):
        open_checkpoint(folder)


# --- pointers of Git LFS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_named(model_folder: ModelFolder, name: str):
    folder = model_folder()
    (folder / name).write_text(POINTER)
    with pytest.raises(FormatError, match=r"Git LFS.*git lfs pull") as caught:
        open_checkpoint(folder)
    assert caught.value.path == folder / name


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_that_is_a_pointer_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(FormatError, match="Git LFS"):
        Tokenizer.from_folder(tmp_path)


def test_a_gguf_file_that_is_a_pointer_is_named(tmp_path: Path):
    (tmp_path / "model.gguf").write_text(POINTER)
    with pytest.raises(FormatError, match="Git LFS"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_small_file_that_only_begins_alike_is_no_pointer(model_folder: ModelFolder):
    folder = model_folder(note=POINTER.partition("/v1")[0])
    assert json.loads((folder / "config.json").read_text())["note"].startswith("version")
    open_checkpoint(folder).close()


# --- GGUF files that are no model ----------------------------------------------------------------------------------


def test_a_gguf_file_of_a_vocabulary_is_named(tmp_path: Path):
    parts = Parts()
    parts.tensors.clear()
    with pytest.raises(FormatError, match="vocabulary"):
        open_checkpoint(parts.write(tmp_path / "vocab.gguf"))
