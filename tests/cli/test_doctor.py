"""`minicpm doctor`: what it prints of a diagnosis, and how it ends; tests/doctor proves the diagnoses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broken_models import CONFIG, FOLDER_FAULTS, as_floats, broken_gguf, nano_gguf, nano_of_2024, sound_folder, spoil
from small_gguf import Parts


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GGUF file of a trained model."""
    return nano_gguf(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A sound folder, to be spoiled."""
    return sound_folder(golden, tmp_path / "model")


def test_a_sound_file_has_none_of_the_faults(minicpm, nano: Path, tmp_path: Path):
    done = minicpm("doctor", nano, "--fix", tmp_path / "out.gguf")
    assert (done.code, done.out) == (0, f"{nano}: none of the known faults\n")
    assert not (tmp_path / "out.gguf").exists()


def test_json_tells_the_faults_and_the_copy(minicpm, nano: Path, tmp_path: Path):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", "missing-template")
    found = minicpm("doctor", broken, "--no-run", "--json")
    record = json.loads(found.out)
    assert (found.code, [fault["name"] for fault in record["faults"]]) == (1, ["missing-template"])
    assert {key: record[key] for key in record if key != "faults"} == {
        "path": str(broken),
        "kind": "gguf",
        "not_judged": None,
        "repaired": None,
        "faults_left": 1,
    }
    done = minicpm("doctor", broken, "--no-run", "--fix", tmp_path / "out.gguf", "--json")
    record = json.loads(done.out)
    assert (done.code, record["repaired"], record["faults_left"]) == (0, str(tmp_path / "out.gguf"), 0)


def test_what_can_be_done_is_said(minicpm, nano: Path, tmp_path: Path):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", "missing-template")
    assert minicpm("doctor", broken, "--no-run").err == f"minicpm doctor {broken} --fix OUT writes a repaired copy\n"
    assert (
        minicpm("doctor", broken, "--no-run", "--fix", tmp_path / "out.gguf").err
        == f"{tmp_path / 'out.gguf'}: written\n"
    )


def test_files_alone_are_looked_at_without_running(minicpm, nano: Path, tmp_path: Path):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", "row-order")
    done = minicpm("doctor", broken, "--no-run")
    assert (done.code, done.out) == (0, f"{broken}: none of the known faults\n")


def test_a_model_that_knows_no_language_is_not_judged(minicpm, folder: Path):
    spoil(folder, rope_theta=1e6, tie_word_embeddings=True)
    done = minicpm("doctor", folder)
    assert done.code == 0
    assert "not judged" in done.err


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


def test_weights_that_are_no_numbers_are_named(minicpm, tmp_path: Path):
    broken = as_floats(nano_of_2024(tmp_path / "int4"), tmp_path / "broken")
    FOLDER_FAULTS["not-finite"](broken)
    done = minicpm("doctor", broken, "--fix", tmp_path / "out")
    assert done.code == 1
    assert "model.layers.3.mlp.down_proj.weight" in done.out
    assert "cannot be repaired here" in done.out
    assert not (tmp_path / "out").exists()


def test_another_family_is_refused_by_name(minicpm, folder: Path):
    spoil(folder, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    done = minicpm("doctor", folder)
    assert done.code == 1
    assert "model_type is 'qwen2'" in done.err
