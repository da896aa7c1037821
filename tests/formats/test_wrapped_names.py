"""Names under the wrappers of other tools, and the published names that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicpm.errors import FormatError, ModelError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.wrapped_names import published_names, wrapped_example
from small_models import TINY

ModelFolder = Callable[..., Path]
PUBLISHED = [*TINY.parameter_shapes(), "lm_head.weight"]


def renamed(folder: Path, rename: Callable[[str], str]) -> Path:
    """The folder with other names in its weights."""
    weights = load_file(folder / "model.safetensors")
    save_file({rename(name): values for name, values in weights.items()}, folder / "model.safetensors")
    return folder


def inside_layers(wrapper: str) -> Callable[[str], str]:
    def rename(name: str) -> str:
        head, dot, rest = name.partition(".layers.")
        number, _, part = rest.partition(".")
        return f"{head}.layers.{number}.{wrapper}.{part}" if dot else name

    return rename


WRAPPERS: dict[str, Callable[[str], str]] = {
    "nothing": str,
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "DDP over torch.compile": lambda name: f"module._orig_mod.{name}",
    "PEFT": lambda name: f"base_model.model.{name}",
    "Lightning": lambda name: f"model.{name}",
    "the name of an attribute": lambda name: f"student.net.{name}",
    "torch.compile of the inner model": lambda name: name.replace("model.", "model._orig_mod.", 1),
    "torch.compile of every layer": inside_layers("_orig_mod"),
    "activation checkpointing": inside_layers("_checkpoint_wrapped_module"),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{inside_layers('_fsdp_wrapped_module')(name)}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_name_stands_for_the_published_one(wrapper: str):
    stored = {WRAPPERS[wrapper](name): name for name in PUBLISHED}
    assert published_names(stored) == {name: wrapped for wrapped, name in stored.items()}
    assert (wrapped_example(stored) is None) == (wrapper == "nothing")


def test_a_model_without_its_head_lacks_the_first_part_of_every_name():
    stored = [name.removeprefix("model.") for name in TINY.parameter_shapes()]
    assert published_names(stored) == {f"model.{name}": name for name in stored}


def test_names_outside_the_wrapper_stay_as_they_are():
    stored = [f"module.{name}" for name in PUBLISHED] + ["loss.weight"]
    assert published_names(stored)["loss.weight"] == "loss.weight"


def test_two_names_of_one_tensor_are_refused():
    with pytest.raises(ModelError, match="the same tensor"):
        published_names([*PUBLISHED, "model._orig_mod.norm.weight"])


@pytest.mark.parametrize("wrapper", ["torch.compile", "PEFT", "Lightning", "FSDP"])
def test_a_wrapped_folder_opens_with_the_same_weights(model_folder: ModelFolder, tiny: DecoderConfig, wrapper: str):
    with (
        open_checkpoint(model_folder("plain")) as plain,
        open_checkpoint(renamed(model_folder("wrapped"), WRAPPERS[wrapper])) as wrapped,
    ):
        assert list(wrapped.tensors) == list(tiny.parameter_shapes())
        for name in plain.tensors:
            assert np.array_equal(plain.read(name).float32(), wrapped.read(name).float32())


@pytest.mark.parametrize("wrapper", ["nothing", "torch.compile"])
def test_a_tied_matrix_may_be_stored_as_the_head(model_folder: ModelFolder, wrapper: str):
    """safetensors.torch.save_model keeps one of two shared tensors."""
    folder = renamed(
        model_folder(), lambda name: WRAPPERS[wrapper](name.replace("model.embed_tokens.weight", "lm_head.weight"))
    )
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["model.embed_tokens.weight"].shape == (TINY.vocab_size, TINY.hidden_size)


def test_a_missing_head_of_an_untied_model_is_named(model_folder: ModelFolder):
    with pytest.raises(FormatError, match="tie_word_embeddings to true"):
        open_checkpoint(model_folder(tie_word_embeddings=False))


def test_unknown_names_are_shown(model_folder: ModelFolder):
    folder = renamed(model_folder(), lambda name: name.replace("layers", "blocks"))
    with pytest.raises(FormatError, match=r"stored is .*model"):
        open_checkpoint(folder)
