"""`minicpm convert`, called as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicpm.formats.checkpoint import open_checkpoint


def test_convert_writes_the_form_and_says_so_on_stderr(minicpm, toy: Path, tmp_path: Path):
    done = minicpm("convert", toy, tmp_path / "out", "--to", "granite", "--dtype", "bf16")
    assert done.code == 0
    assert done.out == ""
    assert "hf -> granite, 38 tensors in bfloat16" in done.err
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert (checkpoint.format, checkpoint.config.dtype) == ("granite", "bfloat16")


def test_convert_tells_its_progress_in_bytes(minicpm, toy: Path, tmp_path: Path):
    done = minicpm("convert", toy, tmp_path / "out", "--to", "hf")
    assert "converting: done, 4.4 MB" in done.err
    assert "checking: done, 4.4 MB" in done.err
    assert "MB/s" in done.err


def test_convert_prints_json_for_machines(minicpm, toy: Path, tmp_path: Path):
    done = minicpm("convert", toy, tmp_path / "out", "--to", "hf", "--max-shard-size", "1MB", "--bin", "--json")
    record = json.loads(done.out)
    assert record["format"] == "hf"
    assert record["tensors"] == 38
    assert record["files"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert record["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert "pytorch_model.bin.index.json" in record["files"]


def test_convert_writes_one_gguf_file_and_info_reads_it(minicpm, toy: Path, tmp_path: Path):
    file = tmp_path / "toy.gguf"
    done = minicpm("convert", toy, file, "--to", "gguf", "--dtype", "f16")
    assert done.code == 0
    assert "hf -> gguf, 38 tensors in F16" in done.err
    told = minicpm("info", "-m", file)
    assert (told.code, told.err) == (0, "")
    for words in ("gguf format, float16 and float32", "in toy.gguf", "dim_model_base 64", "template    its own"):
        assert words in told.out
    answer = minicpm("run", "-m", file, "--backend", "numpy", "--max-tokens", "4", "--temperature", "0", "Hello")
    assert answer.code == 0


@pytest.mark.parametrize(
    ("destination", "more", "code", "words"),
    [
        ("out", [], 2, "a name that ends in .gguf"),
        ("out.gguf", ["--bin"], 2, "leave --bin and --max-shard-size out"),
        ("out.gguf", ["--max-shard-size", "1GB"], 2, "leave --bin and --max-shard-size out"),
        ("out.gguf", ["--dtype", "q4_0"], 1, "not a multiple of 32"),
    ],
)
def test_a_gguf_that_cannot_be_is_not_written(
    minicpm, toy: Path, tmp_path: Path, destination: str, more: list, code: int, words: str
):
    done = minicpm("convert", toy, tmp_path / destination, "--to", "gguf", *more)
    assert done.code == code
    assert words in done.err
    assert not (tmp_path / destination).exists()


def test_convert_replaces_a_model_only_when_forced(minicpm, toy: Path, tmp_path: Path):
    assert minicpm("convert", toy, tmp_path / "out", "--to", "llama").code == 0
    again = minicpm("convert", toy, tmp_path / "out", "--to", "vllmcpm")
    assert again.code == 2
    assert "already exists" in again.err
    assert "--force" in again.err
    assert minicpm("convert", toy, tmp_path / "out", "--to", "vllmcpm", "--force").code == 0
    assert (tmp_path / "out" / "pytorch_model.pt").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SRC", "-", "--to", "hf"], "convert reads and writes folders"),
        (["-", "DST", "--to", "hf"], "convert reads and writes folders"),
        (["SRC", "", "--to", "hf"], "is not a folder"),
        (["SRC", "DST"], "--to"),
        (["SRC", "DST", "--to", "mlx"], "invalid choice"),
        (["SRC", "DST", "--to", "hf", "--dtype", "int4"], "float32, float16, bfloat16"),
        (["SRC", "DST", "--to", "hf", "--max-shard-size", "big"], "a size is a number"),
        (["SRC", "DST", "--to", "hf", "--max-shard-size", "-1GB"], "--max-shard-size"),
        (["SRC", "DST", "EXTRA", "--to", "hf"], "unrecognized arguments"),
        (["SRC"], "required"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_one_clear_line(minicpm, toy: Path, tmp_path: Path, arguments: list, words: str):
    places = {"SRC": str(toy), "DST": str(tmp_path / "out")}
    done = minicpm("convert", *[places.get(word, word) for word in arguments])
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["nothing/here", "/nonexistent/model"])
def test_a_source_that_is_not_there_ends_with_1(minicpm, tmp_path: Path, source: str):
    done = minicpm("convert", source, tmp_path / "out", "--to", "hf")
    assert done.code == 1
    assert source in done.err
    assert "Traceback" not in done.err


def test_a_hostile_source_gives_one_sentence(minicpm, toy: Path, tmp_path: Path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_bytes((toy / "config.json").read_bytes())
    (bad / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch TRIPPED'\ntR.")
    done = minicpm("convert", bad, tmp_path / "out", "--to", "hf")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "not a torch zip checkpoint" in done.err
    assert not Path("TRIPPED").exists()


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (None, "became float32: the same numbers as stored"),
        ("bf16", "became bfloat16: each rounded once, by at most 1/256 of it"),
    ],
)
def test_the_loss_of_a_quantized_source_is_told(minicpm, tmp_path: Path, dtype: str | None, words: str):
    """The built-in model is INT4 and INT8."""
    more = [] if dtype is None else ["--dtype", dtype]
    done = minicpm("convert", "minicpm-nano", tmp_path / "out", "--to", "hf", *more)
    assert done.code == 0
    assert f"INT4 and INT8 weights {words}" in done.err
    assert minicpm("run", "-m", tmp_path / "out", "--backend", "numpy", "--max-tokens", "2", "Hi").code == 0
