"""`minicpm VERB ...`: finds the verb's file, prints errors as one sentence, sets the exit code.

Exit codes: 0 done, 1 failed with a message, 2 wrong usage, 130 interrupted.
Each verb is a module of `verbs` with `add_arguments(parser)` and `run(args) -> int`; only the chosen one is imported.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import shlex
import stat
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from minicpm import __version__
from minicpm.cli.models import is_model_word
from minicpm.cli.output import one_sentence, talk
from minicpm.errors import MiniCPMError, one_line
from minicpm.files import is_disk_full

# verb -> (module, one line of help), in the order of a user's day.
VERBS: dict[str, tuple[str, str]] = {
    "chat": ("chat", "talk with a model"),
    "run": ("run", "complete prompts from arguments, a file or stdin"),
    "serve": ("serve", "serve a model over OpenAI's and Ollama's HTTP APIs"),
    "demo": ("demo", "talk with a model in the browser"),
    "pull": ("pull", "download a model"),
    "list": ("list", "list the models on this machine"),
    "rm": ("rm", "remove a downloaded model"),
    "info": ("info", "show a model's configuration and memory needs"),
    "doctor": ("doctor", "find and repair known faults of a model's files"),
    "verify": ("verify", "compare a model's files and answers with published ones"),
    "bench": ("bench", "measure a model on this machine"),
    "convert": ("convert", "write a model in another format"),
    "quantize": ("quantize", "write a model with 4- or 8-bit weights"),
    "prepare": ("prepare", "make the tokenizer and the shape of a new model"),
    "pretrain": ("pretrain", "train a new model from texts and conversations"),
    "finetune": ("finetune", "continue training a model on your data"),
    "data": ("data", "check training data"),
}


PROGRAM = "minicpm"
STDOUT = "stdout"

# Words that are taken for a verb.
ALIASES = {"ls": "list"}

# Words that other programs have for what a verb does, and the words to type here.
OTHER_WORDS = {
    "show": "info", "ps": "list", "models": "list",
    "remove": "rm", "delete": "rm", "uninstall": "rm",
    "download": "pull", "get": "pull", "install": "pull",
    "start": "serve", "server": "serve", "api": "serve",
    "web": "demo", "webui": "demo", "gui": "demo", "ui": "demo",
    "generate": "run", "complete": "run", "ask": "run", "talk": "chat",
    "benchmark": "bench", "export": "convert", "quantise": "quantize",
    "train": "finetune", "tune": "finetune", "sft": "finetune",
    "repair": "doctor", "fix": "doctor", "eval": "verify", "evaluate": "verify",
    "version": "--version",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Answers wrong usage with one sentence and exit code 2; the list of options is for --help."""

    words: Sequence[str] = ()  # the whole command line, for advice

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        advice = _verb_advice(self.words, message) if self.prog == PROGRAM else self._advice(message)
        talk(f"{self.prog}: {advice}")
        sys.exit(2)

    def _advice(self, message: str) -> str:
        """The message of a verb's parser, and what to type instead."""
        takes_model, places = "--model" in self._option_string_actions, self._get_positional_actions()
        unknown = message.removeprefix("unrecognized arguments: ")
        if places and not takes_model and (words := _without_model_option(self.words)) != list(self.words):
            return f"the model stands without -m here; type: {PROGRAM} {shlex.join(words)}"
        if unknown == message:
            return f"{message}; '{self.prog} --help' shows the options"
        if unknown.startswith("-"):
            option = unknown.split()[0].partition("=")[0]
            near = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.75)
            return f"{message}; " + (f"did you mean {near[0]}?" if near else f"'{self.prog} --help' shows the options")
        if any(action.nargs == "*" for action in places):
            return f"{message}; put all of these words in one place, before or behind the options"
        if takes_model and not places and "--model" not in self.words and "-m" not in self.words:
            return f"{message}; a model is given with -m: {self.prog} -m {unknown}"
        return f"{message}; '{self.prog} --help' shows the options"


def _without_model_option(words: Sequence[str]) -> list[str]:
    """The words without `-m` and `--model`, the model itself kept."""
    kept = [word for word in words if word not in ("-m", "--model")]
    return [word.removeprefix("--model=").removeprefix("-m=") for word in kept]


def _verb_advice(words: Sequence[str], message: str) -> str:
    """What to type in place of a command line without a verb that exists."""
    verbs = f"'{PROGRAM} help' lists the verbs"
    word = next((word for word in words if not word.startswith("-")), None)
    if word is None:
        return f"a verb is missing, such as chat, run or serve; {verbs}"
    if word in VERBS:
        return f"{message}; {verbs}"
    if words[0].startswith("-"):
        return f"the verb comes first, as in '{PROGRAM} chat -m MODEL'; {verbs}"
    if word in OTHER_WORDS:
        return f"there is no verb {word}; type: {PROGRAM} {OTHER_WORDS[word]}"
    if any(character.isspace() for character in word):
        return f"a verb is missing; to ask a question type: {PROGRAM} run {shlex.join(words)}"
    if near := difflib.get_close_matches(word, [*VERBS, *ALIASES], n=1):
        return f"there is no verb {word}; did you mean {near[0]}?"
    if is_model_word(word):
        return f"a verb is missing; to talk with this model type: {PROGRAM} chat -m {shlex.quote(word)}"
    return f"there is no verb {one_line(word, 40)}; {verbs}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal with another encoding shows replacement characters instead of ending an answer with an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    shows_traceback = False
    try:
        shows_traceback = _traceback_wanted()
        code = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # at the interpreter's exit a full disk would have no sentence
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has closed it (`| head`).
        _discard_stdout()
        return 1
    except (MiniCPMError, ValueError, OSError, MemoryError) as error:
        if shows_traceback:
            raise
        if isinstance(error, OSError) and error.filename is None and sys.stdout and _is_of_stdout(error):
            error.filename = STDOUT
            _discard_stdout()
        talk(f"{PROGRAM}: {one_sentence(error)}")
        # A bad argument raises a plain ValueError; subclasses, such as UnicodeDecodeError, are failures.
        return 2 if type(error) is ValueError else 1


def _replace_closed_streams() -> None:
    """Send the output of a closed stdout or stderr (`>&-`) nowhere, and report a closed stdout.

    Python gives None for such a stream: printing to it is silently lost, and everything else on it fails.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        talk(f"{PROGRAM}: stdout is closed, so the output is lost; send it to a file or to {os.devnull} instead")


def _run(argv: list[str]) -> int:
    try:
        args = parse(argv)
    except SystemExit as ending:  # --help, --version, or wrong usage, which has been told
        return int(ending.code or 0)
    module = import_module(f"minicpm.cli.verbs.{VERBS[args.verb][0]}")
    return int(module.run(args))


def _is_of_stdout(error: OSError) -> bool:
    """Whether an error that names no file is one of writing to stdout.

    What stdout still holds then fails again. Without a buffer it holds nothing, but its disk has no room.
    """
    try:
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    try:
        descriptor = sys.stdout.fileno()
        if not is_disk_full(error) or sys.stdout.isatty() or Path(os.devnull).samefile(f"/dev/fd/{descriptor}"):
            return False
        return stat.S_ISCHR(os.fstat(descriptor).st_mode) or os.fstatvfs(descriptor).f_bavail == 0
    except (OSError, ValueError, AttributeError):  # a stream that is no file, or a system without these calls
        return False


def _discard_stdout() -> None:
    """Send what stdout still holds nowhere, so that the interpreter exits quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of one command. Exits with code 2 if they are wrong."""
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    argv = [ALIASES.get(argv[0], argv[0]), *argv[1:]] if argv else []
    parser = Parser(
        prog=PROGRAM,
        description="MiniCPM on end-side devices. 'minicpm VERB --help' or 'minicpm help VERB' shows the options of a "
        "verb.",
    )
    parser.words = argv
    parser.add_argument("--version", action="version", version=f"minicpm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    chosen_parser: Parser | None = None
    for verb, (module, summary) in VERBS.items():
        others = [alias for alias, meant in ALIASES.items() if meant == verb]
        summary += f" (also: {', '.join(others)})" if others else ""
        verb_parser = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if verb == chosen:
            import_module(f"minicpm.cli.verbs.{module}").add_arguments(verb_parser)
            verb_parser.words, chosen_parser = argv, verb_parser
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        (chosen_parser or parser).error(f"unrecognized arguments: {shlex.join(unknown)}")
    return args


def _traceback_wanted() -> bool:
    value = os.environ.get("MINICPM_TRACEBACK", "0")
    if value not in ("0", "1"):
        raise ValueError(f"MINICPM_TRACEBACK must be 0 or 1, got {value!r}")
    return value == "1"


if __name__ == "__main__":
    sys.exit(main())
