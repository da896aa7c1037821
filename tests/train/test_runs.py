"""Whole runs: resumed to the last bit, killed, on full disks and damaged checkpoints, branched and fine-tuned."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minicpm.engine.llm import LLM
from minicpm.errors import DataError, FormatError, TrainingError
from minicpm.export.convert import convert
from minicpm.export.gguf import write_gguf
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.safetensors import SafetensorsWriter
from minicpm.hub import embedded
from minicpm.models import load_model
from minicpm.tokenizer import first_difference
from minicpm.train.checkpoint import CheckpointFolder, averaged_weights
from minicpm.train.metrics import read_metrics
from minicpm.train.options import OptimizerOptions, RunOptions
from minicpm.train.runs import Watcher, _warm_up_warning, finetune, pretrain
from minicpm.train.schedules import Schedule
from train.killing import killed_at_random, losses

Options = Callable[..., RunOptions]


class Stopped(Exception):
    """Somebody pulled the plug."""


def stop_after(step: int) -> Watcher:
    def stepped(record: Any) -> None:
        if record.step == step:
            raise Stopped

    return Watcher(stepped=stepped)


@pytest.fixture
def train(shape: Path, toy: Path, tmp_path: Path) -> Callable[..., Path]:
    """train(name, options, ...): pretrain the tiny shape in a folder of that name."""

    def run(name: str, options: RunOptions, **arguments: Any) -> Path:
        pretrain(tmp_path / name, options, shape=shape, tokenizer=toy, **arguments)
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": OptimizerOptions(name="muon")},
        {"precision": "bf16"},
        {"optimizer": OptimizerOptions(name="muon"), "ema_decay": 0.9},
    ],
    ids=["adamw", "muon", "bf16", "muon and averaged weights"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(
    changes: dict[str, Any], train: Callable[..., Path], tiny_options: Options
):
    options = tiny_options(**changes)
    whole = train("whole", options)
    with pytest.raises(Stopped):
        train("broken", options, watcher=stop_after(5))
    broken = train("broken", options, resume=True)
    assert losses(broken) == losses(whole) and len(losses(whole)) == 6
    for name in ("final", "checkpoints/step-00000006"):
        assert (broken / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()
    averages = [averaged_weights(run / "checkpoints/step-00000006") for run in (broken, whole)]
    assert bool(averages[0]) == bool(options.ema_decay)
    assert all(torch.equal(averages[0][name], tensor) for name, tensor in averages[1].items())


def test_the_final_model_holds_the_averaged_weights_and_evaluations_measure_both(
    train: Callable[..., Path], tiny_options: Options, questions: Path
):
    options = tiny_options(ema_decay=0.5, dtype="float32", evaluation=(str(questions),), eval_every=6)
    averaged, plain = train("averaged", options), train("plain", replace(options, ema_decay=0.0))
    assert losses(averaged) == losses(plain)  # averaging changes no step
    last = averaged / "checkpoints/step-00000006"
    weights, kept = load_model(averaged / "final").state_dict(), averaged_weights(last)
    assert kept and all(torch.equal(weights[name], tensor) for name, tensor in kept.items())
    assert not torch.equal(weights["model.norm.weight"], load_model(plain / "final").state_dict()["model.norm.weight"])
    [both], [one] = ([m for m in read_metrics(run / "metrics.jsonl") if "eval_loss" in m] for run in (averaged, plain))
    assert both["eval_loss"] == one["eval_loss"] != both["ema_eval_loss"]
    assert "ema_eval_loss" not in one


def test_a_branch_starts_its_average_where_the_parent_left_it_or_at_the_weights(
    train: Callable[..., Path], tiny_options: Options, tmp_path: Path
):
    parents = {decay: train(f"parent{decay}", tiny_options(ema_decay=decay)) for decay in (0.0, 0.5)}
    for decay, parent in parents.items():
        branch = tmp_path / f"branch{decay}"
        with pytest.raises(Stopped):
            pretrain(branch, tiny_options(ema_decay=0.5), branch_from=parent, watcher=stop_after(7))
        begun, left = branch / "checkpoints/step-00000006", parent / "checkpoints/step-00000006"
        expected = averaged_weights(left) or load_checkpoint_weights(left)
        kept = averaged_weights(begun)
        assert all(torch.equal(kept[name], expected[name]) for name in kept)


def load_checkpoint_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_model(folder).state_dict().items() if name != "lm_head.weight"}


def test_a_stopped_run_has_a_checkpoint_and_continues_to_the_same_weights(
    train: Callable[..., Path], tiny_options: Options, shape: Path, toy: Path, tmp_path: Path
):
    options = tiny_options(save_every=0, ema_decay=0.9)
    whole = train("whole", options)
    steps: list[int] = []
    watcher = Watcher(stepped=lambda record: steps.append(record.step), should_stop=lambda: len(steps) == 3)
    stopped = pretrain(tmp_path / "run", options, shape=shape, tokenizer=toy, watcher=watcher)
    assert (stopped.steps, stopped.is_complete, stopped.model.exists()) == (3, False, False)
    assert CheckpointFolder(tmp_path / "run/checkpoints").steps() == [3]
    run = train("run", options, resume=True)
    assert losses(run) == losses(whole)
    assert (run / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()


def test_a_run_of_a_version_without_an_option_can_be_resumed(
    train: Callable[..., Path], tiny_options: Options, tmp_path: Path
):
    with pytest.raises(Stopped):
        train("run", tiny_options(), watcher=stop_after(3))
    note = tmp_path / "run/run.json"
    noted = json.loads(note.read_text())
    del noted["ema_decay"]
    note.write_text(json.dumps(noted))
    with pytest.raises(TrainingError, match=r"ema_decay 0\.0, now it is 0\.5"):
        train("run", tiny_options(ema_decay=0.5), resume=True)
    train("run", tiny_options(), resume=True)


def test_kill_9_at_random_moments_changes_no_loss(
    train: Callable[..., Path], tiny_options: Options, shape: Path, toy: Path, tmp_path: Path
):
    options = tiny_options(steps=14, save_every=3)
    whole = train("whole", options)
    kills = killed_at_random(tmp_path / "killed", options, shape, toy, kills=3, random=random.Random(4))
    assert kills == 3
    assert losses(tmp_path / "killed") == losses(whole)


def test_the_final_folder_is_an_ordinary_model(train: Callable[..., Path], tiny_options: Options):
    run = train("run", tiny_options(dtype="float32"))
    llm = LLM(run / "final", backend="torch")
    assert llm.chat("Hi", max_tokens=4).ids is not None
    trained = load_model(run / "final")
    assert trained.dtype == torch.float32
    assert trained.config.scale_emb == 12 and trained.config.tie_word_embeddings


def test_two_checkpoints_are_kept(train: Callable[..., Path], tiny_options: Options):
    run = train("run", tiny_options())
    assert CheckpointFolder(run / "checkpoints").steps() == [6, 4]
    assert not [path for path in (run / "checkpoints").iterdir() if path.suffix == ".partial"]


@pytest.mark.parametrize(
    "damage, name",
    [
        ("flipped", "model.safetensors"),
        ("cut", "optimizer.safetensors"),
        ("flipped", "state.json"),
        ("gone", "state.json"),
    ],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    damage: str, name: str, train: Callable[..., Path], tiny_options: Options
):
    whole = train("whole", tiny_options())
    with pytest.raises(Stopped):
        train("run", tiny_options(), watcher=stop_after(5))
    run = whole.with_name("run")
    victim = run / "checkpoints/step-00000004" / name
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data if damage == "flipped" else data[:-7])
    told: list[str] = []
    train("run", tiny_options(), resume=True, watcher=Watcher(tell=told.append))
    assert any("checkpoint of step 4 is damaged" in text for text in told)
    assert "resumed at step 2" in told
    assert losses(run) == losses(whole)


def test_a_run_of_damaged_checkpoints_says_so(train: Callable[..., Path], tiny_options: Options):
    run = train("run", tiny_options())
    for state in run.glob("checkpoints/*/state.json"):
        state.write_text("{}")
    with pytest.raises(TrainingError, match="every checkpoint is damaged"):
        train("run", tiny_options(), resume=True)


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(
    train: Callable[..., Path], tiny_options: Options, monkeypatch: pytest.MonkeyPatch
):
    whole = train("whole", tiny_options())
    write, is_full = SafetensorsWriter.write, [False]

    def writing(self: SafetensorsWriter, name: str, chunks: Any) -> int:
        if "step-00000004" in str(self.path) and "optimizer" in self.path.name:
            is_full[0] = True
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, name, chunks)

    monkeypatch.setattr(SafetensorsWriter, "write", writing)
    told: list[str] = []
    watcher = Watcher(stepped=stop_after(5).stepped, tell=told.append)
    with pytest.raises(Stopped):
        train("run", tiny_options(), watcher=watcher)
    run = whole.with_name("run")
    assert is_full[0] and any("disk is full" in text and "step 2 is intact" in text for text in told)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    train("run", tiny_options(), resume=True)
    assert losses(run) == losses(whole)


def test_a_half_written_line_of_metrics_is_forgotten(train: Callable[..., Path], tiny_options: Options):
    with pytest.raises(Stopped):
        train("run", tiny_options(), watcher=stop_after(5))
    run = train("other", tiny_options()).with_name("run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train("run", tiny_options(), resume=True)
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (run / "loss.svg").read_text().startswith("<svg")


def test_a_run_is_not_overwritten_nor_resumed_with_other_options(train: Callable[..., Path], tiny_options: Options):
    train("run", tiny_options())
    with pytest.raises(TrainingError, match="pass --resume"):
        train("run", tiny_options())
    with pytest.raises(TrainingError, match="started with seed 0, now it is 1"):
        train("run", tiny_options(seed=1), resume=True)


def test_bad_data_stop_a_run_before_its_first_step(
    train: Callable[..., Path], tiny_options: Options, stories: Path, tmp_path: Path
):
    good = stories.read_text()
    stories.write_text(good + '{"text": 3}\n')
    with pytest.raises(DataError, match="line 61: text must be a string"):
        train("run", tiny_options())
    assert not (tmp_path / "run/checkpoints").exists()
    stories.write_text(good)
    train("run", tiny_options())  # no --resume: what could not start was no run


def test_a_model_that_cannot_be_trained_leaves_no_folder(tmp_path: Path, questions: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError):
        finetune(tmp_path / "empty", tmp_path / "run", RunOptions(data=(str(questions),)))
    assert not (tmp_path / "run").exists()


def test_a_decay_branch_goes_on_from_a_stable_checkpoint(
    train: Callable[..., Path], tiny_options: Options, tmp_path: Path
):
    stable = train("stable", tiny_options(decay_steps=0))
    before = (stable / "checkpoints/step-00000006/model.safetensors").read_bytes()
    branch = tmp_path / "branch"
    options = tiny_options(steps=4, decay_steps=4, length=48, eval_every=2, evaluation=tiny_options().data[:1])
    with pytest.raises(Stopped):
        pretrain(branch, options, branch_from=stable, watcher=stop_after(9))
    pretrain(branch, options, branch_from=stable, resume=True)
    records = [record for record in read_metrics(branch / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in records] == [7, 8, 9, 10]
    assert records[0]["lr"] == 0.01 and records[-1]["lr"] == pytest.approx(0.01 * 0.5 ** (5 * 3 / 4))
    assert records[0]["loss"] < losses(stable)[0]  # weights came along
    assert (stable / "checkpoints/step-00000006/model.safetensors").read_bytes() == before
    evaluated = [record["eval_loss"] for record in read_metrics(branch / "metrics.jsonl") if "eval_loss" in record]
    assert len(evaluated) == 2


def test_finetuning_keeps_the_source_and_lowers_the_loss(toy: Path, questions: Path, tmp_path: Path):
    before = (toy / "model.safetensors").read_bytes()
    options = RunOptions(
        data=(str(questions),),
        length=64,
        rows=4,
        epochs=4,
        warmup_steps=2,
        optimizer=OptimizerOptions(lr=3e-3),
        precision="fp32",
        device="cpu",
        eval_every=0,
    )
    done = finetune(toy, tmp_path / "run", options)
    found = losses(tmp_path / "run")
    assert found[-1] < 0.75 * found[0]
    assert (toy / "model.safetensors").read_bytes() == before
    assert json.loads((done.model / "config.json").read_text())["torch_dtype"] == "float32"  # the source's own


def test_nobody_trains_in_a_folder_twice_at_once(train: Callable[..., Path], tiny_options: Options, tmp_path: Path):
    def stepped(record: Any) -> None:
        with pytest.raises(TrainingError, match="another process is training here"):
            train("run", tiny_options(), resume=True)

    train("run", tiny_options(steps=1, decay_steps=0), watcher=Watcher(stepped=stepped))


# --- resuming what is not there, or lies elsewhere -----------------------------------------------------------------


def test_a_name_beside_a_run_is_taken_for_a_typo(train: Callable[..., Path], tiny_options: Options, tmp_path: Path):
    run = train("stories", tiny_options(steps=1, decay_steps=0, warmup_steps=0))
    with pytest.raises(TrainingError, match=f"no run to resume; beside it is {run}"):
        train("storys", tiny_options(), resume=True)
    assert not (tmp_path / "storys").exists()
    with pytest.raises(TrainingError, match=f"the run is its parent folder: --out {run}"):
        train("stories/final", tiny_options(), resume=True)


def test_a_run_that_does_not_exist_yet_begins_and_says_so(train: Callable[..., Path], tiny_options: Options):
    told: list[str] = []
    run = train("new", tiny_options(steps=1, decay_steps=0), resume=True, watcher=Watcher(tell=told.append))
    assert f"there is no run in {run} yet, so a new one begins" in told


def test_a_run_moves_with_its_model_and_data(toy: Path, questions: Path, tmp_path: Path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copytree(toy, before / "model")
    shutil.copy(questions, before / "data.jsonl")

    def tune(place: Path, model: str = "model", **arguments: Any) -> None:
        options = RunOptions(
            data=(f"{place / 'data.jsonl'}:2",), length=32, rows=2, steps=2, warmup_steps=0, save_every=1, eval_every=0
        )
        finetune(place / model, place / "run", options, **arguments)

    with pytest.raises(Stopped):
        tune(before, watcher=stop_after(2))
    before.rename(after)
    tune(after, resume=True)
    assert [record["step"] for record in read_metrics(after / "run" / "metrics.jsonl")] == [1, 2]
    noted = json.loads((after / "run" / "run.json").read_text())
    assert noted["from"] == str(after / "model")
    other = shutil.copytree(after / "model", tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[200_000] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    after.joinpath("model").rename(after / "gone")
    shutil.move(other, after / "elsewhere")
    with pytest.raises(TrainingError, match="started with from"):
        tune(after, model="elsewhere", resume=True)


# --- a warm-up that does not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "decay", "words"),
    [
        (0, 2, None),
        (2, 2, None),
        (8, 0, "the warm-up of 8 steps is longer than the run: its rate ends at 38 % of the peak"),
        (2, 3, "the warm-up of 2 steps and the decay of 3 overlap in a run of 4 steps"),
    ],
)
def test_a_warm_up_that_does_not_fit_is_told(warmup: int, decay: int, words: str | None):
    told = _warm_up_warning(Schedule("wsd", 3 if warmup == 8 else 4, warmup, decay), first_step=0)
    assert told is None if words is None else told is not None and told.startswith(words)


def test_a_branch_behind_the_warm_up_is_told():
    schedule = Schedule("wsd", last_step=30, warmup_steps=10)
    told = _warm_up_warning(schedule, first_step=20)
    assert told is not None and "step 20, behind the warm-up of 10" in told
    assert schedule.factor(20) == 1.0
    assert _warm_up_warning(schedule, first_step=4) is None


# --- quantized models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_quantized_model_is_trained_as_the_floats_it_stands_for(form: str, questions: Path, tmp_path: Path):
    """The built-in model, which is INT4, and a GGUF file of it."""
    model = embedded.folder()
    if form == "file":
        write_gguf(model, tmp_path / "nano.gguf")
        model = tmp_path / "nano.gguf"
    told: list[str] = []
    options = RunOptions(
        data=(str(questions),),
        length=48,
        rows=2,
        steps=1,
        warmup_steps=0,
        optimizer=OptimizerOptions(lr=1e-4),
        eval_every=0,
        precision="fp32",
        device="cpu",
    )
    done = finetune(model, tmp_path / "run", options, watcher=Watcher(tell=told.append))
    assert any("are trained in float32" in text for text in told)
    first = next(record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    convert(model, tmp_path / "floats", to="hf")
    with open_checkpoint(done.model) as tuned, open_checkpoint(tmp_path / "floats") as before:
        assert (tuned.config.dtype, before.config.dtype) == ("bfloat16", "float32")
        norm = "model.norm.weight"
        assert np.allclose(tuned.read(norm).float32(), before.read(norm).float32(), rtol=0.01, atol=1e-3)
        assert first_difference(tuned.tokenizer(), before.tokenizer()) is None
    again = finetune(tmp_path / "floats", tmp_path / "again", options)
    assert next(record["loss"] for record in read_metrics(again.model.parent / "metrics.jsonl")) == first
