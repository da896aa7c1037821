"""The model that -m names: where its files are, and what others read of it."""

from __future__ import annotations

import argparse
from pathlib import Path


def resolve_model(args: argparse.Namespace, model: str | None) -> Path:
    """The folder or file of a model, downloaded if it must be; `args` has --offline. The download shows on stderr."""
    from minicpm import hub
    from minicpm.cli.progress import TerminalProgress

    return hub.resolve(model, offline=args.offline, progress=TerminalProgress())


def shown_name(model: str | None, folder: Path) -> str:
    """What others read of the model of -m: they need not know where on the disk it is."""
    if model is not None and Path(model).expanduser() != folder:
        return model
    return folder.name if folder.name.strip(".") else folder.resolve().name


def served_name(model: str | None, folder: Path) -> str:
    """What requests call the model of -m."""
    from minicpm.hub.names import EMBEDDED_NAME

    return EMBEDDED_NAME if model is None else shown_name(model, folder).removesuffix(".gguf")
