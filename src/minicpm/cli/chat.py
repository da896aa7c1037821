"""`minicpm chat`: a conversation in the terminal, a conversation through a pipe, or one answer."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm.cli.arguments import add_engine_arguments, add_sampling_arguments, load_llm, sampling_from
from minicpm.cli.conversation import Conversation
from minicpm.cli.run import footer
from minicpm.errors import GenerationError, MiniCPMError
from minicpm.hub.cache import home

if TYPE_CHECKING:
    from minicpm.engine.llm import LLM
    from minicpm.engine.request import Completion
    from minicpm.sampling import SamplingParams

HELP = """\
/clear            forget the conversation       /undo             take back the last question and answer
/retry            answer the last question anew /system [TEXT]    show or set the system text
/set [NAME VALUE] show or set a sampling option /stats            what the answers so far cost
/save FILE        write the conversation        /load FILE        go on with a saved one
/read FILE [TEXT] ask TEXT about a text file    /edit             write the question in $EDITOR
/show             print the conversation        /bye              leave (also Ctrl-D)
\"\"\" starts and ends a question of several lines; Alt-Enter breaks a line. Ctrl-C stops an answer."""
BLOCK = '"""'
MAX_READ_BYTES = 1 << 20
# What a terminal would obey instead of showing; newline and tab are text.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk with a model. With PROMPT it answers once and leaves, taking piped text along; without, it converses: "
        "in a terminal with line editing and /commands, through a pipe one question per line."
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="answer this and leave")
    parser.add_argument("-s", "--system", metavar="TEXT", help="system text in front of the conversation")
    parser.add_argument("-c", "--continue", dest="is_continued", action="store_true", help="go on with the last one")
    parser.add_argument("--load", metavar="FILE", help="go on with a conversation written by /save")
    parser.add_argument("--no-history", action="store_true", help="keep neither typed lines nor the conversation")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer instead of text")
    add_engine_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    sampling = sampling_from(args)
    conversation = _starting_conversation(args)
    once = " ".join(args.prompt)
    if once and not sys.stdin.isatty():
        piped = sys.stdin.read().strip()
        once = f"{once}\n\n{piped}" if piped else once
    session = ChatSession(load_llm(args), conversation, sampling, is_json=args.json, keeps_files=not args.no_history)
    if once:
        session.ask(once)
        return 0
    if sys.stdin.isatty():
        _greet(session)
        _converse(session, _typed_questions(session, keeps_history=not args.no_history), survives_errors=True)
    else:
        _converse(session, _piped_questions(), survives_errors=False)
    return 0


class ChatSession:
    """The model, the conversation and the commands on it."""

    def __init__(
        self, llm: LLM, conversation: Conversation, sampling: SamplingParams, *, is_json: bool, keeps_files: bool
    ):
        self.llm = llm
        self.conversation = conversation
        self.sampling = sampling
        self.is_over = False
        self._is_json = is_json
        self._keeps_files = keeps_files
        self._completions: list[Completion] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help, "?": self._help,
            "clear": self._clear, "undo": self._undo, "retry": self._retry, "regen": self._retry,
            "system": self._system, "set": self._set, "show": self._show, "stats": self._stats,
            "save": self._save, "load": self._load, "read": self._read, "edit": self._edit,
            "image": self._image, "bye": self._bye, "exit": self._bye, "quit": self._bye,
        }  # fmt: skip

    def take(self, line: str) -> None:
        """A command or a question."""
        if not line.strip():
            return
        if not line.startswith("/"):
            self.ask(line)
            return
        word, _, rest = line[1:].partition(" ")
        command = self._commands.get(word)
        if command is None:
            raise ValueError(f"/{word} is no command; /help lists them, a leading blank makes it a question")
        command(rest.strip())

    def ask(self, question: str) -> None:
        """Print the answer as it comes and remember both; an interrupted answer is kept as far as it got."""
        self.conversation.add("user", question)
        try:
            text, completion = self._print_answer()
        except BaseException:
            self.conversation.undo()
            raise
        self.conversation.add("assistant", text)
        if completion is not None:
            self._completions.append(completion)
        if self._keeps_files:
            self.conversation.save(last_conversation_file())

    def _print_answer(self) -> tuple[str, Completion | None]:
        is_terminal = sys.stdout.isatty()
        said: list[str] = []
        completion = None
        pieces = self.llm.stream(self.conversation.messages, self.sampling)
        try:
            for piece in pieces:
                said.append(piece.text)
                completion = piece.completion or completion
                if not self._is_json:
                    print(CONTROL_CHARACTERS.sub("�", piece.text) if is_terminal else piece.text, end="", flush=True)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            talk("\n[stopped]")
        finally:
            pieces.close()
        text = "".join(said)
        if self._is_json:
            print(json.dumps({"text": text, **_measured(completion)}, ensure_ascii=False), flush=True)
        else:
            print(flush=True)
            if completion is not None and is_terminal and sys.stderr.isatty():
                talk(dim(footer(completion)))
        return text, completion

    def _help(self, rest: str) -> None:
        talk(HELP)

    def _clear(self, rest: str) -> None:
        self.conversation.clear()
        talk("The conversation is forgotten.")

    def _undo(self, rest: str) -> None:
        question = self.conversation.undo()
        talk("There is nothing to take back." if question is None else f"Taken back: {_short(question)}")

    def _retry(self, rest: str) -> None:
        question = self.conversation.undo()
        if question is None:
            raise ValueError("there is no question to answer anew")
        if self.sampling.seed is not None:
            self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
            talk(dim(f"seed {self.sampling.seed}"))
        self.ask(question)

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = rest
        talk(f"System text: {self.conversation.system or '(none)'}")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        name = name.replace("-", "_")
        if name:
            change: Any = {_checked_option(self.sampling, name): _parsed(name, value)}
            self.sampling = replace(self.sampling, **change)
        for option, current in asdict(self.sampling).items():
            if not name or option == name:
                talk(f"{option} = {current}")

    def _show(self, rest: str) -> None:
        for message in self.conversation.messages:
            talk(f"{message['role']}: {message['content']}")
        talk(dim(f"{self.conversation.turns} turns"))

    def _stats(self, rest: str) -> None:
        if not self._completions:
            talk("No answer yet.")
        for number, completion in enumerate(self._completions, start=1):
            talk(f"{number}: {footer(completion)}")

    def _save(self, rest: str) -> None:
        path = _path_argument("/save", rest)
        self.conversation.save(path)
        talk(f"{len(self.conversation.messages)} messages saved to {path}")

    def _load(self, rest: str) -> None:
        self.conversation = Conversation.load(_path_argument("/load", rest))
        talk(f"{self.conversation.turns} turns loaded.")

    def _read(self, rest: str) -> None:
        name, _, question = rest.partition(" ")
        path = _path_argument("/read", name)
        if path.stat().st_size > MAX_READ_BYTES:
            raise ValueError(f"{path} has more than {MAX_READ_BYTES >> 20} MiB; give a smaller text file")
        text = path.read_text(encoding="utf-8")
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


def _starting_conversation(args: argparse.Namespace) -> Conversation:
    if args.is_continued and args.load:
        raise ValueError("give --continue or --load, not both")
    conversation = Conversation()
    if args.load:
        conversation = Conversation.load(Path(args.load))
    elif args.is_continued:
        if not last_conversation_file().is_file():
            raise MiniCPMError("there is no earlier conversation to continue")
        conversation = Conversation.load(last_conversation_file())
    if args.system is not None:
        conversation.system = args.system
    return conversation


def last_conversation_file() -> Path:
    return home() / "chats" / "last.jsonl"


def _converse(session: ChatSession, questions: Iterator[str], *, survives_errors: bool) -> None:
    for question in questions:
        try:
            session.take(question)
        except GenerationError as error:
            if not survives_errors:
                raise
            talk(f"{error} (/undo or /clear makes room)")
        except (MiniCPMError, ValueError, OSError) as error:
            if not survives_errors:
                raise
            talk(str(error))
        if session.is_over:
            return


def _piped_questions() -> Iterator[str]:
    """One question per line of stdin, or a block between lines of three quotes."""
    lines = iter(sys.stdin)
    for line in lines:
        yield _joined_block(line.rstrip("\n"), lambda: next(lines, None))


def _typed_questions(session: ChatSession, *, keeps_history: bool) -> Iterator[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("escape", "enter")  # type: ignore[untyped-decorator]
    def break_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    history = FileHistory(str(_history_file())) if keeps_history else InMemoryHistory()
    words = WordCompleter([f"/{word}" for word in session._commands], sentence=True)
    prompts: PromptSession[str] = PromptSession(
        history=history, completer=words, key_bindings=keys, complete_style=CompleteStyle.READLINE_LIKE
    )
    while True:
        try:
            line = prompts.prompt(">>> ")
            yield _joined_block(line, lambda: prompts.prompt("... "))
        except KeyboardInterrupt:
            talk(dim("Ctrl-D or /bye leaves."))
        except EOFError:
            return


def _joined_block(line: str, next_line: Callable[[], str | None]) -> str:
    """The line itself, or all lines up to the closing three quotes if it opens a block."""
    if not line.startswith(BLOCK):
        return line
    lines = [line.removeprefix(BLOCK)]
    while not lines[-1].rstrip().endswith(BLOCK):
        following = next_line()
        if following is None:
            break
        lines.append(following.rstrip("\n"))
    lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
    return "\n".join(lines).strip("\n")


def _history_file() -> Path:
    """The file of typed lines, made readable by its owner alone."""
    path = home() / "history"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    path.chmod(0o600)
    return path


def _greet(session: ChatSession) -> None:
    backend = session.llm.backend
    context = session.llm.context_length
    talk(f"{session.llm.folder.name} on {backend.name}, context {context} tokens. /help lists commands.")
    if session.conversation.turns:
        talk(f"Going on after {session.conversation.turns} turns.")


def _checked_option(sampling: SamplingParams, name: str) -> str:
    if name not in asdict(sampling):
        raise ValueError(f"{name} is no sampling option; there are: {', '.join(asdict(sampling))}")
    return name


def _parsed(name: str, value: str) -> object:
    """A value typed after /set: JSON where it is JSON, `none` for nothing, else the text."""
    if not value:
        raise ValueError(f"/set {name} needs a value, e.g. /set temperature 0.5")
    if value.lower() == "none":
        return None
    try:
        return json.loads(value)
    except ValueError:
        return value


def _path_argument(command: str, text: str) -> Path:
    if not text:
        raise ValueError(f"{command} needs a file name")
    return Path(text).expanduser()


def _edited(text: str) -> str:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "question.txt"
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(f'{editor} "{path}"', shell=True, check=False)
        if done.returncode != 0:
            raise MiniCPMError(
                f"the editor {editor!r} ended with code {done.returncode}; set $EDITOR to one that works"
            )
        return path.read_text(encoding="utf-8").rstrip("\n")


def _measured(completion: Completion | None) -> dict[str, object]:
    if completion is None:
        return {"finish_reason": "cancelled"}
    return {
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "usage": asdict(completion.usage),
        "timings": asdict(completion.timings),
    }


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else text


def talk(text: str) -> None:
    """Say something that is not an answer."""
    print(text, file=sys.stderr, flush=True)
