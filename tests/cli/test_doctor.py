"""`minicpm doctor`: every known fault made, found by name, repaired in a copy, and gone when the copy is opened."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broken_models import (
    FOLDER_FAULTS,
    GGUF_FAULTS,
    as_floats,
    broken_gguf,
    nano_of_2024,
    spoil,
)
from minicpm.errors import MiniCPMError
from minicpm.export.convert import convert
from minicpm.export.gguf import write_gguf
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import GgufFile
from minicpm.tokenizer import PieceType, Tokenizer, read_sentencepiece
from small_gguf import TINY, Parts

TEXTS = ("Tell me a story about a mouse.", "<用户>讲个故事<AI>", "  two\n\nlines 12")
# Whose constants are those of 2024.
CONFIG = replace(TINY, dim_model_base=256)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GGUF file of a trained model."""
    path = tmp_path_factory.mktemp("nano") / "nano.gguf"
    write_gguf(nano_of_2024(path.parent / "nano"), path)
    return path


def require_same_file(one: Path, other: Path) -> None:
    first, second = GgufFile(one), GgufFile(other)
    assert {k: (f.type, f.value) for k, f in first.fields().items()} == {
        k: (f.type, f.value) for k, f in second.fields().items()
    }
    assert first.tensors.keys() == second.tensors.keys()
    for name in first.tensors:
        assert first.view(name) == second.view(name), name
    first.close()
    second.close()


def names(outcome: Any) -> list[str]:
    return [fault["name"] for fault in json.loads(outcome.out)["faults"]]


# --- GGUF files --------------------------------------------------------------------------------------------------


def test_a_sound_file_has_none_of_the_faults(minicpm, nano: Path, tmp_path: Path):
    done = minicpm("doctor", nano, "--fix", tmp_path / "out.gguf")
    assert (done.code, done.out) == (0, f"{nano}: none of the known faults\n")
    assert not (tmp_path / "out.gguf").exists()


def test_missing_mup_keys_become_the_constants_of_2024(minicpm, tmp_path: Path):
    parts = Parts(CONFIG)
    parts.put("tokenizer.chat_template", parts.fields["general.architecture"].type, "{{ messages[0]['content'] }}")
    sound = parts.write(tmp_path / "sound.gguf")
    for key in ("embedding_scale", "residual_scale", "logit_scale"):
        del parts.fields[f"minicpm.{key}"]
    broken = parts.write(tmp_path / "broken.gguf")
    with pytest.raises(MiniCPMError, match="missing"):
        open_checkpoint(broken)
    found = minicpm("doctor", broken, "--json")
    assert (found.code, names(found)) == (1, ["missing-mup"])
    assert minicpm("doctor", broken, "--fix", tmp_path / "out.gguf").code == 0
    with open_checkpoint(tmp_path / "out.gguf") as repaired, open_checkpoint(sound) as expected:
        assert repaired.config == expected.config == CONFIG
    with pytest.raises(MiniCPMError):
        open_checkpoint(broken)  # never in place


def test_the_official_pieces_stand_in_the_order_of_their_scores(real_tokenizer: Path):
    """What the repair of flat scores rests on."""
    model = read_sentencepiece(real_tokenizer / "tokenizer.model")
    scores = [score for score, kind in zip(model.scores, model.types) if kind == PieceType.NORMAL]
    assert len(scores) > 120_000
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


# Those of files with other constants or another tokenizer have tests of their own.
OTHER_MODELS = ("missing-mup", "no-space-prefix", "byte-level-tokenizer", "flat-scores")


@pytest.mark.parametrize("fault", [fault for fault in GGUF_FAULTS if fault not in OTHER_MODELS])
def test_a_broken_file_becomes_the_sound_one(minicpm, nano: Path, tmp_path: Path, fault: str):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", fault)
    found = minicpm("doctor", broken, "--json")
    assert (found.code, names(found)) == (1, [fault])
    done = minicpm("doctor", broken, "--fix", tmp_path / "out.gguf", "--json")
    assert (done.code, names(done)) == (0, [fault])
    require_same_file(tmp_path / "out.gguf", nano)


@pytest.mark.parametrize("fault", ["byte-level-tokenizer", "flat-scores"])
def test_a_repaired_tokenizer_splits_texts_as_before(minicpm, nano: Path, tmp_path: Path, fault: str):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", fault)
    with open_checkpoint(broken, allow_quantized=True) as checkpoint, pytest.raises(MiniCPMError):
        checkpoint.tokenizer()
    assert names(minicpm("doctor", broken, "--json")) == [fault]
    assert minicpm("doctor", broken, "--fix", tmp_path / "out.gguf").code == 0
    with (
        open_checkpoint(tmp_path / "out.gguf", allow_quantized=True) as repaired,
        open_checkpoint(nano, allow_quantized=True) as sound,
    ):
        one, other = repaired.tokenizer(), sound.tokenizer()
        assert [one.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]


def test_several_faults_are_repaired_at_once(minicpm, nano: Path, tmp_path: Path):
    """Flat scores keep the model from being run, so the order of its rows is known only when they are repaired."""
    for number, fault in enumerate(("row-order", "flat-scores", "missing-template", "wrong-rope-theta")):
        nano = broken_gguf(nano, tmp_path / f"{number}.gguf", fault)
    found = minicpm("doctor", nano, "--json")
    assert sorted(names(found)) == ["flat-scores", "missing-template"]
    assert "all scores" in json.loads(found.out)["not_judged"]
    done = minicpm("doctor", nano, "--fix", tmp_path / "out.gguf", "--json")
    assert (done.code, sorted(names(done))) == (
        0,
        ["flat-scores", "missing-template", "row-order", "wrong-rope-theta"],
    )
    assert minicpm("doctor", tmp_path / "out.gguf").code == 0


def test_files_alone_are_looked_at_without_running(minicpm, nano: Path, tmp_path: Path):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", "row-order")
    done = minicpm("doctor", broken, "--no-run")
    assert (done.code, done.out) == (0, f"{broken}: none of the known faults\n")


def test_a_model_that_knows_no_language_is_not_judged(minicpm, folder: Path):
    spoil(folder, rope_theta=1e6, tie_word_embeddings=True)
    done = minicpm("doctor", folder)
    assert done.code == 0
    assert "not judged" in done.err


def test_a_head_that_repeats_the_embedding_is_left_out(minicpm, tmp_path: Path):
    parts = Parts(CONFIG)
    tensor, data = parts.tensors["token_embd.weight"]
    parts.store("output.weight", tensor.type, data, tensor.shape)
    broken = parts.write(tmp_path / "broken.gguf")
    assert "repeated-head" in names(minicpm("doctor", broken, "--json"))
    assert minicpm("doctor", broken, "--fix", tmp_path / "out.gguf").code == 0
    with open_checkpoint(tmp_path / "out.gguf") as repaired:
        assert repaired.config.tie_word_embeddings


def test_a_copy_never_stands_where_the_file_does(minicpm, tmp_path: Path):
    broken = Parts(CONFIG).write(tmp_path / "broken.gguf")  # without a template
    before = broken.read_bytes()
    done = minicpm("doctor", broken, "--fix", broken, "--force")
    assert done.code == 2
    assert "is the file itself" in done.err
    assert broken.read_bytes() == before
    (tmp_path / "out.gguf").write_text("something else")
    assert "already exists" in minicpm("doctor", broken, "--fix", tmp_path / "out.gguf").err
    assert "not one" in minicpm("doctor", broken, "--fix", tmp_path / "out.gguf", "--force").err
    assert (tmp_path / "out.gguf").read_text() == "something else"


def test_a_damaged_file_is_one_sentence(minicpm, tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\3\0\0\0")
    done = minicpm("doctor", tmp_path / "broken.gguf")
    assert (done.code, done.out) == (1, "")
    assert "truncated" in done.err


# --- documents ---------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
# Proved by tests of this file alone.
OTHERS = {"repeated-head", "rebuilt-tokenizer", "mlx-minicpm", "missing-tokenizer", "impossible-config"}


def test_the_document_lists_every_fault_and_every_fault_is_made_in_a_test():
    source = ROOT / "src" / "minicpm"
    files = [*(source / "formats").glob("*faults.py"), source / "eval" / "measured_faults.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    written = set(re.findall(r'Fault\(\s*"([a-z-]+)"', code)) | {"wrong-bos", "wrong-eos"}
    listed = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert written == set(listed) == {*GGUF_FAULTS, *FOLDER_FAULTS, *OTHERS}


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(toy: Path, tmp_path: Path) -> Path:
    """A sound folder, to be spoiled."""
    copy = tmp_path / "model"
    shutil.copytree(toy, copy)
    spoil(copy, "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    spoil(copy, auto_map=...)
    return copy


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
def test_a_broken_folder_becomes_the_sound_one(minicpm, nano_folder: Path, tmp_path: Path, fault: str):
    broken = shutil.copytree(nano_folder, tmp_path / "broken")
    FOLDER_FAULTS[fault](broken)
    found = minicpm("doctor", broken, "--json")
    assert (found.code, names(found)) == (1, [fault])
    before = contents(broken)
    done = minicpm("doctor", broken, "--fix", tmp_path / "out", "--json")
    assert (done.code, names(done)) == (0, [fault])
    assert contents(broken) == before
    assert contents(tmp_path / "out") == contents(nano_folder)


def contents(folder: Path) -> dict[str, object]:
    """Of every file, what it says (JSON) or its bytes."""
    files = sorted(folder.iterdir())
    return {path.name: json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes() for path in files}


@pytest.mark.parametrize("fault", ["missing-tokenizer-json", "wrong-tokenizer-json"])
def test_tokenizer_json_is_made_of_tokenizer_model(minicpm, nano_folder: Path, tmp_path: Path, fault: str):
    broken = shutil.copytree(nano_folder, tmp_path / "broken")
    FOLDER_FAULTS[fault](broken)
    assert names(minicpm("doctor", broken, "--json")) == [fault]
    assert minicpm("doctor", broken, "--fix", tmp_path / "out").code == 0
    one, other = (Tokenizer.from_folder(folder) for folder in (tmp_path / "out", nano_folder))
    assert [one.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]


def test_a_minicpm_that_was_called_a_llama_is_one_again(minicpm, nano_folder: Path, tmp_path: Path):
    broken = shutil.copytree(nano_folder, tmp_path / "broken")
    FOLDER_FAULTS["lost-scales"](broken)
    assert names(minicpm("doctor", broken, "--json")) == ["rebuilt-tokenizer", "lost-scales"]
    assert minicpm("doctor", broken, "--fix", tmp_path / "out").code == 0
    assert config_of(tmp_path / "out") == config_of(nano_folder)


def test_weights_that_are_no_numbers_are_named(minicpm, nano_folder: Path, tmp_path: Path):
    broken = shutil.copytree(nano_folder, tmp_path / "broken")
    FOLDER_FAULTS["not-finite"](broken)
    done = minicpm("doctor", broken, "--fix", tmp_path / "out")
    assert done.code == 1
    assert "model.layers.3.mlp.down_proj.weight" in done.out
    assert "cannot be repaired here" in done.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file, said, expected",
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": True}, {"quant_method": "gptq"}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, {"quant_method": "awq"}),
    ],
)
def test_a_quantization_said_elsewhere_is_said_in_the_configuration(
    minicpm, folder: Path, tmp_path: Path, file: str, said: dict[str, object], expected: dict[str, object]
):
    spoil(folder, model_type="minicpm", tie_word_embeddings=True)
    (folder / file).write_text(json.dumps(said))
    assert names(minicpm("doctor", folder, "--json")) == ["unsaid-quantization"]
    assert minicpm("doctor", folder, "--fix", tmp_path / "out").code == 0
    kept = {key: value for key, value in said.items() if key in ("desc_act", "version")}
    assert config_of(tmp_path / "out")["quantization_config"] == {**expected, "bits": 4, "group_size": 128, **kept}


def test_rows_of_a_pickle_are_not_rewritten(minicpm, nano_folder: Path, tmp_path: Path):
    source = shutil.copytree(nano_folder, tmp_path / "source")
    FOLDER_FAULTS["row-order"](source)
    convert(source, tmp_path / "broken", to="hf", as_bin=True)
    done = minicpm("doctor", tmp_path / "broken", "--json")
    (fault,) = json.loads(done.out)["faults"]
    assert (fault["name"], fault["is_repairable"]) == ("row-order", False)
    assert "--to hf" in fault["cure"]


def test_a_head_of_its_own_is_untied(minicpm, golden: Path, folder: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(golden / "minicpm2b_untied_sharded", broken)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, broken)
    spoil(broken, model_type="minicpm", rope_theta=10000.0, tie_word_embeddings=True, auto_map=...)
    with pytest.raises(MiniCPMError, match="ties them"):
        open_checkpoint(broken)
    assert names(minicpm("doctor", broken, "--json")) == ["wrong-tie"]
    assert minicpm("doctor", broken, "--fix", tmp_path / "out").code == 0
    with open_checkpoint(tmp_path / "out") as repaired:
        assert not repaired.config.tie_word_embeddings


def test_without_a_tokenizer_nothing_can_be_repaired(minicpm, folder: Path, tmp_path: Path):
    spoil(folder, model_type="minicpm", tie_word_embeddings=True)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    done = minicpm("doctor", folder, "--fix", tmp_path / "out", "--json")
    assert (done.code, names(done)) == (1, ["missing-tokenizer"])
    assert not (tmp_path / "out").exists()


def test_an_mlx_folder_of_no_possible_model_is_told(minicpm, folder: Path):
    spoil(folder, model_type="minicpm", tie_word_embeddings=True, quantization={"bits": 4}, num_attention_heads=7)
    done = minicpm("doctor", folder, "--json")
    assert (done.code, names(done)) == (1, ["impossible-config"])


def test_an_mlx_folder_speaks_granite(minicpm, folder: Path, tmp_path: Path):
    """mlx-lm's minicpm leaves the division of the logits out; its granite does not."""
    spoil(folder, model_type="minicpm", tie_word_embeddings=True, quantization={"group_size": 64, "bits": 4})
    with open_checkpoint(folder) as checkpoint:
        expected = checkpoint.config
    assert "mlx-minicpm" in names(minicpm("doctor", folder, "--json"))
    assert minicpm("doctor", folder, "--fix", tmp_path / "out").code == 0
    assert config_of(tmp_path / "out")["quantization"] == {"group_size": 64, "bits": 4}
    with open_checkpoint(tmp_path / "out") as repaired:
        assert repaired.format == "granite"
        assert replace(repaired.config, dtype=expected.dtype) == expected


def test_a_gptq_folder_keeps_its_weights(minicpm, folder: Path, tmp_path: Path):
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    spoil(folder, model_type=..., tie_word_embeddings=True, rope_theta=10000.0, quantization_config=gptq)
    found = minicpm("doctor", folder, "--json")
    assert (json.loads(found.out)["kind"], names(found)) == ("gptq", ["missing-model-type"])
    assert minicpm("doctor", folder, "--fix", tmp_path / "out").code == 0
    assert config_of(tmp_path / "out")["quantization_config"] == gptq
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (folder / weights).read_bytes()


def test_another_family_is_refused_by_name(minicpm, folder: Path):
    spoil(folder, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    done = minicpm("doctor", folder)
    assert done.code == 1
    assert "model_type is 'qwen2'" in done.err
