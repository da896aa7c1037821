"""The long stages of nano v2 on a tiny shape: they stop, continue to the same weights, and are announced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import generate
import pytest
import stages
import torch
from bilingual import records

from minicpm.train.metrics import read_metrics

ASSET = Path(__file__).parents[2] / "src/minicpm/assets/MiniCPM-nano"
torch.set_num_threads(1)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stages in a folder of their own: a tiny shape, a small corpus, v1's tokenizer."""
    shape = json.loads((stages.SHAPE_FILES / "8m.json").read_text())
    shape |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "tiny.json").write_text(json.dumps(shape))
    changes: dict[str, Any] = {
        "SHAPE_FILES": tmp_path,
        "RUNS": tmp_path,
        "WORK": tmp_path / "nano-v2",
        "PID_FILE": tmp_path / "training.pid",
        "STOP_FILE": tmp_path / "nano-v2/STOP",
        "STABLE_PLANS": 150,
        "LENGTH": 256,
        "ROWS": 2,
        "EVAL_RECORDS": 2,
    }
    for name, value in changes.items():
        monkeypatch.setattr(stages, name, value)
    monkeypatch.setattr(stages, "make_tokenizer", lambda: ASSET)
    few = {kind: records.KINDS[kind] for kind in ("facts", "numbers", "talk")}
    monkeypatch.setattr(records, "KINDS", few)
    monkeypatch.setattr(generate, "KINDS", few)
    made = stages.options_for

    def few_steps(data: Path, **changed: Any) -> Any:
        return made(data, **{"steps": 6, "save_every": 4, "eval_every": 3, "eval_batches": 1, "threads": 1} | changed)

    monkeypatch.setattr(stages, "options_for", few_steps)
    stages.make_data(stages.WORK / "pilot-data", 1, 200)
    return stages.WORK


def test_shapes_have_the_family_s_numbers():
    for name in stages.SHAPES:
        shape = json.loads((stages.SHAPE_FILES / f"{name}.json").read_text())
        assert shape["intermediate_size"] % 128 == 0 and shape["intermediate_size"] % 256 != 0
        assert shape["hidden_size"] == 64 * shape["num_attention_heads"] and shape["vocab_size"] == 8192
        assert (shape["scale_emb"], shape["scale_depth"], shape["dim_model_base"]) == (12, 1.4, 64)
        layer = (
            2 * shape["hidden_size"] ** 2
            + 128 * shape["hidden_size"]
            + 3 * shape["hidden_size"] * shape["intermediate_size"]
        )
        millions = (8192 * shape["hidden_size"] + shape["num_hidden_layers"] * layer) / 1e6
        assert millions == pytest.approx(float(name[:-1]), rel=0.02)


def test_shares_of_all_kinds_and_languages_make_the_whole(work: Path):
    shares = [float(share.rpartition(":")[2].rstrip("%")) for share in stages.options_for(work / "data").data]
    assert sum(shares) == pytest.approx(100) and len(shares) % 2 == 0


def test_a_stopped_stable_phase_continues_to_the_same_averaged_weights(work: Path, monkeypatch: pytest.MonkeyPatch):
    stages.stable("tiny", 1)
    whole = (work / "stable-1/final/model.safetensors").read_bytes()
    evaluated = [record for record in read_metrics(work / "stable-1/metrics.jsonl") if "ema_eval_loss" in record]
    assert [record["step"] for record in evaluated] == [3, 6]
    (work / "stable-1").rename(work / "whole")

    class StopsAfterTwo(stages.Stop):
        calls = 0

        def __call__(self) -> bool:
            self.calls += 1
            return self.calls == 2

    with monkeypatch.context() as patched:
        patched.setattr(stages, "Stop", StopsAfterTwo)
        stages.stable("tiny", 1)
    assert not (work / "stable-1/final").exists()
    assert [path.name for path in (work / "stable-1/checkpoints").iterdir()] == ["step-00000002"]
    stages.stable("tiny", 1)
    assert (work / "stable-1/final/model.safetensors").read_bytes() == whole


def test_the_next_round_goes_on_from_the_end_of_the_one_before(work: Path):
    with pytest.raises(SystemExit, match="round 1 has not ended"):
        stages.stable("tiny", 2)
    stages.stable("tiny", 1)
    stages.stable("tiny", 2)
    steps = [record["step"] for record in read_metrics(work / "stable-2/metrics.jsonl") if "loss" in record]
    assert steps == [7, 8, 9, 10, 11, 12]


def test_pilots_have_their_time_and_are_compared_by_language(work: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(stages, "PILOT_SHAPES", ("tiny",))
    monkeypatch.setattr(stages, "PILOT_CPU_S", 0.3)
    stages.pilot("tiny")
    steps = [record["step"] for record in read_metrics(work / "pilot-tiny/metrics.jsonl") if "loss" in record]
    stages.pilot("tiny")  # its time is over
    assert steps == [record["step"] for record in read_metrics(work / "pilot-tiny/metrics.jsonl") if "loss" in record]
    stages.compare()
    found = json.loads((work / "pilots.json").read_text())
    pilot = found["pilots"]["tiny"]
    assert found["better"] == "tiny" and pilot["steps"] == steps[-1] and pilot["cpu_s"] >= 0.3
    assert {kind.rpartition(".")[2] for kind in pilot["averaged"]} == {"en", "zh"}
    assert all(0 < loss < 20 for loss in pilot["averaged"].values())
    assert "mean of kinds, zh" in capsys.readouterr().out


def test_only_one_process_trains_and_it_is_announced(work: Path):
    with stages.announced("a pilot"):
        assert stages.announced_pid() == os.getpid()
        with pytest.raises(SystemExit, match=f"process {os.getpid()} is training already"), stages.announced("another"):
            pass
        assert stages.PID_FILE.read_text().endswith(" a pilot\n")
    assert not stages.PID_FILE.exists() and stages.announced_pid() is None
    stages.PID_FILE.write_text(f"{os.getpid()} 1 an ended process\n")
    with stages.announced("a pilot"):  # left behind by a kill -9
        assert stages.announced_pid() == os.getpid()


def test_what_trains_can_be_paused_continued_and_stopped(work: Path, capsys):
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stages.PID_FILE.write_text(f"{process.pid} {stages.start_ticks(process.pid)} the stable phase\n")
        stages.ask("pause")
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        stages.ask("stop")  # also a paused one
        assert process.wait(timeout=30) == 7
    stages.ask("status")
    assert "nothing is training" in capsys.readouterr().out
