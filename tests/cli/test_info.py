"""`minicpm info`: its output for a folder, as text and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import FakeHub, isolate
from minicpm.cli.verbs.info import weight_memory
from minicpm.engine.backend import cache_bytes_per_token
from minicpm.formats.config import DecoderConfig, read_config_json


def test_info_tells_the_family_shape_and_scales(minicpm, toy: Path):
    done = minicpm("info", "-m", toy)
    assert done.code == 0
    assert done.err == ""
    for words in (
        "MiniCPM decoder, hf format, float32",
        "1,099,152 (955,152 without embeddings), tied head",
        "4 layers, hidden 144",
        "2,048 tokens",
        "scale_emb 12, scale_depth 1.4 (branches x 0.7), dim_model_base 64",
        "tokenizer.json",
    ):
        assert words in done.out


def test_info_speaks_json(minicpm, golden: Path):
    facts = json.loads(minicpm("info", "-m", golden / "minicpm2b_tied_bf16_bin", "--json").out)
    assert facts["weight_files"] == ["pytorch_model.bin"]
    assert facts["dtypes"] == ["bfloat16"]
    assert facts["weight_bytes"] == 2 * facts["parameters"] == 2_198_304
    assert facts["tokenizer_files"] == []
    assert facts["has_chat_template"] is False


def test_info_lists_every_tensor_when_asked(minicpm, golden: Path):
    folder = golden / "minicpm2b_untied_sharded"
    plain = minicpm("info", "-m", folder, "--tensors").out
    assert "lm_head.weight  float32  1003x144" in plain
    facts = json.loads(minicpm("info", "-m", folder, "--tensors", "--json").out)
    assert len(facts["tensors"]) == 30


def test_info_tells_of_scales_inside_the_weights(minicpm, toy: Path, tmp_path: Path):
    minicpm("convert", toy, tmp_path / "llama", "--to", "llama")
    assert "multiplied into the weights (scale_emb 12" in minicpm("info", "-m", tmp_path / "llama").out


def test_info_knows_a_template_file_and_a_licence(minicpm, toy: Path, tmp_path: Path):
    shutil.copytree(toy, tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").unlink()
    (tmp_path / "m" / "LICENSE").write_text("terms")
    facts = json.loads(minicpm("info", "-m", tmp_path / "m", "--json").out)
    assert (facts["has_chat_template"], facts["licence_files"]) == (False, ["LICENSE"])
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    assert json.loads(minicpm("info", "-m", tmp_path / "m", "--json").out)["has_chat_template"] is True


def test_info_of_a_damaged_folder_is_one_sentence(minicpm, toy: Path, tmp_path: Path):
    shutil.copytree(toy, tmp_path / "m")
    with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
        file.truncate(4000)
    done = minicpm("info", "-m", tmp_path / "m")
    assert done.code == 1
    assert done.out == ""
    assert "model.safetensors" in done.err
    assert "truncated" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["MiniCPM-MoE-8x2B", "MiniCPM-V-2"])
def test_info_of_a_family_we_do_not_run_names_it(minicpm, real_configs: Path, tmp_path: Path, name: str):
    shutil.copy(next((real_configs / name).glob("config*.json")), tmp_path / "config.json")
    done = minicpm("info", "-m", tmp_path)
    assert done.code == 1
    assert name.removesuffix("-2") in done.err


def test_the_sizes_of_minicpm_2b_are_the_known_ones(real_configs: Path):
    """The bf16 size and cache of spec and paper: 2,724,880,896 parameters, 368,640 bytes a token."""
    config = DecoderConfig.from_dict(read_config_json(real_configs / "MiniCPM-2B-sft-bf16" / "config.json"))
    memory = weight_memory(config)
    assert memory["bfloat16"] == 2 * 2_724_880_896
    assert 1.5e9 < memory["int4"] < 1.7e9
    assert cache_bytes_per_token(config, "float16") == 368_640
    assert cache_bytes_per_token(config, "int8") == 195_840


# A model that is on a hub only.

WEIGHTS = {"model-00001-of-00002.safetensors": b"w" * 400_000, "model-00002-of-00002.safetensors": b"v" * 400_000}
INDEX = b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}'


@pytest.fixture
def server(minicpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        isolate(monkeypatch, tmp_path, fake)
        yield fake


def publish(server: FakeHub, name: str, config: bytes) -> None:
    more = {"model.safetensors.index.json": INDEX, "tokenizer.json": b"{}", "LICENSE": b"terms"}
    server.add(name, {"config.json": config, **more, **WEIGHTS})


def test_info_of_a_model_on_a_hub_reads_config_and_index_only(minicpm, server: FakeHub, real_configs: Path):
    publish(server, "openbmb/MiniCPM-2B-sft-bf16", (real_configs / "MiniCPM-2B-sft-bf16" / "config.json").read_bytes())
    done = minicpm("info", "-m", "minicpm-2b-sft")
    assert done.code == 0, done.err
    for words in (
        "openbmb/MiniCPM-2B-sft-bf16",
        "2,724,880,896",
        "800.0 kB in model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, not on this machine: "
        "minicpm pull openbmb/MiniCPM-2B-sft-bf16",
        "General Model License: free for academic research",
        "it may invent facts, after DPO more often",
        "it may say that it is a GPT model",
        "tokenizer.json",
    ):
        assert words in done.out
    asked = {request.path for request in server.requests if not request.path.startswith("/")}
    assert asked - {"list"} == {"config.json", "model.safetensors.index.json"}
    facts = json.loads(minicpm("info", "-m", "minicpm-2b-sft", "--json").out)
    assert (facts["is_local"], facts["weight_bytes"], facts["licence_files"]) == (False, 800_000, ["LICENSE"])
    assert minicpm("list", "--json").out.count("openbmb") == 0


@pytest.mark.parametrize(
    "verb", [["info", "-m"], ["run", "hi", "-m"], ["pull"], ["verify", "-m"]], ids=lambda verb: verb[0]
)
@pytest.mark.parametrize(
    "model, words",
    [
        ("openbmb/MiniCPM-MoE-8x2B", "this is MiniCPM-MoE-8x2B"),
        ("somebody/gptq", "quantized by 'gptq'"),
        ("somebody/other", "not a MiniCPM configuration (model_type 'phi'"),
    ],
)
def test_a_model_that_cannot_run_is_refused_before_its_weights(
    minicpm, server: FakeHub, real_configs: Path, verb: list[str], model: str, words: str
):
    base = json.loads((real_configs / "MiniCPM-2B-sft-bf16" / "config.json").read_bytes())
    configs = {
        "openbmb/MiniCPM-MoE-8x2B": next((real_configs / "MiniCPM-MoE-8x2B").glob("config*.json")).read_bytes(),
        "somebody/gptq": json.dumps(base | {"quantization_config": {"quant_method": "gptq"}}).encode(),
        "somebody/other": b'{"model_type": "phi", "architectures": ["PhiForCausalLM"]}',
    }
    publish(server, model, configs[model])
    done = minicpm(*verb, model)
    assert (done.code, done.out) == (1, "")
    assert words in done.err.splitlines()[-1] and "its weights were not downloaded" in done.err
    assert not any(server.fetched(name) for name in (*WEIGHTS, "tokenizer.json"))


@pytest.mark.parametrize(
    "model", ["minicpm-v", "omnilmm", "openbmb/MiniCPM-V-2", "ms:minicpm-v", "MiniCPM-2B-SFT-INT4"]
)
def test_a_model_that_is_known_not_to_run_is_refused_without_asking_the_hub(minicpm, server: FakeHub, model: str):
    for arguments in (
        ("info", "-m", model),
        ("chat", "-m", model),
        ("pull", model),
        ("convert", model, "x", "--to", "hf"),
    ):
        done = minicpm(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert "sees pictures; this version runs the text models only" in done.err or "minicpm quantize" in done.err
    assert not server.requests


def test_all_downloads_what_cannot_run(minicpm, server: FakeHub):
    publish(server, "openbmb/MiniCPM-V", b'{"model_type": "minicpmv"}')
    done = minicpm("pull", "minicpm-v", "--all")
    assert done.code == 0, done.err
    assert (Path(done.out.strip()) / "model-00001-of-00002.safetensors").exists()


def test_info_of_the_built_in_model_names_its_licence(minicpm):
    assert "apache-2.0, as its README.md says" in minicpm("info").out


def test_a_folder_of_the_releases_shape_shows_its_terms(minicpm, real_configs: Path):
    from minicpm.cli.verbs.info import _terms

    config = DecoderConfig.from_dict(read_config_json(real_configs / "MiniCPM-2B-sft-bf16" / "config.json"))
    terms = _terms(config, None)
    assert "cpm@modelbest.cn" in terms["licence"] and len(terms["limitations"]) == 4
