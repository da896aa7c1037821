"""Every known fault of a model's folder: made, found by name, repaired in a copy, and gone when the copy is opened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broken_models import FOLDER_FAULTS, TOKENIZED_TEXTS, as_floats, names, nano_of_2024, sound_folder, spoil
from minicpm.doctor.diagnosis import diagnose
from minicpm.errors import MiniCPMError
from minicpm.export.convert import convert
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.tokenizer import Tokenizer


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A sound folder, to be spoiled."""
    return sound_folder(golden, tmp_path / "model")


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


@pytest.fixture(scope="module")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound float32 folder of a trained model."""
    folder = tmp_path_factory.mktemp("nano-folder")
    return as_floats(nano_of_2024(folder / "int4"), folder / "nano")


# A copy of these has another tokenizer.json or configuration than the sound one, or none can be made.
UNLIKE = ("missing-tokenizer-json", "wrong-tokenizer-json", "unsaid-quantization", "not-finite", "lost-scales")


@pytest.mark.parametrize("fault", [fault for fault in FOLDER_FAULTS if fault not in UNLIKE])
def test_a_broken_folder_becomes_the_sound_one(nano_folder: Path, tmp_path: Path, fault: str):
    broken = shutil.copytree(nano_folder, tmp_path / "broken")
    FOLDER_FAULTS[fault](broken)
    before = contents(broken)
    done = diagnose(broken, copy=tmp_path / "out")
    assert (done.left, names(done)) == ((), [fault])
    assert contents(broken) == before
    assert contents(tmp_path / "out") == contents(nano_folder)


def contents(folder: Path) -> dict[str, object]:
    """Of every file, what it says (JSON) or its bytes."""
    files = sorted(folder.iterdir())
    return {path.name: json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes() for path in files}


@pytest.mark.parametrize("fault", ["missing-tokenizer-json", "wrong-tokenizer-json"])
def test_tokenizer_json_is_made_of_tokenizer_model(nano_folder: Path, tmp_path: Path, fault: str):
    broken = shutil.copytree(nano_folder, tmp_path / "broken")
    FOLDER_FAULTS[fault](broken)
    done = diagnose(broken, copy=tmp_path / "out")
    assert (done.left, names(done)) == ((), [fault])
    one, other = (Tokenizer.from_folder(folder) for folder in (tmp_path / "out", nano_folder))
    assert [one.encode(text) for text in TOKENIZED_TEXTS] == [other.encode(text) for text in TOKENIZED_TEXTS]


def test_a_minicpm_that_was_called_a_llama_is_one_again(nano_folder: Path, tmp_path: Path):
    broken = shutil.copytree(nano_folder, tmp_path / "broken")
    FOLDER_FAULTS["lost-scales"](broken)
    done = diagnose(broken, copy=tmp_path / "out")
    assert (done.left, names(done)) == ((), ["rebuilt-tokenizer", "lost-scales"])
    assert config_of(tmp_path / "out") == config_of(nano_folder)


@pytest.mark.parametrize(
    "file, said, expected",
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": True}, {"quant_method": "gptq"}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, {"quant_method": "awq"}),
    ],
)
def test_a_quantization_said_elsewhere_is_said_in_the_configuration(
    folder: Path, tmp_path: Path, file: str, said: dict[str, object], expected: dict[str, object]
):
    spoil(folder, model_type="minicpm", tie_word_embeddings=True)
    (folder / file).write_text(json.dumps(said))
    assert names(diagnose(folder)) == ["unsaid-quantization"]
    assert not diagnose(folder, copy=tmp_path / "out").left
    kept = {key: value for key, value in said.items() if key in ("desc_act", "version")}
    assert config_of(tmp_path / "out")["quantization_config"] == {**expected, "bits": 4, "group_size": 128, **kept}


def test_rows_of_a_pickle_are_not_rewritten(nano_folder: Path, tmp_path: Path):
    source = shutil.copytree(nano_folder, tmp_path / "source")
    FOLDER_FAULTS["row-order"](source)
    convert(source, tmp_path / "broken", to="hf", as_bin=True)
    done = diagnose(tmp_path / "broken")
    (fault,) = done.faults
    assert (fault.name, fault.is_repairable) == ("row-order", False)
    assert "--to hf" in fault.cure


def test_a_head_of_its_own_is_untied(golden: Path, folder: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(golden / "minicpm2b_untied_sharded", broken)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, broken)
    spoil(broken, model_type="minicpm", rope_theta=10000.0, tie_word_embeddings=True, auto_map=...)
    with pytest.raises(MiniCPMError, match="ties them"):
        open_checkpoint(broken)
    assert names(diagnose(broken)) == ["wrong-tie"]
    assert not diagnose(broken, copy=tmp_path / "out").left
    with open_checkpoint(tmp_path / "out") as repaired:
        assert not repaired.config.tie_word_embeddings


def test_without_a_tokenizer_nothing_can_be_repaired(folder: Path, tmp_path: Path):
    spoil(folder, model_type="minicpm", tie_word_embeddings=True)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    done = diagnose(folder, copy=tmp_path / "out")
    assert names(done) == ["missing-tokenizer"]
    assert not (tmp_path / "out").exists()


def test_an_mlx_folder_of_no_possible_model_is_told(folder: Path):
    spoil(folder, model_type="minicpm", tie_word_embeddings=True, quantization={"bits": 4}, num_attention_heads=7)
    done = diagnose(folder)
    assert names(done) == ["impossible-config"]


def test_an_mlx_folder_speaks_granite(folder: Path, tmp_path: Path):
    """mlx-lm's minicpm leaves the division of the logits out; its granite does not."""
    spoil(folder, model_type="minicpm", tie_word_embeddings=True, quantization={"group_size": 64, "bits": 4})
    with open_checkpoint(folder) as checkpoint:
        expected = checkpoint.config
    assert "mlx-minicpm" in names(diagnose(folder))
    assert not diagnose(folder, copy=tmp_path / "out").left
    assert config_of(tmp_path / "out")["quantization"] == {"group_size": 64, "bits": 4}
    with open_checkpoint(tmp_path / "out") as repaired:
        assert repaired.format == "granite"
        assert replace(repaired.config, dtype=expected.dtype) == expected


def test_a_gptq_folder_keeps_its_weights(folder: Path, tmp_path: Path):
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    spoil(folder, model_type=..., tie_word_embeddings=True, rope_theta=10000.0, quantization_config=gptq)
    found = diagnose(folder)
    assert (found.kind, names(found)) == ("gptq", ["missing-model-type"])
    assert not diagnose(folder, copy=tmp_path / "out").left
    assert config_of(tmp_path / "out")["quantization_config"] == gptq
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (folder / weights).read_bytes()
