"""A conversation with a model: questions, streamed answers, and /commands."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm.cli.conversation import Conversation
from minicpm.cli.output import footer, is_terminal, say, talk, talk_dim, terminal_width
from minicpm.cli.text_input import read_text
from minicpm.cli.verbs.run import answer_fields
from minicpm.errors import FormatError, MiniCPMError, counted
from minicpm.files import naming_full_disk

if TYPE_CHECKING:
    from minicpm.chat import Message
    from minicpm.engine.llm import LLM
    from minicpm.engine.request import Completion
    from minicpm.sampling import SamplingParams

# Command and what it does, in the order of /help.
HELP = (
    ("/clear", "clear the conversation"),
    ("/undo", "remove the last question and answer"),
    ("/retry", "answer the question again"),
    ("/system [TEXT]", "show or set the system text; none empties it"),
    ("/set [NAME VALUE]", "show or set a sampling option"),
    ("/stats", "show the tokens and times of the answers"),
    ("/save FILE", "write the conversation"),
    ("/load FILE", "continue a saved one"),
    ("/read FILE [TEXT]", "ask TEXT about a text file"),
    ("/edit [TEXT]", "write the question in $EDITOR (also Ctrl-G)"),
    ("/show", "print the conversation"),
    ("/bye", "leave (also quit, exit, Ctrl-D)"),
)
HELP_ON_LINES = (
    '""" starts and ends a question of several lines; Alt-Enter breaks a line. Ctrl-C stops an answer, Ctrl-Z suspends '
    "the program. A line that starts with a blank is always a question."
)
# Words that leave a conversation in a terminal, as they leave a shell or Python.
FAREWELLS = ("quit", "exit", "quit()", "exit()", ":q")
MAX_READ_BYTES = 1 << 20


class ChatSession:
    """The model, the conversation and its file.

    `file` is written after every change; with None nothing is kept. An interactive session survives Ctrl-C: the answer
    stops, and its text so far is kept.
    """

    def __init__(
        self,
        llm: LLM,
        conversation: Conversation,
        sampling: SamplingParams,
        *,
        file: Path | None,
        is_json: bool,
        is_interactive: bool,
    ):
        self.llm = llm
        self.conversation = conversation
        self.sampling = sampling
        self.is_over = False
        self.is_interactive = is_interactive
        self._file = file
        self._is_json = is_json
        self._completions: list[Completion] = []
        self._unread_turns = 0  # the oldest turns, which no longer fit into the context
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self._help, "?": self._help,
            "clear": self._clear, "undo": self._undo, "retry": self._retry, "regen": self._retry,
            "system": self._system, "set": self._set, "show": self._show, "stats": self._stats,
            "save": self._save, "load": self._load, "read": self._read, "edit": self._edit,
            "image": self._image, "bye": self._bye, "exit": self._bye, "quit": self._bye,
        }  # fmt: skip

    def obey(self, line: str) -> None:
        """Run a line such as `/undo`. Raises ValueError if it is not a command."""
        word, _, rest = line.removeprefix("/").partition(" ")
        command = self.commands.get(word)
        if command is None:
            raise ValueError(f"/{word} is not a command; /help lists them, and a leading blank makes it a question")
        command(rest.strip())
        self._keep()

    def ask(self, question: str) -> None:
        """Stream the answer and add both to the conversation; a question that fails is not added."""
        self.conversation.add("user", question)
        try:
            text, completion = self._print_answer()
        except BaseException:
            self.conversation.undo()
            raise
        self.conversation.add("assistant", text)
        if completion is not None:
            self._completions.append(completion)
        self._keep()

    def _print_answer(self) -> tuple[str, Completion | None]:
        said: list[str] = []
        completion = None
        pieces = self.llm.stream(self._readable(), self.sampling)
        try:
            for piece in pieces:
                said.append(piece.text)
                completion = piece.completion or completion
                if not self._is_json:
                    say(piece.text)
        except KeyboardInterrupt:
            if not self.is_interactive or not said:
                raise
            talk("\n[stopped]")
        finally:
            pieces.close()
        text = "".join(said)
        if self._is_json:
            fields = {"finish_reason": "interrupted"} if completion is None else answer_fields(completion)
            say(json.dumps({"text": text, **fields}, ensure_ascii=False) + "\n")
        else:
            say("\n")
            if completion is not None and is_terminal(sys.stderr):
                talk_dim(footer(completion))
        return text, completion

    def _readable(self) -> list[Message]:
        """The messages for the model: the whole conversation, or its newest turns if the context is full.

        Half of the context is then freed at once, so that the next turns reuse the cached prefix.
        """
        newest = self.conversation.turns - 1
        unread = self._unread_turns = min(self._unread_turns, newest)
        if not self.llm.has_room(self.conversation.since(unread), self.sampling):
            half = self.llm.context_length // 2
            while unread < newest and self.llm.prompt_length(self.conversation.since(unread)) > half:
                unread += 1
        if unread > self._unread_turns:
            self._unread_turns = unread
            talk(
                f"The conversation outgrew the context of {self.llm.context_length} tokens: the model no longer reads "
                f"its first {counted(unread, 'turn') if unread > 1 else 'turn'}."
            )
        return self.conversation.since(unread)

    def _keep(self) -> None:
        if self._file is None or not self.conversation.messages:
            return
        try:
            self.conversation.save(self._file)
        except OSError as error:
            talk(f"The conversation is not kept: {error.filename or self._file}: {error.strerror}")
            self._file = None

    def _help(self, rest: str) -> None:
        talk(help_text(terminal_width()))

    def _clear(self, rest: str) -> None:
        self.conversation.clear()
        talk("The conversation is cleared.")

    def _undo(self, rest: str) -> None:
        question = self.conversation.undo()
        talk("There is nothing to undo." if question is None else f"Removed: {_short(question)}")

    def _retry(self, rest: str) -> None:
        question = self.conversation.undo()
        if question is None:
            raise ValueError("there is no question to answer again")
        if self.sampling.seed is not None:
            self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
            talk_dim(f"seed {self.sampling.seed}")
        self.ask(question)

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = "" if rest.lower() == "none" else rest
        talk(f"System text: {self.conversation.system or '(none)'}")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        name = name.replace("-", "_")
        options = asdict(self.sampling)
        if name:
            if name not in options:
                raise ValueError(f"{name} is not a sampling option; there are: {', '.join(options)}")
            change: dict[str, Any] = {name: _parsed(name, value.strip())}
            self.sampling = replace(self.sampling, **change)
        for option, current in asdict(self.sampling).items():
            if not name or option == name:
                talk(f"{option} = {current}")

    def _show(self, rest: str) -> None:
        for message in self.conversation.messages:
            talk(f"{message['role']}: {message['content']}")
        talk_dim(counted(self.conversation.turns, "turn"))

    def _stats(self, rest: str) -> None:
        if not self._completions:
            talk("No answer yet.")
        for number, completion in enumerate(self._completions, start=1):
            talk(f"{number}: {footer(completion)}")

    def _save(self, rest: str) -> None:
        path, _ = _file_argument("/save", rest)
        if path.exists():
            try:
                Conversation.load(path)
            except (FormatError, OSError):
                raise ValueError(f"{path} exists and is not a conversation; choose another name") from None
        self.conversation.save(path)
        talk(f"{counted(len(self.conversation.messages), 'message')} saved to {path}")

    def _load(self, rest: str) -> None:
        path, _ = _file_argument("/load", rest)
        self.conversation = Conversation.load(path)
        self._unread_turns = 0
        talk(f"{counted(self.conversation.turns, 'turn')} loaded.")

    def _read(self, rest: str) -> None:
        path, question = _file_argument("/read", rest)
        text = read_text(path, MAX_READ_BYTES)
        self.ask(f"{question}\n\n{text}" if question else text)

    def _edit(self, rest: str) -> None:
        question = _edited(rest)
        if question.strip():
            talk(question)
            self.ask(question)

    def _image(self, rest: str) -> None:
        raise ValueError("this model reads text only; images need MiniCPM-V, which this version does not run")

    def _bye(self, rest: str) -> None:
        self.is_over = True


def help_text(width: int) -> str:
    """The commands for a terminal of `width` columns: in two columns where both fit, else in one that is wrapped."""
    left = max(len(command) for command, _ in HELP)
    half = left + 1 + max(len(explanation) for _, explanation in HELP[::2])
    entries = [f"{command:<{left}} {explanation}" for command, explanation in HELP]
    if max(half + 1 + len(entry) for entry in entries[1::2]) < width:
        lines = [f"{entries[i]:<{half}} {entries[i + 1]}" for i in range(0, len(entries), 2)]
    else:
        indent = " " * (left + 1 if width >= 2 * left else 4)
        wrapped = (textwrap.wrap(entry, max(width - 1, 20), subsequent_indent=indent) for entry in entries)
        lines = [line for entry in wrapped for line in entry]
    return "\n".join([*lines, *textwrap.wrap(HELP_ON_LINES, max(width - 1, 20))])


def _parsed(name: str, value: str) -> object:
    """A value typed after /set: `none` is None, valid JSON is its value, anything else is text."""
    if not value:
        raise ValueError(f"/set {name} needs a value, e.g. /set temperature 0.5")
    if value.lower() == "none":
        return None
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    if name == "logit_bias" and isinstance(parsed, dict):
        return {int(token_id): bias for token_id, bias in parsed.items()}  # keys of JSON objects are strings
    return parsed


def _file_argument(command: str, text: str) -> tuple[Path, str]:
    """A file name, in quotes if it has blanks, and the text after it."""
    if not text:
        raise ValueError(f"{command} needs a file name")
    source = io.StringIO(text)
    lexer = shlex.shlex(source, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        name = lexer.get_token() or ""
    except ValueError:
        raise ValueError(f"{command}: the quote before the file name is not closed") from None
    return Path(name).expanduser(), source.read().strip()


def _edited(text: str) -> str:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "question.txt"
        with naming_full_disk(path):
            path.write_text(text, encoding="utf-8")
        try:
            code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
        except OSError as error:
            raise MiniCPMError(f"the editor {editor!r} does not start ({error.strerror}); set $EDITOR") from error
        if code != 0:
            raise MiniCPMError(f"the editor {editor!r} ended with code {code}; nothing was asked")
        return read_text(path).rstrip("\n")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
