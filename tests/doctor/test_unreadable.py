"""Doctor never passes a model that it could not read, and keeps no copy of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from broken_models import names, sound_folder, spoil
from minicpm.doctor.diagnosis import diagnose
from small_gguf import Parts


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A sound folder, to be spoiled."""
    folder = sound_folder(golden, tmp_path / "model")
    spoil(folder, tie_word_embeddings=True, rope_theta=10000.0, model_type="minicpm")
    assert names(diagnose(folder, runs=False)) == []
    return folder


def rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    def spoiled(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({change(name): values for name, values in weights.items()}, folder / "model.safetensors")

    return spoiled


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (truncate, "truncated"),
    "a pointer of Git LFS": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "tensors of another model": (rename(lambda name: name.replace("layers", "blocks")), "missing from the weights"),
    "more layers than weights": (lambda folder: spoil(folder, num_hidden_layers=9), "missing from the weights"),
    "an unknown quantization": (
        lambda folder: spoil(folder, quantization_config={"quant_method": "bitsandbytes"}),
        "quantized by 'bitsandbytes'",
    ),
}


@pytest.mark.parametrize("runs", [True, False], ids=["run", "no-run"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_opened_is_a_fault(folder: Path, tmp_path: Path, what: str, runs: bool):
    spoiled, words = UNREADABLE[what]
    spoiled(folder)
    done = diagnose(folder, runs=runs)
    (fault,) = done.left
    assert (fault.name, fault.is_repairable) == ("unreadable", False)
    assert words in fault.found


@pytest.mark.parametrize("what", ["truncated weights", "tensors of another model"])
def test_no_copy_is_kept_of_what_cannot_be_opened(folder: Path, tmp_path: Path, what: str):
    spoil(folder, auto_map={"AutoConfig": "x"})  # a fault that a copy would not have
    UNREADABLE[what][0](folder)
    done = diagnose(folder, copy=tmp_path / "out", runs=False)
    assert "unreadable" in names(done) and done.repaired is None and done.left
    assert not (tmp_path / "out").exists()


def test_a_copy_that_still_cannot_be_opened_is_removed(folder: Path, tmp_path: Path):
    """Missing constants could be why it does not open; the copy shows that they are not."""
    spoil(folder, scale_emb=..., scale_depth=..., dim_model_base=..., num_hidden_layers=9)
    done = diagnose(folder, copy=tmp_path / "out", runs=False)
    assert [fault.name for fault in done.left] == ["unreadable"] and done.repaired is None
    assert not (tmp_path / "out").exists()


def test_wrapped_names_are_told_although_this_package_reads_them(folder: Path, tmp_path: Path):
    rename(lambda name: f"_orig_mod.{name}")(folder)
    done = diagnose(folder, copy=tmp_path / "out", runs=False)
    (fault,) = done.left
    assert fault.name == "wrapped-names" and "'_orig_mod.model." in fault.found and "--to hf" in fault.cure


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_told(folder: Path, name: str):
    (folder / "tokenizer.model").unlink()
    if name == "tokenizer.json":
        (folder / name).write_text('{"model": {"type": "WordPiece"}}')
    else:
        (folder / "tokenizer.json").unlink()
    assert "unreadable-tokenizer" in [fault.name for fault in diagnose(folder, runs=False).left]


def test_a_template_that_fails_is_replaced(folder: Path, tmp_path: Path):
    spoil(folder, "tokenizer_config.json", chat_template="{% for m in messages %}{{ m['content'] }}")
    done = diagnose(folder, copy=tmp_path / "out", runs=False)
    assert (names(done), done.left) == (["broken-template"], ())


def test_a_gguf_file_of_unknown_tensors_is_unreadable(tmp_path: Path):
    parts = Parts()
    tensor, values = parts.tensors.pop("blk.0.attn_q.weight")
    parts.tensors["blk.0.attn_qkv.weight"] = (type(tensor)("blk.0.attn_qkv.weight", tensor.type, tensor.shape), values)
    done = diagnose(parts.write(tmp_path / "model.gguf"), runs=False)
    assert "unreadable" in [fault.name for fault in done.left]
