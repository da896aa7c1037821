"""The model that -m names: the place of its files, and its public name."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_SIZE = re.compile(r"[-_.]\d+(\.\d+)?[bm]\b", re.IGNORECASE)  # a number of parameters, as in the names on a hub


def resolve_model(args: argparse.Namespace, model: str | None) -> Path:
    """The folder or file of a model, downloaded if needed and able to run; `args` has --offline.

    Progress goes to stderr.
    """
    from minicpm import hub
    from minicpm.cli.progress import TerminalProgress
    from minicpm.formats.support import require_supported

    return hub.resolve(model, offline=args.offline, progress=TerminalProgress(), accept=require_supported)


def shown_name(model: str | None, folder: Path) -> str:
    """The public name of the model of -m. It does not reveal a path of this machine."""
    if model is not None and Path(model).expanduser() != folder:
        return model
    return folder.name if folder.name.strip(".") else folder.resolve().name


def served_name(model: str | None, folder: Path) -> str:
    """The name of the model of -m in requests."""
    from minicpm.hub.names import EMBEDDED_NAME

    return EMBEDDED_NAME if model is None else shown_name(model, folder).removesuffix(".gguf")


def is_model_word(word: str) -> bool:
    """Whether a word in the place of a prompt is a model: a known name, one on a hub, a model's folder or file."""
    from minicpm.hub import embedded
    from minicpm.hub.names import KNOWN_MODELS, SOURCES, nearest_names

    if not word or any(character.isspace() for character in word):
        return False
    low = word.lower()
    if embedded.is_name(word) or low.endswith(".gguf"):
        return True
    for model in KNOWN_MODELS:
        if low in (*model.aliases, model.huggingface.lower(), (model.modelscope or "").lower()):
            return True
    prefix, colon, rest = low.partition(":")
    if colon and rest and (prefix in SOURCES or re.match(r"https?://(www\.)?(huggingface|hf|modelscope)\.", low)):
        return True
    if low.startswith("minicpm-") and nearest_names(word):  # misspelled
        return True
    if word.count("/") == 1 and _SIZE.search(word) and re.fullmatch(r"[\w.-]+/[\w.-]+", word, re.ASCII):
        return True
    folder = Path(word).expanduser()
    return (folder / "config.json").is_file() or (folder.is_dir() and any(folder.glob("*.gguf")))


def refuse_model_as_prompt(verb: str, model: str | None, words: Sequence[str]) -> None:
    """ValueError where the first prompt is a model and -m is not given, as other programs want it."""
    if model is None and words and is_model_word(words[0]):
        rest = shlex.join(words[1:]) or "PROMPT"
        talk = "" if len(words) > 1 else f", or minicpm chat -m {shlex.quote(words[0])} for a conversation"
        raise ValueError(
            f"{words[0]} is a model, and a model is given with -m; type: minicpm {verb} -m {shlex.quote(words[0])} "
            f"{rest}{talk}"
        )
