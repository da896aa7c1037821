"""What is said about an answer and about an error."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys

import pytest

from minicpm.cli.output import footer, one_sentence
from minicpm.engine.request import Completion, Timings, Usage


def answered(tokens: int, rate: float, *, prompt_tokens: int = 9, cached_tokens: int = 0) -> Completion:
    return Completion(
        text="",
        ids=(),
        logprobs=None,
        finish_reason="stop",
        usage=Usage(prompt_tokens, tokens, cached_tokens),
        timings=Timings(first_token_s=0.25, total_s=1, prefill_tokens_per_s=1, decode_tokens_per_s=rate),
        seed=0,
    )


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (answered(2, 31.25), "2 tokens, 31.2 tokens/s, first after 0.25 s, prompt 9 tokens"),
        (answered(1, 0.0), "1 token, first after 0.25 s, prompt 9 tokens"),
        (answered(0, 0.0), "0 tokens, first after 0.25 s, prompt 9 tokens"),
        (
            answered(1234, 5.0, prompt_tokens=1, cached_tokens=1),
            "1,234 tokens, 5.0 tokens/s, first after 0.25 s, prompt 1 token (1 cached)",
        ),
    ],
)
def test_an_answer_without_a_speed_shows_none(completion, expected):
    assert footer(completion) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left", "/full/x"), "/full/x: No space left; make room there and run"),
        (OSError(errno.ENOENT, "No such file or directory", "x"), "x: No such file or directory"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
        (MemoryError(), "out of memory; try a smaller context"),
    ],
)
def test_an_error_is_one_sentence(error, expected):
    sentence = one_sentence(error)
    assert sentence.startswith(expected) and "\n" not in sentence


@pytest.mark.parametrize(
    ("closed", "code", "out", "err"),
    [
        (">&-", 0, "", "minicpm: stdout is closed, so the output is lost; send it to a file or to /dev/null instead"),
        ("2>&-", 0, "minicpm-nano", ""),
        (">&- 2>&-", 0, "", ""),
    ],
)
def test_a_closed_stream_is_no_traceback(closed: str, code: int, out: str, err: str):
    command = f"{shlex.quote(sys.executable)} -m minicpm list {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.startswith(out) and bool(done.stdout) is bool(out)
    assert done.stderr.startswith(err) and "Traceback" not in done.stderr
