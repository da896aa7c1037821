"""Opening a model folder of any format, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minicpm.chat import ChatTemplate, template_for
from minicpm.errors import FormatError, ModelError
from minicpm.formats.checkpoint import Checkpoint, Opened, open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.tokenizer import Tokenizer

ModelFolder = Callable[..., Path]


@pytest.mark.parametrize("name", ["minicpm2b_tied", "minicpm2b_tied_bf16_bin", "minicpm2b_untied_sharded"])
def test_a_golden_checkpoint_has_exactly_its_parameters(golden: Path, name: str):
    with open_checkpoint(golden / name) as checkpoint:
        assert checkpoint.format == "hf"
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
        assert shapes == checkpoint.config.parameter_shapes()
        assert checkpoint.nbytes == sum(checkpoint.read(name).nbytes for name in checkpoint.tensors)


def test_a_bin_checkpoint_holds_what_torch_reads(golden: Path):
    expected = torch.load(golden / "minicpm2b_tied_bf16_bin" / "pytorch_model.bin", weights_only=True)
    with open_checkpoint(golden / "minicpm2b_tied_bf16_bin") as checkpoint:
        assert checkpoint.config.dtype == "bfloat16"
        for name in checkpoint.tensors:
            view = checkpoint.read(name)
            ours = torch.frombuffer(view.buffer, dtype=torch.bfloat16).reshape(view.shape)
            assert torch.equal(ours, expected[name])


def test_a_sharded_checkpoint_holds_what_the_library_reads(golden: Path):
    folder = golden / "minicpm2b_untied_sharded"
    expected = {k: v for path in folder.glob("model-*.safetensors") for k, v in load_file(path).items()}
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (checkpoint.read(name).float32() == tensor.numpy()).all()


def test_tokenizer_files_are_listed(golden: Path):
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint:
        names = [path.name for path in checkpoint.tokenizer_files]
    assert names == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"]


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, (2,)),
        ({}, (2,)),
        ({"eos_token_id": None}, (2,)),
        ({"eos_token_id": 2}, (2,)),
        ({"eos_token_id": 39}, (2, 39)),
        ({"eos_token_id": [39, 2, 7, 39]}, (2, 39, 7)),
        ({"eos_token_id": []}, (2,)),
    ],
)
def test_a_text_ends_where_either_configuration_says_so(
    model_folder: ModelFolder, generation: dict[str, object] | None, expected: tuple[int, ...]
):
    folder = model_folder()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.eos_token_ids == expected


def test_the_configurations_own_ids_come_first(model_folder: ModelFolder):
    folder = model_folder(eos_token_id=[9, 5])
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 1]}')
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.eos_token_ids == (9, 5, 1)


def test_the_dtype_is_that_of_the_weights_not_of_the_config(model_folder: ModelFolder):
    with open_checkpoint(model_folder(torch_dtype="float16")) as checkpoint:
        assert checkpoint.config.dtype == "float32"


def test_views_outlive_the_checkpoint(model_folder: ModelFolder):
    folder = model_folder()
    with open_checkpoint(folder) as checkpoint:
        view = checkpoint.read("model.norm.weight")
    assert (view.float32() == load_file(folder / "model.safetensors")["model.norm.weight"].numpy()).all()


def test_released_pages_are_read_again(model_folder: ModelFolder, tiny: DecoderConfig):
    folder = model_folder(config=replace(tiny, vocab_size=4000))
    with open_checkpoint(folder) as checkpoint:
        before = bytes(checkpoint.read("model.embed_tokens.weight").buffer)
        checkpoint.release("model.embed_tokens.weight")
        assert bytes(checkpoint.read("model.embed_tokens.weight").buffer) == before


def test_a_stored_head_that_repeats_the_embedding_is_accepted(model_folder: ModelFolder):
    folder = model_folder()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert "lm_head.weight" not in checkpoint.tensors


def test_a_stored_head_that_contradicts_the_tie_is_refused(model_folder: ModelFolder):
    folder = model_folder()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"lm_head.weight differs .* set tie_word_embeddings to false"):
        open_checkpoint(folder)


def test_rotary_tables_of_old_checkpoints_are_skipped(model_folder: ModelFolder):
    folder = model_folder()
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert not any("rotary" in name for name in checkpoint.tensors)


def test_a_hugging_face_cache_snapshot_is_read_through_its_links(model_folder: ModelFolder, tmp_path: Path):
    source = model_folder()
    blobs = tmp_path / "hub" / "models--openbmb--tiny" / "blobs"
    snapshot = tmp_path / "hub" / "models--openbmb--tiny" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"blob-{path.name}")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.tensors


def test_a_cache_that_shares_blobs_between_models_is_read(model_folder: ModelFolder, tmp_path: Path):
    source = model_folder()
    snapshot = tmp_path / "hub" / "models--openbmb--tiny" / "snapshots" / "abc"
    blobs = tmp_path / "hub" / "models--openbmb--tiny" / "blobs"
    shared = tmp_path / "hub" / "blobs"
    for folder in (snapshot, blobs, shared):
        folder.mkdir(parents=True)
    (shared / ".huggingface-shared-blobs").write_text("1")
    for path in source.iterdir():
        shutil.copy(path, shared / path.name)
        (blobs / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.tensors


def test_a_link_to_the_folder_itself_is_followed(model_folder: ModelFolder, tmp_path: Path):
    (tmp_path / "link").symlink_to(model_folder())
    with open_checkpoint(tmp_path / "link") as checkpoint:
        assert checkpoint.tensors


def test_a_published_llama_folder_is_read_as_it_is_with_unit_scales(golden: Path, tmp_path: Path):
    shutil.copytree(golden / "minicpm2b_untied_sharded", tmp_path / "llama")
    config = tmp_path / "llama" / "config.json"
    raw = json.loads(config.read_text())
    for key in ("scale_emb", "scale_depth", "dim_model_base", "auto_map"):
        del raw[key]
    raw.update(model_type="llama", architectures=["LlamaForCausalLM"])
    config.write_text(json.dumps(raw))
    with open_checkpoint(tmp_path / "llama") as llama, open_checkpoint(golden / "minicpm2b_untied_sharded") as source:
        assert llama.format == "llama"
        assert (llama.config.scale_emb, llama.config.residual_scale, llama.config.logit_scale) == (1, 1, 1)
        assert not llama.config.tie_word_embeddings
        for name in source.tensors:
            assert bytes(llama.read(name).buffer) == bytes(source.read(name).buffer)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"logits_scaling": 3.0}, "logits_scaling"),
        ({"residual_multiplier": -1.0}, "residual_multiplier"),
        ({"embedding_multiplier": "12"}, "embedding_multiplier"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_a_granite_that_is_no_minicpm_is_refused(model_folder: ModelFolder, changes: dict, words: str):
    granite = {
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "embedding_multiplier": 12,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.5,
        "logits_scaling": 2.0,
    }
    folder = model_folder(tie_word_embeddings=True, **{**granite, "attention_multiplier": 4**-0.5, **changes})
    if changes == {"attention_multiplier": 0.5}:  # 4 ** -0.5 == 0.5: make it wrong
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "attention_multiplier": 0.25}))
    with pytest.raises(ModelError, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 32}, "head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"sliding_window": 16}, "sliding_window is 16, but this version computes full attention only"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"minicpm_scales_folded_into_weights": {"scale_emb": 12}}, "must hold exactly"),
        (
            {
                "minicpm_scales_folded_into_weights": {
                    "scale_emb": -1,
                    "scale_depth": 1.4,
                    "dim_model_base": 8,
                    "tie_word_embeddings": True,
                }
            },
            "scale_emb",
        ),
    ],
)
def test_a_llama_that_minicpm_cannot_be_is_refused(model_folder: ModelFolder, changes: dict, words: str):
    folder = model_folder(model_type="llama", architectures=["LlamaForCausalLM"], **changes)
    with pytest.raises(ModelError, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize("pt_files", [[], ["a.pt", "b.pt"]], ids=["none", "two"])
def test_a_vllmcpm_folder_has_exactly_one_pt_file(real_configs: Path, tmp_path: Path, pt_files: list[str]):
    shutil.copy(real_configs / "MiniCPM-2B-vllmcpm" / "config.json", tmp_path)
    for name in pt_files:
        torch.save({}, tmp_path / name)
    with pytest.raises(FormatError, match=r"exactly one \*\.pt"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["MiniCPM-MoE-8x2B", "MiniCPM-V", "MiniCPM-V-2"])
def test_other_members_of_the_family_are_refused_by_name(real_configs: Path, tmp_path: Path, name: str):
    (source,) = (real_configs / name).glob("config*.json")
    shutil.copy(source, tmp_path / "config.json")
    with pytest.raises(ModelError, match="MiniCPM-MoE-8x2B" if "MoE" in name else "MiniCPM-V"):
        open_checkpoint(tmp_path)


def test_quantized_weights_are_refused_by_method(model_folder: ModelFolder):
    with pytest.raises(ModelError, match="quantized \\('gptq'\\)"):
        open_checkpoint(model_folder(quantization_config={"quant_method": "gptq", "bits": 4}))


@pytest.mark.parametrize("what", ["nothing there", "a file"])
def test_a_path_that_is_no_folder_says_so(tmp_path: Path, what: str):
    path = tmp_path / "x"
    if what == "a file":
        path.write_text("{}")
    with pytest.raises(ModelError, match="folder"):
        open_checkpoint(path)


# --- a form of our own -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ToyFile:
    """A TensorFile in memory."""

    path: Path
    tensors: dict[str, TensorInfo]
    released: list[str] = field(default_factory=list)
    is_closed: bool = False

    def read(self, name: str) -> TensorView:
        return TensorView.from_float32(name, np.ones(self.tensors[name].shape, np.float32), self.tensors[name].dtype)

    def release(self, name: str) -> None:
        self.released.append(name)

    def close(self) -> None:
        self.is_closed = True


@dataclass(frozen=True)
class ToyTexts:
    """Text sources that are passed in, not read from files."""

    made: Tokenizer
    template: ChatTemplate
    advice: dict[str, Any]
    tokenizer_files: tuple[Path, ...] = (Path("toy.vocabulary"),)
    has_chat_template: bool = True

    def tokenizer(self) -> Tokenizer:
        return self.made

    def chat_template(self) -> ChatTemplate:
        return self.template

    def generation_config(self) -> tuple[Path, dict[str, Any]]:
        return Path("toy.advice"), self.advice


def test_a_checkpoint_uses_the_text_sources_it_is_handed(golden: Path, tiny: DecoderConfig):
    stored = {f"toy.{name}": TensorInfo(f"toy.{name}", "float16", shape) for name, shape in shapes(tiny).items()}
    file = ToyFile(Path("toy"), stored)
    tokenizer = Tokenizer.from_folder(golden / "minicpm2b_tied")
    texts = ToyTexts(tokenizer, template_for(golden / "minicpm2b_tied"), {"top_p": 0.5})
    opened = Opened(
        Path("toy"), "toy", tiny, dict.fromkeys(stored, file), {name: f"toy.{name}" for name in shapes(tiny)}, texts
    )
    with Checkpoint(opened) as checkpoint:
        assert (checkpoint.format, checkpoint.config) == ("toy", tiny.with_dtype("float16"))
        assert checkpoint.tokenizer() is tokenizer
        assert checkpoint.chat_template() is texts.template
        assert checkpoint.generation_config() == (Path("toy.advice"), {"top_p": 0.5})
        assert checkpoint.tokenizer_files == (Path("toy.vocabulary"),)
        assert checkpoint.has_chat_template and not replace_texts(opened, has_chat_template=False).has_chat_template
        checkpoint.read("model.norm.weight")
        checkpoint.release("model.norm.weight")
    assert file.released == ["toy.model.norm.weight"] and file.is_closed


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    return config.parameter_shapes()


def replace_texts(opened: Opened, **changes: Any) -> Checkpoint:
    assert isinstance(opened.texts, ToyTexts)
    return Checkpoint(replace(opened, texts=replace(opened.texts, **changes)))
