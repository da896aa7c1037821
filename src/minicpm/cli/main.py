"""`minicpm VERB ...`: finds the verb's file, prints errors as one sentence, sets the exit code.

Exit codes: 0 done, 1 failed with a message, 2 wrong usage, 130 interrupted.
Each verb is a module of `verbs` with `add_arguments(parser)` and `run(args) -> int`; only the chosen one is imported.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from minicpm import __version__
from minicpm.cli.output import one_sentence, talk
from minicpm.errors import MiniCPMError

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
    "pretrain": ("pretrain", "train a new model from texts and conversations"),
    "finetune": ("finetune", "continue training a model on your data"),
    "data": ("data", "check training data"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal with another encoding shows replacement characters instead of ending an answer with an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    shows_traceback = False
    try:
        shows_traceback = _traceback_wanted()
        args = parse(argv)
        module = import_module(f"minicpm.cli.verbs.{VERBS[args.verb][0]}")
        return int(module.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has closed it (`| head`). Redirect stdout, so that the interpreter exits quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MiniCPMError, ValueError, OSError, MemoryError) as error:
        if shows_traceback:
            raise
        talk(f"minicpm: {one_sentence(error)}")
        # A bad argument raises a plain ValueError; subclasses, such as UnicodeDecodeError, are failures.
        return 2 if type(error) is ValueError else 1


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of one command. Exits with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="minicpm",
        description="MiniCPM on end-side devices. 'minicpm VERB --help' shows the options of a verb.",
    )
    parser.add_argument("--version", action="version", version=f"minicpm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for verb, (module, summary) in VERBS.items():
        verb_parser = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if verb == chosen:
            import_module(f"minicpm.cli.verbs.{module}").add_arguments(verb_parser)
    return parser.parse_args(argv)


def _traceback_wanted() -> bool:
    value = os.environ.get("MINICPM_TRACEBACK", "0")
    if value not in ("0", "1"):
        raise ValueError(f"MINICPM_TRACEBACK must be 0 or 1, got {value!r}")
    return value == "1"


if __name__ == "__main__":
    sys.exit(main())
