"""`minicpm chat`: a conversation in the terminal, a conversation through a pipe, or one answer."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm.cli.arguments import add_engine_arguments, add_sampling_arguments, given_sampling, load_llm
from minicpm.cli.conversation import Conversation
from minicpm.cli.models import refuse_model_as_prompt
from minicpm.cli.output import is_terminal, one_sentence, talk, talk_dim
from minicpm.cli.session import FAREWELLS, ChatSession
from minicpm.cli.text_input import stdin_lines, with_piped_text
from minicpm.errors import MiniCPMError, counted
from minicpm.hub.cache import home

if TYPE_CHECKING:
    from prompt_toolkit.history import History

BLOCK = '"""'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk with a model. With PROMPT it answers once and exits; piped text is appended to PROMPT. Without PROMPT it "
        "holds a conversation: in a terminal with line editing and /commands, through a pipe one question per line."
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="answer this and exit")
    parser.add_argument("-s", "--system", metavar="TEXT", help="system text in front of the conversation")
    parser.add_argument(
        "-c", "--continue", dest="is_continued", action="store_true", help="continue the last conversation"
    )
    parser.add_argument("--load", metavar="FILE", help="continue a conversation written by /save")
    parser.add_argument("--no-history", action="store_true", help="keep neither typed lines nor the conversation")
    parser.add_argument("--commands", action="store_true", help="run /commands in piped lines, too")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer instead of text")
    add_engine_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    refuse_model_as_prompt("chat", args.model, args.prompt)
    sampling = given_sampling(args)
    conversation, file = _starting_conversation(args)
    is_interactive = not args.prompt and is_terminal(sys.stdin)
    question = _single_question(args)
    llm = load_llm(args)
    session = ChatSession(
        llm,
        conversation,
        replace(llm.sampling, **sampling),
        file=None if args.no_history else file,
        is_json=args.json,
        is_interactive=is_interactive,
    )
    if question is not None:
        session.ask(question)
    elif is_interactive:
        _converse_in_terminal(session, args)
    else:
        _converse_through_pipe(session, args)
    return 0


@dataclass(frozen=True)
class Line:
    """A line of input: a question, or a command if it may be one and starts with a slash."""

    text: str
    may_be_command: bool


def _take(session: ChatSession, line: Line) -> None:
    if line.may_be_command and line.text.startswith("/"):
        session.obey(line.text)
    elif line.text.strip():
        session.ask(line.text)


def _single_question(args: argparse.Namespace) -> str | None:
    """The question of a one-shot call, with piped text below it."""
    if not args.prompt:
        return None
    question = " ".join(args.prompt)
    if not question.strip():
        raise ValueError("the prompt is empty; give at least one character, or leave it out for a conversation")
    return with_piped_text([question])[0]


def _starting_conversation(args: argparse.Namespace) -> tuple[Conversation, Path | None]:
    """The earlier conversation, and the file to keep it in. A one-shot call may continue a file, but starts none."""
    if args.is_continued and args.load:
        raise ValueError("give --continue or --load, not both")
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
    conversation, file = Conversation(), None if args.prompt else _chats() / name
    if args.load:
        conversation = Conversation.load(Path(args.load))
    elif args.is_continued:
        file = _last_conversation()
        conversation = Conversation.load(file)
    if args.system is not None:
        conversation.system = args.system
    return conversation, file


def _chats() -> Path:
    return home() / "chats"


def _last_conversation() -> Path:
    files = sorted(_chats().glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise MiniCPMError("there is no earlier conversation to continue")
    return files[-1]


def _piped_lines(*, obeys_commands: bool) -> Iterator[Line]:
    """One entry per line of stdin, or per block between three quotes. Piped text is data: it runs no commands."""
    lines = stdin_lines()
    for line in lines:
        if line.startswith(BLOCK):
            yield Line(_block(line, lambda: next(lines, None)), may_be_command=False)
        else:
            yield Line(line, may_be_command=obeys_commands)


def _block(first: str, next_line: Callable[[], str | None]) -> str:
    """All lines up to the closing three quotes, or to the end of the input."""
    lines = [first.removeprefix(BLOCK)]
    while not lines[-1].rstrip().endswith(BLOCK):
        following = next_line()
        if following is None:
            break
        lines.append(following)
    lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
    return "\n".join(lines).strip("\n")


def _converse_through_pipe(session: ChatSession, args: argparse.Namespace) -> None:
    for line in _piped_lines(obeys_commands=args.commands):
        try:
            _take(session, line)
        except ValueError as error:  # caused by a line, not by wrong usage of the verb
            raise MiniCPMError(one_sentence(error)) from error
        if session.is_over:
            return


def _converse_in_terminal(session: ChatSession, args: argparse.Namespace) -> None:
    name = args.model or session.llm.folder.name
    talk(f"{name} on {session.llm.backend.name}, context {session.llm.context_length} tokens. /help lists commands.")
    if session.conversation.turns:
        talk(f"Continuing after {counted(session.conversation.turns, 'turn')}.")
    prompt = _line_editor(session, keeps_history=not args.no_history)
    while not session.is_over:
        try:
            line = prompt(">>> ")
            if line.startswith(BLOCK):
                _take(session, Line(_block(line, lambda: _next_or_none(prompt)), may_be_command=False))
            elif line.rstrip().lower() in FAREWELLS:
                return
            else:
                _take(session, Line(line, may_be_command=True))
        except KeyboardInterrupt:
            talk_dim("[stopped] Ctrl-D or /bye exits.")
        except EOFError:
            return
        except (MiniCPMError, ValueError, OSError, MemoryError) as error:
            talk(one_sentence(error))


def _next_or_none(prompt: Callable[[str], str]) -> str | None:
    """The next line of a block; Ctrl-D ends the block, not the program."""
    try:
        return prompt("... ")
    except EOFError:
        return None


def _line_editor(session: ChatSession, *, keeps_history: bool) -> Callable[[str], str]:
    """A function that reads a line with editing, history and completion. It uses stderr: stdout is for answers."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("escape", "enter")  # type: ignore[untyped-decorator]
    def break_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g")  # type: ignore[untyped-decorator]
    def open_editor(event: Any) -> None:
        event.current_buffer.open_in_editor()

    history_file = _history_file() if keeps_history else None
    editor: PromptSession[str] = PromptSession(
        history=_history(history_file) if history_file else InMemoryHistory(),
        completer=WordCompleter([f"/{word}" for word in session.commands], sentence=True),
        complete_style=CompleteStyle.READLINE_LIKE,
        key_bindings=keys,
        enable_suspend=True,
        output=create_output(stdout=sys.stderr),
    )
    return lambda text: str(editor.prompt(text))


def _history(file: Path) -> History:
    """Typed lines in `file`. On a disk that has become full they are forgotten, and the questions are asked."""
    from prompt_toolkit.history import FileHistory

    class Lines(FileHistory):  # type: ignore[misc]
        has_failed = False

        def store_string(self, string: str) -> None:
            try:
                super().store_string(string)
            except OSError as error:
                if not self.has_failed:
                    talk(f"Typed lines are not kept: {file}: {error.strerror}")
                self.has_failed = True

    return Lines(str(file))


def _history_file() -> Path | None:
    """The file of typed lines, readable only by its owner; None, with a message, if it cannot be written."""
    path = home() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError as error:
        talk(f"Typed lines are not kept: {path}: {error.strerror}")
        return None
    return path
