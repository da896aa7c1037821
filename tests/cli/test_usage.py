"""Wrong usage exits with 2 for all verbs, before anything is done: bad values and bad combinations."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "minicpm: a verb is missing, such as chat, run or serve; 'minicpm help' lists the verbs"),
        (("dance",), "minicpm: there is no verb dance; 'minicpm help' lists the verbs"),
        (("servee",), "minicpm: there is no verb servee; did you mean serve?"),
        (("show", "minicpm-nano"), "minicpm: there is no verb show; type: minicpm info"),
        (("version",), "minicpm: there is no verb version; type: minicpm --version"),
        (("What is 2 + 2?",), "minicpm: a verb is missing; to ask a question type: minicpm run 'What is 2 + 2?'"),
        (("minicpm-2b-dpo",), "a verb is missing; to talk with this model type: minicpm chat -m minicpm-2b-dpo"),
        (("-m", "x", "chat"), "the verb comes first, as in 'minicpm chat -m MODEL'; 'minicpm help' lists the verbs"),
        (("help", "dance"), "minicpm: there is no verb dance; 'minicpm help' lists the verbs"),
        (("info", "minicpm-nano"), "a model is given with -m: minicpm info -m minicpm-nano"),
        (("bench", "my model"), "a model is given with -m: minicpm bench -m 'my model'"),
        (("demo", "x", "--port", "0"), "a model is given with -m: minicpm demo -m x"),
        (("serve", "x"), "a model is given with -m; type: minicpm serve -m x"),
        (("pull", "-m", "x"), "minicpm pull: the model stands without -m here; type: minicpm pull x"),
        (("rm", "--model=x", "-y"), "minicpm rm: the model stands without -m here; type: minicpm rm x -y"),
        (("quantize", "-m", "a", "b"), "the model stands without -m here; type: minicpm quantize a b"),
        (("run", "Hi", "--top_p", "0.5"), "did you mean --top-p?"),
        (("run", "a", "--json", "b"), "put all of these words in one place, before or behind the options"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_habits_of_other_programs_are_answered_with_what_to_type(minicpm, arguments, said):
    done = minicpm(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err


def test_help_is_a_verb_and_ls_is_list(minicpm):
    assert minicpm("help").out == minicpm("--help").out != ""
    assert minicpm("help", "run").out == minicpm("run", "--help").out != ""
    assert minicpm("help", "ls").out == minicpm("list", "--help").out
    assert minicpm("ls", "--json").out == minicpm("list", "--json").out
    assert "(also: ls)" in minicpm("help").out


def test_a_full_disk_behind_stdout_is_one_sentence():
    for arguments in (["list", "--json"], ["info"]):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "minicpm", *arguments]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr == (
            "minicpm: stdout: No space left on device; make room there and run the same command again\n"
        )


def test_a_closed_pipe_behind_stdout_is_no_traceback():
    command = f"{shlex.quote(sys.executable)} -m minicpm info --tensors | true"
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stderr == ""
