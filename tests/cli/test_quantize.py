"""`minicpm quantize`, called as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicpm.export import calibrated
from minicpm.formats.checkpoint import open_checkpoint


def test_quantize_shows_sizes_and_errors_and_writes_a_model_that_runs(minicpm, toy: Path, tmp_path: Path):
    done = minicpm("quantize", toy, tmp_path / "out", "--preset", "int8")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["weights", "elements", "size", "bits/weight", "error"]
    assert lines[-1].startswith("all ")
    assert "int8 by rtn, 4.4 MB -> 1.2 MB, written and checked" in done.err
    answer = minicpm("run", "-m", tmp_path / "out", "hello", "--max-tokens", "5", "--temperature", "0")
    assert answer.code == 0
    with open_checkpoint(tmp_path / "out", allow_quantized=True) as checkpoint:
        assert set(checkpoint.packings.values()) == {checkpoint.packings["model.embed_tokens.weight"]}


def test_quantize_prints_json_for_machines(minicpm, toy: Path, tmp_path: Path):
    record = json.loads(minicpm("quantize", toy, tmp_path / "out", "--json").out)
    assert (record["preset"], record["method"]) == ("int4", "rtn")
    kinds = {kind["kind"]: kind for kind in record["kinds"]}
    assert kinds["embed_tokens"]["bits"] == 8
    assert kinds["mlp.up_proj"]["bits"] == 4
    assert 0.05 < kinds["mlp.up_proj"]["relative_rmse"] < 0.12


def test_info_tells_what_a_quantized_folder_holds(minicpm, toy: Path, tmp_path: Path):
    minicpm("quantize", toy, tmp_path / "out")
    facts = json.loads(minicpm("info", "-m", tmp_path / "out", "--json").out)
    assert facts["quantization"] == {"4 bits by 64": 28, "8 bits by 64": 1}
    assert "28 weights in 4 bits by 64" in minicpm("info", "-m", tmp_path / "out").out
    assert json.loads(minicpm("info", "-m", toy, "--json").out)["quantization"] == {}


def test_int4_small_is_never_made_or_shown_without_what_it_costs(minicpm, toy: Path, tmp_path: Path):
    words = "int4-small costs a trained model much"
    assert words in minicpm("quantize", toy, tmp_path / "small", "--preset", "int4-small").err
    assert words in minicpm("info", "-m", tmp_path / "small").out
    assert words in json.loads(minicpm("info", "-m", tmp_path / "small", "--json").out)["quantization_cost"]
    assert words not in minicpm("quantize", toy, tmp_path / "int4").err
    assert json.loads(minicpm("info", "-m", tmp_path / "int4", "--json").out)["quantization_cost"] is None


LINE = "The weather was fine, and the children went down to the river to look for stones. "


def test_gptq_is_calibrated_on_a_file_the_sample_or_what_the_model_writes(minicpm, toy: Path, tmp_path: Path):
    (tmp_path / "book.txt").write_text(LINE * 200)
    few = "--calibration-tokens", "1024"
    texts = {"book.txt": tmp_path / "book.txt", "the packaged sample": "sample", "text that the model wrote": "self"}
    for name, given in texts.items():
        done = minicpm("quantize", toy, tmp_path / "out", "--method", "gptq", "--calibration", given, *few, "--force")
        assert done.code == 0, done.err
        assert "calibrating on 1,024 tokens of " in done.err and name in done.err
        assert "int4 by gptq, 4.4 MB -> " in done.err
        assert minicpm("run", "-m", tmp_path / "out", "hello", "--max-tokens", "5").code == 0
    assert json.loads(minicpm("quantize", toy, tmp_path / "json", "--method", "gptq", *few, "--json").out)["method"]


def test_ctrl_c_keeps_the_blocks_that_are_done_and_says_so(
    minicpm, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = calibrated._calibrated_block

    def interrupted(source: calibrated.Source, state: object, block: int):
        if block == 2:
            raise KeyboardInterrupt
        return run(source, state, block)

    command = "quantize", toy, tmp_path / "out", "--method", "gptq", "--calibration-tokens", "1024"
    monkeypatch.setattr(calibrated, "_calibrated_block", interrupted)
    stopped = minicpm(*command)
    assert stopped.code == 130 and ".out.calibration keeps the blocks that are done" in stopped.err
    monkeypatch.undo()
    assert minicpm(*command).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_calibration_text_that_is_none_is_refused_before_any_work(minicpm, toy: Path, tmp_path: Path):
    (tmp_path / "short.txt").write_text(LINE)
    (tmp_path / "bad.jsonl").write_text('{"question": 3}\n')
    for given, code, words in (
        (tmp_path / "short.txt", 1, "tokens; calibration needs at least 1,024"),
        (tmp_path / "bad.jsonl", 1, "bad.jsonl: line 1"),
        (tmp_path / "missing.txt", 1, "missing.txt: no such file"),
        (tmp_path / "missing.jsonl", 1, "missing.jsonl: no such file"),
        (toy, 1, "are .jsonl, .jsonl.gz or .json files"),
    ):
        done = minicpm("quantize", toy, tmp_path / "out", "--method", "gptq", "--calibration", given)
        assert done.code == code and words in done.err, done.err
    few = minicpm("quantize", toy, tmp_path / "out", "--method", "gptq", "--calibration-tokens", "10")
    assert few.code == 2 and "--calibration-tokens: must be 1024 or more, got 10" in few.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SRC", "DST", "--preset", "int3"], "invalid choice"),
        (["SRC", "DST", "--method", "magic"], "invalid choice"),
        (["SRC"], "required"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(minicpm, toy: Path, tmp_path: Path, arguments: list[str], words: str):
    places = {"SRC": str(toy), "DST": str(tmp_path / "out")}
    done = minicpm("quantize", *[places.get(word, word) for word in arguments])
    assert done.code == 2
    assert words in done.err


def test_a_preset_that_does_not_fit_ends_with_1_and_one_sentence(minicpm, toy: Path, tmp_path: Path):
    done = minicpm("quantize", toy, tmp_path / "out", "--preset", "int4-hf")
    assert done.code == 1
    assert "not a multiple of 128" in done.err
    assert not (tmp_path / "out").exists()


def test_the_built_in_model_is_quantized_again_and_says_so(minicpm, tmp_path: Path):
    done = minicpm("quantize", "minicpm-nano", tmp_path / "out", "--preset", "int8", "--json")
    assert done.code == 0
    assert json.loads(done.out)["dequantized"] == "INT4 and INT8"
    assert "rounded a second time" in done.err
