"""Conversion between formats: golden results, round trips, and the state after a kill, a full disk or bad arguments."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minicpm.errors import FormatError, MiniCPMError, ModelError
from minicpm.export import convert as convert_module
from minicpm.export import hf_folder
from minicpm.export.convert import convert
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.config import DecoderConfig, RopeScaling

ModelFolder = Callable[..., Path]
ALL_GOLDEN = ["minicpm2b_tied", "minicpm2b_tied_bf16_bin", "minicpm2b_untied_sharded"]
FORMS = ["hf", "llama", "granite", "vllmcpm"]


def contents(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (info.dtype, info.shape, bytes(checkpoint.read(name).buffer)) for name, info in checkpoint.tensors.items()
    }


def assert_same_model(one: Path, other: Path) -> None:
    with open_checkpoint(one) as a, open_checkpoint(other) as b:
        assert a.config == b.config
        assert contents(a) == contents(b)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- vLLM-CPM against the 2024 script ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "manifest", "hash_key"),
    [
        ("minicpm2b_tied", "manifest.json", "sha256"),
        ("minicpm2b_tied_bf16_bin", "manifest_bf16_bin.json", "sha256_raw_bytes"),
    ],
)
def test_vllmcpm_weights_equal_those_of_the_2024_script(
    golden: Path, tmp_path: Path, source: str, manifest: str, hash_key: str
):
    expected = json.loads((golden / "convert_vllmcpm" / manifest).read_text())
    convert(golden / source, tmp_path / "out", to="vllmcpm")
    loaded = torch.load(tmp_path / "out" / expected["checkpoint_file"], weights_only=True)
    assert list(loaded) == expected["key_order"]
    for entry in expected["tensors"]:
        tensor = loaded[entry["key"]]
        assert str(tensor.dtype).removeprefix("torch.") == entry["dtype"]
        assert list(tensor.shape) == entry["shape"]
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(data).hexdigest() == entry[hash_key]


def test_vllmcpm_has_the_files_of_the_2024_script(golden: Path, tmp_path: Path):
    expected = json.loads((golden / "convert_vllmcpm" / "manifest.json").read_text())
    convert(golden / "minicpm2b_tied", tmp_path / "out", to="vllmcpm")
    assert files(tmp_path / "out") == expected["files"]
    for name in set(expected["files"]) - {"config.json", expected["checkpoint_file"]}:
        assert (tmp_path / "out" / name).read_bytes() == (golden / "minicpm2b_tied" / name).read_bytes()


def test_vllmcpm_config_differs_from_the_2024_script_only_where_that_was_wrong(golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "out", to="vllmcpm")
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads((golden / "convert_vllmcpm" / "expected_config.json").read_text())
    assert list(ours) == list(theirs)
    wrong = {key: ours[key] for key in theirs if ours[key] != theirs[key]}
    assert wrong == {"_dtype": "fp32", "dim_model_base": 64, "orig_max_length": 2048}


def test_vllmcpm_config_of_minicpm_2b_is_byte_for_byte_that_of_2024(real_configs: Path):
    from minicpm.formats.config import read_config_json
    from minicpm.formats.vllmcpm import write_config

    config = DecoderConfig.from_dict(read_config_json(real_configs / "MiniCPM-2B-sft-bf16" / "config.json"))
    expected = (real_configs / "MiniCPM-2B-vllmcpm" / "config.json").read_text()
    assert json.dumps(write_config(config), indent=4) == expected.rstrip("\n")


def test_vllmcpm_keeps_the_head_of_an_untied_model(golden: Path, tmp_path: Path):
    source = golden / "minicpm2b_untied_sharded"
    convert(source, tmp_path / "out", to="vllmcpm")
    loaded = torch.load(tmp_path / "out" / "pytorch_model.pt", weights_only=True)
    assert list(loaded)[-1] == "lm_head.weight"
    (shard,) = (path for path in source.glob("*.safetensors") if "lm_head.weight" in load_file(path))
    assert torch.equal(loaded["lm_head.weight"], load_file(shard)["lm_head.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_lm_head"] is False


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["hf", "granite", "vllmcpm"])
@pytest.mark.parametrize("source", ALL_GOLDEN)
def test_a_form_that_keeps_the_weights_converts_back_to_the_same_bytes(
    golden: Path, tmp_path: Path, source: str, form: str
):
    convert(golden / source, tmp_path / "there", to=form)
    convert(tmp_path / "there", tmp_path / "back", to="hf")
    assert_same_model(golden / source, tmp_path / "back")


@pytest.mark.parametrize(("source", "bound"), list(zip(ALL_GOLDEN, [2**-24, 2**-8, 2**-24])))
def test_llama_converts_back_up_to_its_two_roundings(golden: Path, tmp_path: Path, source: str, bound: float):
    convert(golden / source, tmp_path / "there", to="llama")
    convert(tmp_path / "there", tmp_path / "back", to="hf")
    with open_checkpoint(golden / source) as a, open_checkpoint(tmp_path / "back") as b:
        assert a.config == b.config
        for name in a.tensors:
            expected, found = a.read(name).float32(), b.read(name).float32()
            assert np.all(np.abs(expected - found) <= 2.1 * bound * np.abs(expected)), name


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_every_form_converts_to_every_other(golden: Path, tmp_path: Path, first: str, second: str):
    source = golden / "minicpm2b_untied_sharded"
    convert(source, tmp_path / "a", to=first)
    done = convert(tmp_path / "a", tmp_path / "b", to=second)
    assert (done.source_format, done.format) == (first, second)
    with open_checkpoint(tmp_path / "b") as converted, open_checkpoint(source) as original:
        assert converted.format == second
        norm = "model.layers.1.post_attention_layernorm.weight"
        assert bytes(converted.read(norm).buffer) == bytes(original.read(norm).buffer)


def test_constants_survive_a_chain_through_every_form(model_folder: ModelFolder, tiny: DecoderConfig, tmp_path: Path):
    config = replace(
        tiny,
        scale_depth=1.37,
        scale_emb=11.5,
        dim_model_base=4,
        rope_theta=12345.5,
        rope_scaling=RopeScaling("dynamic", 4.0),
        rms_norm_eps=3e-5,
        initializer_range=0.07,
        bos_token_id=5,
        eos_token_id=(6, 7),
        pad_token_id=0,
    )
    here = model_folder(config=config)
    for step, form in enumerate(["vllmcpm", "granite", "llama", "vllmcpm", "llama", "granite", "hf"]):
        there = tmp_path / f"step{step}"
        convert(here, there, to=form)
        here = there
    with open_checkpoint(here) as checkpoint:
        assert checkpoint.config == config


def test_llama_has_the_scales_inside_the_weights(golden: Path, tmp_path: Path):
    source = golden / "minicpm2b_tied"
    expected = load_file(source / "model.safetensors")
    convert(source, tmp_path / "out", to="llama")
    found = load_file(tmp_path / "out" / "model.safetensors")
    factors = {"model.embed_tokens.weight": 12.0}  # scale_emb; the branches have 1.4 / sqrt(4 layers)
    factors |= {name: 0.7 for name in expected if name.endswith(("o_proj.weight", "down_proj.weight"))}
    for name, tensor in expected.items():
        assert torch.equal(found[name], (tensor.double() * factors.get(name, 1.0)).float()), name
    head = expected["model.embed_tokens.weight"].double() * (64 / 144)  # dim_model_base / hidden_size
    assert torch.equal(found["lm_head.weight"], head.float())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert not {"scale_emb", "scale_depth", "dim_model_base"} & config.keys()


def test_llama_twice_folds_once(golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "once", to="llama")
    convert(tmp_path / "once", tmp_path / "twice", to="llama")
    assert_same_model(tmp_path / "once", tmp_path / "twice")
    assert (tmp_path / "once" / "config.json").read_text() == (tmp_path / "twice" / "config.json").read_text()


def test_a_folded_head_that_was_trained_apart_stays_its_own(golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "llama", to="llama")
    path = tmp_path / "llama" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][500, 3] += 0.5
    save_file(weights, path, metadata={"format": "pt"})
    convert(tmp_path / "llama", tmp_path / "back", to="hf")
    with open_checkpoint(tmp_path / "back") as checkpoint:
        assert not checkpoint.config.tie_word_embeddings
        logit_scale = checkpoint.config.logit_scale
        head = checkpoint.read("lm_head.weight").float32()
    np.testing.assert_allclose(head * logit_scale, weights["lm_head.weight"].numpy(), rtol=1e-6)


# --- dtypes, shards, files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_rounded_as_torch_rounds_them(golden: Path, tmp_path: Path, dtype: str):
    expected = load_file(golden / "minicpm2b_tied" / "model.safetensors")
    convert(golden / "minicpm2b_tied", tmp_path / "out", to="hf", dtype=dtype)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype)))


@pytest.mark.parametrize("as_bin", [False, True], ids=["safetensors", "bin"])
def test_shards_stay_below_their_limit_and_hold_the_model(golden: Path, tmp_path: Path, as_bin: bool):
    limit = 700_000
    convert(golden / "minicpm2b_tied", tmp_path / "out", to="hf", max_shard_bytes=limit, as_bin=as_bin)
    suffix = ".bin" if as_bin else ".safetensors"
    shards = sorted((tmp_path / "out").glob(f"*{suffix}"))
    index = json.loads(next((tmp_path / "out").glob("*.index.json")).read_text())
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert len(shards) > 3
    assert all(path.stat().st_size < limit + 10_000 for path in shards)
    assert_same_model(golden / "minicpm2b_tied", tmp_path / "out")


def test_a_tensor_above_the_shard_limit_gets_a_file_of_its_own(golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied", tmp_path / "out", to="hf", max_shard_bytes=1)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 38


def test_torch_reads_a_written_bin(golden: Path, tmp_path: Path):
    convert(golden / "minicpm2b_tied_bf16_bin", tmp_path / "out", to="hf", as_bin=True)
    expected = torch.load(golden / "minicpm2b_tied_bf16_bin" / "pytorch_model.bin", weights_only=True)
    found = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_granite_weights_are_the_very_bytes(golden: Path, tmp_path: Path):
    expected = load_file(golden / "minicpm2b_tied" / "model.safetensors")
    convert(golden / "minicpm2b_tied", tmp_path / "out", to="granite")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_new_folder_shares_no_inode_with_its_source(golden: Path, tmp_path: Path):
    """A trainer that saves in place would otherwise write into the source model."""
    convert(golden / "minicpm2b_tied", tmp_path / "out", to="granite")
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "out").iterdir())


def test_tokenizer_generation_config_and_licence_go_along(golden: Path, tmp_path: Path):
    shutil.copytree(golden / "minicpm2b_tied", tmp_path / "source")
    for name in ("LICENSE", "MiniCPM Model License.md", "modeling_minicpm.py", "trainer_state.json"):
        (tmp_path / "source" / name).write_text(name)
    convert(tmp_path / "source", tmp_path / "out", to="hf")
    assert files(tmp_path / "out") == [
        "LICENSE",
        "MiniCPM Model License.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


def test_foreign_code_in_the_config_does_not_survive(model_folder: ModelFolder, tmp_path: Path):
    evil = {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation_internal": "evil/kernel"}
    convert(model_folder(**evil), tmp_path / "out", to="hf")
    assert "evil" not in (tmp_path / "out" / "config.json").read_text()


def test_values_beyond_float16_are_refused_by_name(model_folder: ModelFolder, tmp_path: Path):
    folder = model_folder()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = 70_000.0
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.norm.weight: values up to 7e\+04 do not fit float16"):
        convert(folder, tmp_path / "out", to="hf", dtype="float16")
    assert not (tmp_path / "out").exists()


# --- arguments that cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("model", "source and destination are the same"),
        ("model/inside", "inside the source"),
        (".", "current folder|inside the destination"),
        ("full", "already exists"),
        ("file", "not a folder"),
        ("dangling", "symbolic link to nothing"),
    ],
)
def test_an_impossible_destination_is_refused_before_anything_is_written(
    model_folder: ModelFolder, tmp_path: Path, destination: str, words: str
):
    source = model_folder()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nothing")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words):
        convert(source, tmp_path / destination, to="granite")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "changes",
    [{"to": "gguf"}, {"dtype": "int8"}, {"max_shard_bytes": 0}, {"to": "vllmcpm", "as_bin": True}],
    ids=str,
)
def test_an_impossible_option_is_a_value_error(model_folder: ModelFolder, tmp_path: Path, changes: dict):
    with pytest.raises(ValueError):
        convert(model_folder(), tmp_path / "out", **{"to": "hf", **changes})
    assert not (tmp_path / "out").exists()


def test_a_missing_source_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="no such folder"):
        convert(tmp_path / "nothing", tmp_path / "out", to="hf")


def test_force_replaces_a_model_folder_whole(model_folder: ModelFolder, tmp_path: Path):
    old = model_folder("old", safe=False)
    (old / "leftover.txt").write_text("x")
    convert(model_folder("new"), old, to="granite", overwrite=True)
    assert files(old) == ["config.json", "model.safetensors"]
    assert files(tmp_path) == ["new", "old"]


@pytest.mark.parametrize("what", ["no model", "a model with a subfolder"])
def test_force_does_not_replace_what_is_no_model_folder(model_folder: ModelFolder, tmp_path: Path, what: str):
    home = model_folder("home") if what != "no model" else tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    with pytest.raises(ValueError, match="model folders only"):
        convert(model_folder("new"), home, to="hf", overwrite=True)
    assert (home / "photos").is_dir()


def test_an_empty_destination_folder_is_filled(model_folder: ModelFolder, tmp_path: Path):
    (tmp_path / "out").mkdir()
    convert(model_folder(), tmp_path / "out", to="hf")
    assert_same_model(tmp_path / "model", tmp_path / "out")


# --- accidents ---------------------------------------------------------------------------------------------------


def test_too_little_disk_is_noticed_before_writing(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = model_folder()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ModelError, match=r"needs \d+ bytes of disk, 10 are free"):
        convert(source, tmp_path / "out", to="hf")
    assert files(tmp_path) == ["model"]


@pytest.mark.parametrize("to", ["hf", "vllmcpm"])
def test_a_disk_that_fills_up_leaves_nothing(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
):
    source = model_folder()
    whole = convert_module.released

    def failing(checkpoint: Checkpoint, name: str, factor: float, dtype: str):
        if name == "model.layers.1.mlp.up_proj.weight":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(checkpoint, name, factor, dtype)

    monkeypatch.setattr(convert_module, "released", failing)
    with pytest.raises(ModelError, match="the disk is full"):
        convert(source, tmp_path / "out", to=to)
    assert files(tmp_path) == ["model"]


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/shm").is_dir(), reason="mounting a small disk needs root")
@pytest.mark.parametrize("to", ["hf", "vllmcpm"])
def test_a_really_full_disk_leaves_nothing(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount")
    try:
        monkeypatch.setattr(hf_folder, "require_disk", lambda *arguments: None)
        with pytest.raises(ModelError, match="the disk is full"):
            convert(golden / "minicpm2b_tied", small / "out", to=to)
        assert files(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_bytes_that_change_on_the_disk_are_noticed(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def flip(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))

    source = model_folder()
    monkeypatch.setattr(hf_folder, "forget_cached_pages", flip)
    with pytest.raises(FormatError, match="other bytes than were written"):
        convert(source, tmp_path / "out", to="hf")
    assert files(tmp_path) == ["model"]


def test_two_runs_to_one_destination_do_not_mix(model_folder: ModelFolder, tmp_path: Path):
    from minicpm.export.destination import new_folder

    source = model_folder()
    with new_folder(tmp_path / "out") as partial:
        (partial / "mine").write_text("x")
        with pytest.raises(ModelError, match="another process"):
            convert(source, tmp_path / "out", to="hf")
        assert (partial / "mine").exists()
    assert files(tmp_path / "out") == ["mine"]


@pytest.fixture(scope="module")
def larger_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 MB in float32, mostly one embedding, as in small models."""
    config = DecoderConfig(
        vocab_size=60_000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        scale_emb=12,
        scale_depth=1.4,
        dim_model_base=256,
    )
    folder = tmp_path_factory.mktemp("larger") / "model"
    folder.mkdir()
    weights = {name: torch.full(shape, 0.37) for name, shape in config.parameter_shapes().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


CHILD = """
import json, re, sys
from pathlib import Path
from minicpm.export.convert import convert

def peak_memory():
    # Not ru_maxrss: that of a child begins at its parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak_memory()
print("ready", flush=True)
convert(sys.argv[1], sys.argv[2], to=sys.argv[3], **json.loads(sys.argv[4]))
print(peak_memory() - before, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("to", "options"),
    [("hf", {"dtype": "bfloat16"}), ("llama", {}), ("vllmcpm", {})],
    ids=["rounding", "folding", "copying"],
)
def test_memory_stays_far_below_the_model(larger_model: Path, tmp_path: Path, to: str, options: dict):
    size = (larger_model / "model.safetensors").stat().st_size
    assert size > 180 << 20
    done = subprocess.run(
        [sys.executable, "-c", CHILD, larger_model, tmp_path / "out", to, json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(tmp_path / "out")
    grown = int(done.stdout.split()[-1])
    print(f"{to} {options}: {grown / 2**20:.1f} MiB more for a model of {size / 2**20:.1f} MiB")
    assert 0 < grown < 60 << 20, f"{grown} bytes more for a model of {size}"


def written_bytes(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # the folder appears, and is renamed, while we look
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def test_a_killed_run_leaves_nothing_under_the_final_name_and_the_next_one_cleans_up(
    larger_model: Path, tmp_path: Path
):
    moments = random.Random(7)
    finished = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, larger_model, tmp_path / "out", "granite", "{}"], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()  # imports are over, the conversion begins
        share = moments.uniform(0.0, 0.9) * (larger_model / "model.safetensors").stat().st_size
        while child.poll() is None and written_bytes(tmp_path / ".out.partial") < share:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if (tmp_path / "out").exists():
            finished += 1
            assert_same_model(larger_model, tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
        assert set(files(tmp_path)) <= {".out.partial"}
    assert finished < 6, "no kill came in time"
    convert(larger_model, tmp_path / "out", to="granite")
    assert files(tmp_path) == ["out"]
    assert_same_model(larger_model, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")


def test_what_a_killed_run_left_is_cleared_by_the_next(model_folder: ModelFolder, tmp_path: Path):
    source = model_folder()
    stale = tmp_path / ".out.partial"
    (stale / "folder").mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half a mod")
    (stale / "pytorch_model.bin").write_bytes(b"of another run")
    convert(source, tmp_path / "out", to="hf")
    assert files(tmp_path) == ["model", "out"]
    assert files(tmp_path / "out") == ["config.json", "model.safetensors"]


def test_an_interrupted_run_leaves_nothing(model_folder: ModelFolder, tmp_path: Path):
    class Impatient:
        def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None: ...

        def advance(self, nbytes: int) -> None:
            raise KeyboardInterrupt

        def end(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        convert(model_folder(), tmp_path / "out", to="vllmcpm", progress=Impatient())
    assert files(tmp_path) == ["model"]


def test_progress_tells_every_byte_twice_once_written_once_checked(model_folder: ModelFolder, tmp_path: Path):
    class Counting:
        def __init__(self) -> None:
            self.tasks: list[list[int | str]] = []

        def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
            self.tasks.append([label, total_bytes, 0])

        def advance(self, nbytes: int) -> None:
            self.tasks[-1][2] += nbytes  # type: ignore[operator]

        def end(self) -> None:
            self.tasks[-1].append("over")

    progress = Counting()
    convert(model_folder(), tmp_path / "out", to="hf", progress=progress)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        total = checkpoint.nbytes
    assert progress.tasks == [["converting", total, total, "over"], ["checking", total, total, "over"]]


def test_hostile_sources_are_refused_before_a_folder_appears(model_folder: ModelFolder, tmp_path: Path):
    source = model_folder()
    (source / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(MiniCPMError):
        convert(source, tmp_path / "out", to="hf")
    assert files(tmp_path) == ["model"]
