"""`minicpm chat` through a pipe, with one prompt, and in a real pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

GREEDY = ("--temperature", "0", "--max-tokens", "8")


def test_every_piped_line_is_a_turn_of_one_conversation(minicpm, toy, tmp_path):
    outcome = minicpm("chat", "-m", toy, *GREEDY, "--json", stdin="hello\nWhich is higher?\n")
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(answers) == 2
    assert answers[1]["usage"]["cached_tokens"] >= answers[0]["usage"]["prompt_tokens"]
    saved = (tmp_path / "home" / "chats" / "last.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["role"] for line in saved] == ["user", "assistant"] * 2


def test_piped_output_is_plain_text(minicpm, toy):
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin="hello\n")
    assert outcome.code == 0
    assert "\x1b" not in outcome.out + outcome.err
    assert outcome.err == ""


def test_three_quotes_make_one_question_of_several_lines(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, stdin='"""one\ntwo\nthree"""\n')
    first = json.loads((tmp_path / "home" / "chats" / "last.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first == {"role": "user", "content": "one\ntwo\nthree"}


def test_a_prompt_answers_once_and_takes_piped_text_along(minicpm, toy):
    alone = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "Sum", "up").out)
    with_text = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "Sum", "up", stdin="a long text").out)
    assert with_text["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]


def test_commands_work_through_a_pipe(minicpm, toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    commands = ("/undo", "/show", "/stats", "/set temperature 0.5", f"/save {saved}", "/bye", "never")
    script = "\n".join(("/system Be brief.", "hello", "Which?", *commands, ""))
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin=script)
    assert outcome.code == 0
    messages = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."
    assert "Taken back: Which?" in outcome.err
    assert "temperature = 0.5" in outcome.err
    assert "never" not in outcome.err


def test_retry_with_a_seed_moves_on_to_the_next_seed(minicpm, toy):
    arguments = ("-m", toy, "--seed", "5", "--max-tokens", "8", "--json")
    seeds = [json.loads(line)["seed"] for line in minicpm("chat", *arguments, stdin="hello\n/retry\n").out.splitlines()]
    assert seeds == [5, 6]


def test_a_saved_conversation_goes_on_with_load_and_continue(minicpm, toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    minicpm("chat", "-m", toy, *GREEDY, stdin=f"hello\n/save {saved}\n")
    by_continue = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "-c", stdin="Why?\n").out)
    by_load = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "--load", saved, stdin="Why?\n").out)
    assert by_continue["text"] == by_load["text"]
    assert by_continue["usage"]["prompt_tokens"] > 10


def test_read_asks_about_a_file(minicpm, toy, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Mount Tai is high.", encoding="utf-8")
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin=f"/read {text} How high?\n")
    assert outcome.code == 0
    first = (tmp_path / "home" / "chats" / "last.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first)["content"] == "How high?\n\nMount Tai is high."


def test_the_conversation_is_readable_by_its_owner_alone(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, stdin="hello\n")
    mode = (tmp_path / "home" / "chats" / "last.jsonl").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_no_history_writes_nothing(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, "--no-history", stdin="hello\n")
    assert not (tmp_path / "home" / "chats").exists()


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        ("/dance\n", "/dance is no command"),
        ("/image cat.png\n", "reads text only"),
        ("/set temprature 1\n", "temprature is no sampling option"),
        ("/set temperature -3\n", "temperature"),
        ("/save\n", "/save needs a file name"),
        ("/load nowhere.jsonl\n", "nowhere.jsonl: No such file"),
        ("/retry\n", "there is no question"),
        ("x" * 9000 + "\n", "the context holds"),
    ],
)
def test_a_wrong_line_in_a_pipe_is_one_sentence_and_exit_code_1(minicpm, toy, stdin, expected):
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin=stdin)
    assert outcome.code == 1
    assert expected in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_damaged_conversation_is_named_by_its_line(minicpm, toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    saved.write_text('{"role": "user", "content": "a"}\n{"role": "user"\n', encoding="utf-8")
    outcome = minicpm("chat", "-m", toy, "--load", saved, stdin="hi\n")
    assert outcome.code == 1
    assert "line 2" in outcome.err


class Terminal:
    """A process in a pseudo-terminal: type to it, wait for what it shows."""

    def __init__(self, *arguments: str, home: Path):
        self._master, slave = pty.openpty()
        settings = {"MINICPM_HOME": str(home), "HF_HUB_OFFLINE": "1", "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minicpm", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, **settings},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """What was shown up to and with `text`, taken off the screen."""
        end = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < end, f"waited for {text!r}, saw {self.shown[-2000:]!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 1 << 16).decode("utf-8", "replace")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def exit_code(self, timeout_s: float = 60) -> int:
        """How the process ended, reading on so that it never waits for us."""
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < end, f"did not end, saw {self.shown[-2000:]!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._master, 1 << 16).decode("utf-8", "replace")
                except OSError:  # the other side is closed
                    break
        return self.process.wait(timeout=10)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(toy, tmp_path):
    terminal = Terminal("chat", "-m", str(toy), "--max-tokens", "1500", "--seed", "1", home=tmp_path / "home")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    terminal.wait_for("/help lists commands")
    terminal.wait_for(">>>")
    terminal.type("tell me a long story\r")
    terminal.wait_for("story")
    time.sleep(1.5)
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("[stopped]")
    terminal.wait_for(">>>")
    terminal.type("/show\r")
    terminal.wait_for("1 turns")
    terminal.wait_for(">>>")
    terminal.type("/bye\r")
    assert terminal.exit_code() == 0
    history = tmp_path / "home" / "history"
    assert "tell me a long story" in history.read_text(encoding="utf-8")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_wrong_command_in_a_terminal_is_said_and_survived(terminal):
    terminal.wait_for(">>>")
    terminal.type("/dance\r")
    terminal.wait_for("/dance is no command")
    terminal.wait_for(">>>")
    time.sleep(0.5)  # until the line editor has taken over the terminal: before that Ctrl-D is the terminal's own
    terminal.type("\x04")
    assert terminal.exit_code() == 0
