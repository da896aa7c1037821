"""`python -m minicpm.compat COMMAND ...`: what the release of 2024 told its users to type, on today's machine.

- A script that exists runs as it stands (`scripts.py`; a Gradio page of 2024 over today's Gradio, `gradio_2024.py`).
- A command of the release whose file is not here (`python demo/hf_based_demo.py --model_path PATH`) runs the verb that
  does the same, and prints it. Where no verb does it, one sentence says what to type instead (`commands.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from minicpm.compat.commands import Answer, Verb, answer, without_starter
from minicpm.errors import MissingExtra, missing_extra

USAGE = "usage: python -m minicpm.compat SCRIPT.py [ARGUMENT ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script or a command of the release; returns the exit code, 2 for what only a sentence answers."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}" if arguments else USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if (found := answer(arguments)) is not None:
        return _give(found)
    if not Path(arguments[0]).exists():
        script, rest = without_starter(arguments)
        arguments = [script, *rest]
    try:
        Path(arguments[0]).read_bytes()
        with missing_extra("running a script of 2024", "torch"):
            from minicpm.compat import scripts
    except OSError as error:
        _say(f"can't open file {arguments[0]!r}: {os.strerror(error.errno or 0)}")
        return 2
    except MissingExtra as error:
        _say(str(error))
        return 1
    return scripts.main(arguments)


def _give(found: Answer | Verb) -> int:
    if isinstance(found, Answer):
        _say(found.text)
        return 2
    from minicpm.cli.main import main as run_verb

    if found.note:
        _say(found.note)
    _say(f"running: {found.command}")
    return run_verb(found.arguments)


def _say(text: str) -> None:
    print(f"minicpm.compat: {text}", file=sys.stderr, flush=True)
