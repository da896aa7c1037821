"""Wrong usage exits with 2 for all verbs, before anything is done: bad values and bad combinations."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import pytest

from minicpm.cli.main import VERBS

# What a verb needs beside the option that is wrong.
NEEDED = {
    "convert": ("SRC", "DST", "--to", "hf"),
    "data": ("check", "FILE"),
    "doctor": ("PATH",),
    "finetune": ("--data", "FILE", "--out", "RUN"),
    "pretrain": ("--data", "FILE", "--out", "RUN"),
    "pull": ("NAME",),
    "quantize": ("SRC", "DST"),
    "rm": ("NAME",),
    "run": ("Hello",),
    "chat": ("Hello",),
}


def numeric_options() -> list[tuple[str, str]]:
    """Every option of every verb that reads a number or several."""
    found = []
    for verb, (module, _) in VERBS.items():
        parser = argparse.ArgumentParser()
        import_module(f"minicpm.cli.verbs.{module}").add_arguments(parser)
        for action in parser._actions:
            if action.option_strings and action.type is not None and _reads_numbers(action.type):
                found.append((verb, action.option_strings[-1]))
    return found


def _reads_numbers(kind) -> bool:
    try:
        return isinstance(kind("7"), (int, float, tuple))
    except argparse.ArgumentTypeError:
        return False


def test_there_are_numbers_to_get_wrong():
    assert {("run", "--max-tokens"), ("serve", "--port"), ("pretrain", "--lr"), ("bench", "--decode")} <= set(
        numeric_options()
    )


@pytest.mark.parametrize(("verb", "option"), numeric_options())
def test_a_number_out_of_range_is_wrong_usage(minicpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb, option):
    monkeypatch.chdir(tmp_path)
    done = minicpm(verb, *NEEDED.get(verb, ()), f"{option}=-99")
    assert (done.code, done.out) == (2, "")
    assert "-99" in done.err or "negative" in done.err or "0" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "Hello", "--max-tokens", "0"), "max_tokens must be"),
        (("run", "Hello", "--temperature", "-1"), "temperature must be 0"),
        (("run", "Hello", "--top-p", "2"), "top_p must be a number from 0 to 1"),
        (("serve", "--port", "99999"), "argument --port: must be from 0 to 65535, got 99999"),
        (("demo", "--port", "x"), "argument --port: must be a whole number, got 'x'"),
        (("serve", "--timeout", "nan"), "total_timeout_s must be more than 0"),
        (("chat", "Hello", "--threads", "0"), "argument --threads: must be 1 or more, got 0"),
        (("chat", "Hello", "--backend", "gpu"), "backend must be one of"),
        (("run", "Hello", "--dtype", "int3"), "dtype must be one of"),
        (("chat", "Hello", "--context", "99999999"), "context 99999999 is more than"),
        (("run", "Hello", "--jsonl"), "--jsonl needs --file"),
        (("run", "Hello", "--tensor-parallel-size", "2"), "--tensor-parallel-size needs --backend vllm"),
        (("demo", "--api-key", "x"), "--api-key is for the server at --url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said(minicpm, arguments, said):
    done = minicpm(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    "arguments",
    [("info", "-m", "there-is-no-such-model"), ("data", "check", "no-such-file.jsonl"), ("run", "-f", "no-such-file")],
    ids=" ".join,
)
def test_what_fails_for_another_reason_ends_with_1(minicpm, arguments):
    assert minicpm(*arguments).code == 1


def test_a_file_that_is_no_text_is_a_failure_not_wrong_usage(minicpm, tmp_path: Path):
    (tmp_path / "prompts").write_bytes(b"\xff\xfe")
    done = minicpm("run", "-f", tmp_path / "prompts")
    assert done.code == 1 and "not UTF-8" in done.err
