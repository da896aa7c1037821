"""`minicpm doctor`: every known fault made, found by name, repaired in a copy, and gone when the copy is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicpm.errors import MiniCPMError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import Field, GgufFile, GgufWriter
from minicpm.formats.gguf_tokenizer import SCORES
from minicpm.hub import embedded
from minicpm.quant.gguf import write_gguf
from minicpm.tokenizer import PieceType, read_sentencepiece
from small_gguf import TINY, Parts

TEXTS = ("Tell me a story about a mouse.", "<用户>讲个故事<AI>", "  two\n\nlines 12")
# Whose constants are those of 2024.
CONFIG = replace(TINY, dim_model_base=256)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GGUF file of a trained model."""
    path = tmp_path_factory.mktemp("nano") / "nano.gguf"
    write_gguf(embedded.folder(), path)
    return path


def rewritten(
    source: Path,
    destination: Path,
    change: Callable[[dict[str, Field]], object],
) -> Path:
    """A copy whose metadata are changed."""
    file = GgufFile(source)
    fields = file.fields()
    change(fields)
    tensors = list(file.tensors.values())
    writer = GgufWriter(destination, list(fields.values()), tensors)
    for tensor in tensors:
        writer.write(tensor.name, [file.view(tensor.name)])
    writer.close()
    file.close()
    return destination


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


@pytest.mark.parametrize("score", [-1000.0, 0.0])
def test_flat_scores_become_the_order_of_the_merges(minicpm, nano: Path, tmp_path: Path, score: float):
    def flatten(fields: dict[str, Field]) -> None:
        fields[SCORES] = replace(fields[SCORES], value=[score] * len(fields[SCORES].value))

    broken = rewritten(nano, tmp_path / "broken.gguf", flatten)
    with open_checkpoint(broken, allow_quantized=True) as checkpoint, pytest.raises(MiniCPMError, match="all scores"):
        checkpoint.tokenizer()
    assert names(minicpm("doctor", broken, "--json")) == ["flat-scores"]
    assert minicpm("doctor", broken, "--fix", tmp_path / "out.gguf").code == 0
    with (
        open_checkpoint(tmp_path / "out.gguf", allow_quantized=True) as repaired,
        open_checkpoint(nano, allow_quantized=True) as sound,
    ):
        one, other = repaired.tokenizer(), sound.tokenizer()
        assert [one.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]


def test_the_official_pieces_stand_in_the_order_of_their_scores(real_tokenizer: Path):
    """What the repair of flat scores rests on."""
    model = read_sentencepiece(real_tokenizer / "tokenizer.model")
    scores = [score for score, kind in zip(model.scores, model.types) if kind == PieceType.NORMAL]
    assert len(scores) > 120_000
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize(
    "key, name",
    [("minicpm.rope.freq_base", "missing-rope-theta"), ("tokenizer.chat_template", "missing-template")],
)
def test_what_a_file_leaves_out_is_put_in(minicpm, nano: Path, tmp_path: Path, key: str, name: str):
    broken = rewritten(nano, tmp_path / "broken.gguf", lambda fields: fields.pop(key))
    assert names(minicpm("doctor", broken, "--json")) == [name]
    assert minicpm("doctor", broken, "--fix", tmp_path / "out.gguf").code == 0
    require_same_file(tmp_path / "out.gguf", nano)


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
    assert done.code == 1
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


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(toy: Path, tmp_path: Path) -> Path:
    """A sound folder, to be spoiled."""
    copy = tmp_path / "model"
    shutil.copytree(toy, copy)
    spoil(copy, "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    return copy


def spoil(folder: Path, file: str = "config.json", **changes: object) -> None:
    """Change keys of a JSON file; a value of ... removes its key."""
    raw = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


FOLDER_FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "no_model_type": ({"model_type": ...}, "missing-model-type"),
    "no_scale_emb": ({"scale_emb": ...}, "missing-mup"),
    "no_scale_depth": ({"scale_depth": ...}, "missing-mup"),
    "no_rope_theta": ({"rope_theta": ..., "rope_parameters": ...}, "missing-rope-theta"),
    "an_untied_head_that_is_not_there": ({"tie_word_embeddings": False}, "wrong-tie"),
    "no_word_about_the_head": ({"tie_word_embeddings": ...}, "wrong-tie"),
}


@pytest.mark.parametrize("case", FOLDER_FAULTS)
def test_a_folder_is_repaired_to_the_model_it_was(minicpm, folder: Path, tmp_path: Path, case: str):
    changes, name = FOLDER_FAULTS[case]
    spoil(folder, model_type="minicpm", rope_theta=10000.0, rope_parameters=..., tie_word_embeddings=True)
    assert minicpm("doctor", folder).code == 0
    with open_checkpoint(folder) as checkpoint:
        expected = checkpoint.config
    spoil(folder, **changes)
    found = minicpm("doctor", folder, "--json")
    assert (found.code, names(found)) == (1, [name])
    assert minicpm("doctor", folder, "--fix", tmp_path / "out").code == 0
    with open_checkpoint(tmp_path / "out") as repaired:
        assert repaired.config == expected
        assert repaired.tokenizer().encode("a") == repaired.tokenizer().encode("a")
    assert config_of(folder).keys().isdisjoint({key for key, value in changes.items() if value is ...})


def test_a_head_of_its_own_is_untied(minicpm, golden: Path, folder: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(golden / "minicpm2b_untied_sharded", broken)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, broken)
    spoil(broken, model_type="minicpm", rope_theta=10000.0, tie_word_embeddings=True)
    with pytest.raises(MiniCPMError, match="ties them"):
        open_checkpoint(broken)
    assert names(minicpm("doctor", broken, "--json")) == ["wrong-tie"]
    assert minicpm("doctor", broken, "--fix", tmp_path / "out").code == 0
    with open_checkpoint(tmp_path / "out") as repaired:
        assert not repaired.config.tie_word_embeddings


def test_a_template_is_put_into_the_tokenizers_configuration(minicpm, folder: Path, tmp_path: Path):
    spoil(folder, model_type="minicpm", rope_theta=10000.0, tie_word_embeddings=True)
    spoil(folder, "tokenizer_config.json", chat_template=...)
    assert names(minicpm("doctor", folder, "--json")) == ["missing-template"]
    assert minicpm("doctor", folder, "--fix", tmp_path / "out").code == 0
    with open_checkpoint(tmp_path / "out") as repaired:
        assert repaired.has_chat_template
        assert repaired.chat_template().render([{"role": "user", "content": "Hi"}]) == "<用户>Hi<AI>"


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
