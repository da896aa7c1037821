"""`minicpm prepare`: a folder that `pretrain` starts from, made from training files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicpm.errors import ModelError
from minicpm.formats.config import DecoderConfig, read_config_json
from minicpm.train.shapes import shape_for


def write_data(folder: Path) -> Path:
    file = folder / "data.jsonl"
    records: list[dict[str, object]] = [
        {"text": f"Once there was a rabbit number {n}, who ran home."} for n in range(50)
    ]
    records += [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there!"}]}
    ] * 20
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return file


def test_it_makes_what_pretrain_starts_from(minicpm, tmp_path: Path):
    pytest.importorskip("torch")
    data, new = write_data(tmp_path), tmp_path / "new"
    made = minicpm(
        *("prepare", "--data", data, "--parameters", "200k", "--vocab-size", "512"),
        *("--context", "128", "--out", new, "--json"),
    )
    assert made.code == 0, made.err
    facts = json.loads(made.out)
    config = DecoderConfig.from_dict(read_config_json(new / "config.json"))
    assert facts["parameters"] == config.num_parameters() and facts["vocab_size"] == config.vocab_size <= 512
    assert config.context_length == 128
    run = tmp_path / "run"
    trained = minicpm(
        *("pretrain", "--shape", new / "config.json", "--tokenizer", new, "--data", data, "--out", run),
        *("--steps", "1", "--rows", "1", "--length", "64", "--warmup-steps", "0", "--threads", "1"),
    )
    assert trained.code == 0, trained.err
    assert (run / "final" / "tokenizer.model").exists()
    assert minicpm("convert", run / "final", tmp_path / "model.gguf", "--to", "gguf").code == 0


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (("--parameters", "many"), 2, "is not a number of parameters such as 500k, 8M or 1.2B"),
        (("--vocab-size", "100"), 2, "must be 512 or more"),
        (("--data", "none.jsonl"), 1, "none.jsonl: no such file"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(minicpm, tmp_path: Path, arguments, code, words):
    more = () if "--data" in arguments else ("--data", write_data(tmp_path))
    before = sorted(tmp_path.iterdir())
    done = minicpm("prepare", *more, *arguments, "--out", tmp_path / "new")
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_bad_record_is_named(minicpm, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"nothing": 1}\n', encoding="utf-8")
    done = minicpm("prepare", "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "new")
    assert done.code == 1 and "line 2" in done.err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("parameters", [500_000, 8_000_000, 28_000_000, 120_000_000, 1_200_000_000])
def test_a_shape_has_the_wanted_size_and_the_familys_proportions(parameters: int):
    shape = shape_for(parameters, 2048, 2048)
    assert abs(shape.num_parameters() / parameters - 1) < 0.1
    assert shape.intermediate_size % 128 == 0 and shape.head_dim == 64
    assert shape.hidden_size < 256 or 20 <= shape.hidden_size // shape.num_hidden_layers <= 64


def test_a_vocabulary_that_leaves_no_room_is_said():
    with pytest.raises(ModelError, match="the nearest model to 100,000 parameters has"):
        shape_for(100_000, 100_000, 128)
