"""`minicpm bench`: a table for people, every window for machines, and one sentence where it cannot be."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from minicpm.cli import bench
from minicpm.engine.bench import Peaks, Plan

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
    assert "no list of whole numbers" in done.err
