"""`minicpm chat` through a pipe, with one prompt, and in a real pseudo-terminal."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from prompt_toolkit.history import FileHistory

from interrupts import default_interrupts
from minicpm.cli.session import HELP, help_text
from minicpm.cli.verbs.chat import _history

GREEDY = ("--temperature", "0", "--max-tokens", "8")
# By default the toy's float32 weights run in torch, and importing it takes longer than the rest of a test.
STARTS_FAST = ("--backend", "numpy")


def last_conversation(tmp_path: Path) -> list[dict[str, str]]:
    files = sorted((tmp_path / "home" / "chats").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]


def test_every_piped_line_is_a_turn_of_one_conversation(minicpm, toy, tmp_path):
    outcome = minicpm("chat", "-m", toy, *GREEDY, "--json", stdin="hello\nWhich is higher?\n")
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(answers) == 2
    assert answers[1]["usage"]["cached_tokens"] >= answers[0]["usage"]["prompt_tokens"]
    assert [message["role"] for message in last_conversation(tmp_path)] == ["user", "assistant"] * 2


def test_piped_output_is_plain_text(minicpm, toy):
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin="hello\n")
    assert outcome.code == 0
    assert "\x1b" not in outcome.out + outcome.err
    assert outcome.err == ""


def test_three_quotes_make_one_question_of_several_lines(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, stdin='"""one\ntwo\nthree"""\n')
    assert last_conversation(tmp_path)[0] == {"role": "user", "content": "one\ntwo\nthree"}


def test_a_prompt_answers_once_and_takes_piped_text_along(minicpm, toy):
    alone = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "Sum", "up").out)
    with_text = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "Sum", "up", stdin="a long text").out)
    assert with_text["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]


def test_piped_text_gives_no_orders(minicpm, toy, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine", encoding="utf-8")
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin=f"hello\n/save {precious}\n")
    assert outcome.code == 0
    assert precious.read_text(encoding="utf-8") == "mine"
    assert last_conversation(tmp_path)[2]["content"] == f"/save {precious}"


def test_commands_work_through_a_pipe_when_asked_for(minicpm, toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    commands = ("/undo", "/show", "/stats", "/set temperature 0.5", f"/save {saved}", "/bye", "never")
    script = "\n".join(("/system Be brief.", "hello", "Which?", *commands, ""))
    outcome = minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin=script)
    assert outcome.code == 0
    messages = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."
    assert "Removed: Which?" in outcome.err
    assert "temperature = 0.5" in outcome.err
    assert "never" not in outcome.err


def test_retry_with_a_seed_moves_on_to_the_next_seed(minicpm, toy):
    arguments = ("-m", toy, "--seed", "5", "--max-tokens", "8", "--json", "--commands")
    seeds = [json.loads(line)["seed"] for line in minicpm("chat", *arguments, stdin="hello\n/retry\n").out.splitlines()]
    assert seeds == [5, 6]


def test_a_saved_conversation_goes_on_with_load_and_continue(minicpm, toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin=f"hello\n/save {saved}\n")
    by_continue = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "-c", stdin="Why?\n").out)
    by_load = json.loads(minicpm("chat", "-m", toy, *GREEDY, "--json", "--load", saved, stdin="Why?\n").out)
    assert by_continue["text"] == by_load["text"]
    assert by_continue["usage"]["prompt_tokens"] > 10


def test_read_asks_about_a_file(minicpm, toy, tmp_path):
    text = tmp_path / "a text.txt"
    text.write_text("Mount Tai is high.", encoding="utf-8")
    outcome = minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin=f'/read "{text}" How high?\n')
    assert outcome.code == 0
    assert last_conversation(tmp_path)[0]["content"] == "How high?\n\nMount Tai is high."


def test_what_was_undone_stays_undone_for_continue(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin="/system Be brief.\nhello\nWhich?\n/undo\n")
    assert [message["role"] for message in last_conversation(tmp_path)] == ["system", "user", "assistant"]
    minicpm("chat", "-m", toy, *GREEDY, "-c", "Why?")
    assert [message["content"] for message in last_conversation(tmp_path)][3] == "Why?"


def test_a_single_question_does_not_displace_the_last_conversation(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, stdin="hello\n")
    minicpm("chat", "-m", toy, *GREEDY, "quick")
    assert last_conversation(tmp_path)[0]["content"] == "hello"


def test_a_home_that_cannot_be_written_costs_the_record_and_not_the_answer(minicpm, toy, monkeypatch):
    monkeypatch.setenv("MINICPM_HOME", "/proc/nowhere")
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin="hello\nagain\n")
    assert outcome.code == 0
    assert outcome.out.strip()
    assert outcome.err.count("The conversation is not kept") == 1


def test_save_does_not_overwrite_what_is_no_conversation(minicpm, toy, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine", encoding="utf-8")
    outcome = minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin=f"hello\n/save {precious}\n")
    assert outcome.code == 1
    assert "exists and is not a conversation" in outcome.err
    assert precious.read_text(encoding="utf-8") == "mine"


def test_a_conversation_longer_than_the_context_goes_on_without_its_oldest_turns(minicpm, toy, tmp_path):
    questions = [f"{number} hello world, hello again" for number in range(10)]
    outcome = minicpm("chat", "-m", toy, *GREEDY, "--context", "160", "--json", stdin="\n".join(questions))
    assert outcome.code == 0
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(answers) == 10
    notices = outcome.err.splitlines()
    assert notices and all("outgrew the context of 160 tokens" in notice for notice in notices)
    lengths = [answer["usage"]["prompt_tokens"] for answer in answers]
    assert max(lengths) + 8 <= 160
    shrunk = [i for i in range(1, 10) if lengths[i] < lengths[i - 1]]
    assert len(shrunk) == len(notices) < 5  # half of the context is freed at once
    following = shrunk[0] + 1
    assert answers[following]["usage"]["cached_tokens"] >= lengths[shrunk[0]]
    assert [message["content"] for message in last_conversation(tmp_path)][::2] == questions  # kept whole


def test_the_system_text_stays_when_turns_go(minicpm, toy):
    arguments = ("-m", toy, *GREEDY, "--context", "160", "--json")
    questions = "\n".join(["hello world, hello again"] * 6)
    system = "You speak of mountains and rivers."
    without = [json.loads(line) for line in minicpm("chat", *arguments, stdin=questions).out.splitlines()]
    with_it = [json.loads(line) for line in minicpm("chat", *arguments, "-s", system, stdin=questions).out.splitlines()]
    assert min(a["usage"]["prompt_tokens"] for a in with_it[1:]) > without[0]["usage"]["prompt_tokens"] + 10


def test_a_forgotten_conversation_gives_its_room_back(minicpm, toy):
    questions = "\n".join([*["hello world, hello again"] * 6, "/clear", "hello"])
    arguments = ("-m", toy, *GREEDY, "--context", "160", "--json", "--commands")
    answers = [json.loads(line) for line in minicpm("chat", *arguments, stdin=questions).out.splitlines()]
    alone = json.loads(minicpm("chat", *arguments, stdin="hello").out)
    assert answers[-1]["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


def test_an_empty_prompt_is_refused(minicpm, toy):
    outcome = minicpm("chat", "-m", toy, "")
    assert outcome.code == 2
    assert "the prompt is empty" in outcome.err


def test_a_closed_stdin_is_no_reason_to_fail(minicpm, toy):
    assert minicpm("chat", "-m", toy, *GREEDY, "hello", stdin=None).code == 0


def test_stdin_that_is_not_utf8_is_named(minicpm, toy):
    outcome = minicpm("chat", "-m", toy, *GREEDY, stdin=b"caf\xe9\n")
    assert outcome.code == 1
    assert "stdin: not UTF-8 text (byte 3 is 0xe9)" in outcome.err


def test_a_terminal_of_another_encoding_gets_the_whole_answer(toy, tmp_path):
    settings = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "MINICPM_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    chat = [sys.executable, "-m", "minicpm", "chat", "-m", str(toy), *GREEDY, *STARTS_FAST]
    done = subprocess.run(
        [*chat, "--no-history", "你好"], stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n")


def test_the_conversation_is_readable_by_its_owner_alone(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, stdin="hello\n")
    (file,) = (tmp_path / "home" / "chats").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_no_history_writes_nothing(minicpm, toy, tmp_path):
    minicpm("chat", "-m", toy, *GREEDY, "--no-history", stdin="hello\n")
    assert not (tmp_path / "home" / "chats").exists()


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        ("/dance\n", "/dance is not a command"),
        ("/image cat.png\n", "reads text only"),
        ("/set temprature 1\n", "temprature is not a sampling option"),
        ("/set temperature -3\n", "temperature"),
        ("/save\n", "/save needs a file name"),
        ("/load nowhere.jsonl\n", "nowhere.jsonl: No such file"),
        ("/retry\n", "there is no question"),
        ("x" * 9000 + "\n", "the context holds"),
    ],
)
def test_a_wrong_line_in_a_pipe_is_one_sentence_and_exit_code_1(minicpm, toy, stdin, expected):
    outcome = minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin=stdin)
    assert outcome.code == 1
    assert expected in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_damaged_conversation_is_named_by_its_line(minicpm, toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    saved.write_text('{"role": "user", "content": "a"}\n{"role": "user"\n', encoding="utf-8")
    outcome = minicpm("chat", "-m", toy, "--load", saved, stdin="hi\n")
    assert outcome.code == 1
    assert "line 2" in outcome.err


def _take_terminal() -> None:
    """Make stdin the controlling terminal of the new session: a shell needs one to suspend its programs."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A process in a pseudo-terminal: type to it, wait for what it shows."""

    def __init__(self, *arguments: str, home: Path, shell: str | None = None):
        self._master, slave = pty.openpty()
        settings = {"MINICPM_HOME": str(home), "HF_HUB_OFFLINE": "1", "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        with default_interrupts():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minicpm", *arguments] if shell is None else [shell, *arguments],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**os.environ, **settings},
                start_new_session=True,
                preexec_fn=None if shell is None else _take_terminal,
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

    def wait_for_more(self, count: int, timeout_s: float = 60) -> None:
        """Until at least `count` more characters were shown."""
        end, seen = time.monotonic() + timeout_s, len(self.shown)
        while len(self.shown) < seen + count:
            assert time.monotonic() < end, f"waited for {count} characters, saw {self.shown[-2000:]!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 1 << 16).decode("utf-8", "replace")

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


LONG_ANSWERS = ("--max-tokens", "1900", "--seed", "1", "--top-p", "1", "--temperature", "100")


@pytest.fixture
def terminal(toy, tmp_path):
    terminal = Terminal("chat", "-m", str(toy), *LONG_ANSWERS, *STARTS_FAST, home=tmp_path / "home")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    terminal.wait_for("/help lists commands")
    terminal.wait_for(">>>")
    terminal.type("tell me a long story\r")
    terminal.wait_for("story")
    terminal.wait_for_more(200)  # more than the echo of the line: the answer is running
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("[stopped]")
    terminal.wait_for(">>>")
    terminal.type("/show\r")
    terminal.wait_for("1 turn")
    terminal.wait_for(">>>")
    terminal.type("/bye\r")
    assert terminal.exit_code() == 0
    history = tmp_path / "home" / "history"
    assert "tell me a long story" in history.read_text(encoding="utf-8")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_wrong_command_in_a_terminal_is_said_and_survived(terminal):
    terminal.wait_for(">>>")
    terminal.type("/dance\r")
    terminal.wait_for("/dance is not a command")
    terminal.wait_for(">>>")
    time.sleep(0.5)  # until the line editor has taken over the terminal: before that Ctrl-D is the terminal's own
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_ctrl_c_ends_a_single_question_with_130(toy, tmp_path):
    terminal = Terminal("chat", "-m", str(toy), *LONG_ANSWERS, "tell me a story", home=tmp_path / "home")
    try:
        terminal.wait_for("Loading ...")
        terminal.wait_for_more(200)
        os.killpg(terminal.process.pid, signal.SIGINT)
        assert terminal.exit_code() == 130
    finally:
        terminal.close()


def test_ctrl_c_in_a_command_stops_the_command_and_not_the_program(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITOR", f"{sys.executable} -c 'import time; print(1234567); time.sleep(60)'")
    monkeypatch.delenv("VISUAL", raising=False)
    terminal = Terminal("chat", "-m", str(toy), *LONG_ANSWERS, *STARTS_FAST, home=tmp_path / "home")
    try:
        terminal.wait_for(">>>")
        terminal.type("/edit\r")
        terminal.wait_for("1234567")
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.wait_for("[stopped]")
        terminal.wait_for(">>>")
        terminal.type("/bye\r")
        assert terminal.exit_code() == 0
    finally:
        terminal.close()


@pytest.mark.parametrize("word", ["quit", "Exit ", "exit()", ":q"])
def test_words_that_leave_other_programs_leave_the_conversation(terminal, word):
    terminal.wait_for(">>>")
    terminal.type(f"{word}\r")
    assert terminal.exit_code() == 0


def test_ctrl_z_suspends_and_fg_goes_on(toy, tmp_path):
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("there is no bash")
    command = shlex.join(
        [sys.executable, "-m", "minicpm", "chat", "-m", str(toy), *GREEDY, *STARTS_FAST, "--no-history"]
    )
    terminal = Terminal("--norc", "--noprofile", "-i", home=tmp_path / "home", shell=shell)
    try:
        terminal.type(f"{command}\r")
        terminal.wait_for("/help lists commands")
        terminal.wait_for(">>>")
        time.sleep(0.5)  # until the line editor has taken over the terminal
        terminal.type("\x1a")
        terminal.wait_for("Stopped")
        terminal.type("echo $((41 + 1)) and fg; fg\r")
        terminal.wait_for("42 and fg")
        terminal.wait_for(">>>")
        terminal.type("/show\r")
        terminal.wait_for("0 turns")
        terminal.type("quit\r")
        terminal.wait_for("bash-")  # the shell's prompt: what is typed before it is the conversation's
        terminal.type("exit\r")
        assert terminal.exit_code() == 0
    finally:
        terminal.close()


def test_a_disk_that_becomes_full_costs_typed_lines_and_not_the_questions(tmp_path, monkeypatch, capsys):
    def store(self: FileHistory, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    history = _history(tmp_path / "history")
    monkeypatch.setattr(FileHistory, "store_string", store)
    for line in ("one", "two"):
        history.append_string(line)
    assert history.get_strings() == ["one", "two"]
    assert capsys.readouterr().err == f"Typed lines are not kept: {tmp_path}/history: No space left on device\n"


@pytest.mark.parametrize("width", [20, 40, 79, 96, 97, 98, 120, 300])
def test_help_fits_the_width_of_the_terminal(width):
    text = help_text(width)
    assert max(map(len, text.splitlines())) < max(width, 21)
    words = text.split()
    for command, explanation in HELP:
        assert command.split()[0] in words
        assert set(explanation.split()) <= set(words)


def test_help_in_a_terminal_asks_for_its_width(minicpm, toy, monkeypatch):
    for width in ("40", "120"):
        monkeypatch.setenv("COLUMNS", width)
        said = minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin="/help\n").err
        assert max(map(len, said.splitlines())) < int(width)


def test_one_turn_and_one_message_are_singular(minicpm, toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    saved.write_text('{"role": "user", "content": "a"}\n', encoding="utf-8")
    script = f"/load {saved}\n/show\n/save {saved}\n"
    said = minicpm("chat", "-m", toy, *GREEDY, "--commands", stdin=script).err
    assert "1 turn loaded." in said and "1 turn\n" in said and "1 message saved to" in said


def test_a_terminal_is_not_sent_what_it_would_obey(toy, tmp_path):
    saved = tmp_path / "talk.jsonl"
    saved.write_text(json.dumps({"role": "user", "content": "\x1b]0;PWNED\x07"}) + "\n", encoding="utf-8")
    terminal = Terminal("chat", "-m", str(toy), *STARTS_FAST, "--load", str(saved), home=tmp_path / "home")
    try:
        terminal.wait_for(">>>")
        terminal.type("/show\r")
        shown = terminal.wait_for("PWNED")
        assert "\x1b]0;" not in shown
        assert "\ufffd]0;PWNED" in shown
    finally:
        terminal.close()
