"""The model that -m names: the place of its files, and its public name."""

from __future__ import annotations

import argparse
from pathlib import Path


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
