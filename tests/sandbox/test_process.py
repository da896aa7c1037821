"""A job in the sandbox answers within its limits, or is ended. It has no access to this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm.sandbox.process import Failed, Limits, Stopped, run_job

LIMITS = Limits(cpu_s=1, wall_s=20.0, address_space_bytes=256 << 20, output_characters=1000)


def job(tmp_path: Path, work: str, prepare: str = "pass") -> Path:
    path = tmp_path / "a_job.py"
    path.write_text(f"def prepare():\n    {prepare}\n\ndef work(request):\n    {work}\n", encoding="utf-8")
    return path


def test_a_job_answers_its_request(tmp_path: Path):
    assert run_job(job(tmp_path, "return [request['word'], '😀'] * 2"), {"word": "好"}, LIMITS) == "好😀好😀"


@pytest.mark.parametrize(
    "work, problem",
    [
        ("raise KeyError('lost')", "KeyError: 'lost'"),
        ("return 7", "TypeError"),
        ("return ['x' * 600] * 2", "its output has more than 1,000 characters"),
        ("return ['x' * (1 << 30)]", "it needs more than 256 MB"),
        ("work(request)", "it is nested too deeply"),
        ("open('/etc/hostname')", "Too many open files"),
        ("import minicpm", "ModuleNotFoundError|Too many open files"),
    ],
)
def test_a_job_that_fails_says_why(tmp_path: Path, work: str, problem: str):
    with pytest.raises(Failed, match=problem):
        run_job(job(tmp_path, work), {}, LIMITS)


def test_a_job_that_computes_for_ever_is_stopped(tmp_path: Path):
    with pytest.raises(Stopped):
        run_job(job(tmp_path, "while True: pass"), {}, LIMITS)


def test_a_job_that_waits_for_ever_is_stopped(tmp_path: Path):
    limits = Limits(cpu_s=60, wall_s=0.5, address_space_bytes=256 << 20, output_characters=1000)
    with pytest.raises(Stopped):
        run_job(job(tmp_path, "time.sleep(60)", prepare="global time; import time"), {}, limits)


def test_a_job_imports_the_modules_it_is_given(tmp_path: Path):
    path = job(tmp_path, "return [jinja2.__name__]", prepare="global jinja2; import jinja2")
    assert run_job(path, {}, LIMITS, modules=("jinja2", "markupsafe")) == "jinja2"
    with pytest.raises(Stopped):  # without them it dies before it answers
        run_job(path, {}, LIMITS)


def test_a_job_sees_no_variable_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "x")
    path = job(tmp_path, "return list(os.environ)", prepare="global os; import os")
    assert "SECRET" not in run_job(path, {}, LIMITS)
