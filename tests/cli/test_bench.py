"""`minicpm bench`: a table for people, every window in JSON, and one sentence for an error."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
import shutil
from functools import partial
from pathlib import Path

import pytest

from minicpm.bench.measure import Peaks, Plan
from minicpm.bench.report import read_report
from minicpm.cli.verbs import bench
from minicpm.hub import embedded

SHORT = ("--prefill", "8", "--decode", "0,16", "--batch", "2", "--verify", "2", "--repeats", "2")


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Plan", partial(Plan, window_s=0.01))
    monkeypatch.setattr(bench, "Peaks", partial(Peaks, memory_bytes=1 << 20))


def test_bench_speaks_json(minicpm):
    pytest.importorskip("minicpm._native")
    done = minicpm("bench", "--json", *SHORT)
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["backend"], found["peak_rss_tokens"]) == ("native", 16)
    assert [(speed["kind"], speed["size"]) for speed in found["speeds"]] == [
        ("prefill", 8),
        ("decode", 0),
        ("decode", 16),
        ("batch", 2),
    ]
    for speed in found["speeds"]:
        windows = speed["tokens_per_s"]["windows"]
        assert len(windows) == 2
        assert speed["tokens_per_s"]["best"] == max(windows)
        assert speed["of_integer_peak" if speed["kind"] == "prefill" else "of_bandwidth"] > 0
    assert [step["tokens"] for step in found["verifications"]] == [1, 2]
    assert found["verifications"][0]["cost"] == 1
    assert found["load_s"] > 0


def test_bench_prints_a_table(minicpm):
    pytest.importorskip("minicpm._native")
    done = minicpm("bench", *SHORT)
    assert (done.code, done.err) == (0, "")
    for words in ("MiniCPM-nano", "prefill of 8", "decode at 16", "batch of 2", "single steps", "GB/s", "GOPS"):
        assert words in done.out


def test_bench_measures_an_engine_without_the_extension(minicpm, toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("minicpm.native.why_missing", lambda: "not built")
    done = minicpm("bench", "-m", toy, "--backend", "numpy", "--json", *SHORT)
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["backend"], found["isa"], found["read_bandwidth"]) == ("numpy", None, None)
    assert all(speed["of_bandwidth"] is None for speed in found["speeds"])


def test_bench_of_nothing_and_of_too_much_is_one_sentence(minicpm):
    nothing = minicpm("bench", "--prefill", "", "--decode", "", "--batch", "", "--verify", "0")
    assert nothing.code == 2
    assert "nothing to measure" in nothing.err
    deep = minicpm("bench", "--decode", "100000")
    assert deep.code == 2
    assert "the context holds 2048" in deep.err
    assert deep.err.count("\n") == 1


def test_a_list_that_is_none_is_wrong_usage(minicpm):
    done = minicpm("bench", "--prefill", "12 and 40")
    assert done.code == 2
    assert "not a list of whole numbers" in done.err


# --- a report to be shown ----------------------------------------------------------------------------------------


def test_a_report_tells_what_was_measured_and_not_where(minicpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("minicpm._native")
    secret = tmp_path / "somebody" / "a-model"
    secret.parent.mkdir()
    shutil.copytree(embedded.FOLDER, secret)
    monkeypatch.chdir(tmp_path)
    done = minicpm("bench", "-m", secret, "--report", "--device-name", "A Board, 8 GB", "--json", *SHORT)
    assert done.code == 0, done.err
    (path,) = tmp_path.glob("*.json")
    assert path.name == "a-board-8-gb-a-model.json"
    assert path.name in done.err and "docs/devices.md" in done.err
    found, report = json.loads(done.out), read_report(path)
    assert (report.device.name, report.model.name, report.backend) == ("A Board, 8 GB", "a-model", "native")
    content = (secret / "model.safetensors").read_bytes()
    assert report.model.sha256 == hashlib.sha256(content).hexdigest()
    assert [point.tokens_per_s.median for point in report.speeds] == pytest.approx(
        [speed["tokens_per_s"]["median"] for speed in found["speeds"]], rel=1e-3
    )
    text = path.read_text(encoding="utf-8")
    for private in ("somebody", str(tmp_path), str(Path.home()), f'"{getpass.getuser()}"', platform.node() or "node"):
        assert private not in text


def test_a_report_never_replaces_a_file_unasked(minicpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("minicpm._native")
    path = tmp_path / "row.json"
    path.write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(bench, "measure", lambda *args, **kwargs: pytest.fail("measured before it looked"))
        done = minicpm("bench", "--report", path, *SHORT)
        assert (done.code, path.read_text()) == (2, "mine")
        assert "already exists; name another file or pass --force" in done.err
        done = minicpm("bench", "--report", tmp_path, *SHORT)
        assert done.code == 2 and "is a folder; name a file in it" in done.err
    assert minicpm("bench", "--report", path, "--force", *SHORT).code == 0
    assert read_report(path).model.name == "MiniCPM-nano"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device-name", "box"), "need --report"),
        (("--force",), "need --report"),
        (("--report", "--device-name", "a|b"), "without |"),
        (("--report", "--sliding-window", "32"), "leave --sliding-window out"),
        (("--report", "--decode", ""), "at least one depth"),
    ],
)
def test_a_report_that_cannot_be_is_wrong_usage(minicpm, arguments: tuple[str, ...], words: str):
    done = minicpm("bench", *SHORT, *arguments)
    assert done.code == 2
    assert words in done.err


def test_without_the_extension_there_is_no_bandwidth_to_report(minicpm, toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("minicpm.native.why_missing", lambda: "not built")
    done = minicpm("bench", "-m", toy, "--backend", "numpy", "--report", *SHORT)
    assert done.code == 2
    assert "the native extension measures" in done.err
