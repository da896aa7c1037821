"""MiniCPM-nano, the model that ships inside the package: its name, where it lies, and what to say where it is missing.

It is on no hub, and what a verb takes when no model is named.
"""

from __future__ import annotations

from pathlib import Path

from minicpm.errors import ModelError
from minicpm.hub.cache import missing_parts
from minicpm.hub.names import EMBEDDED_NAME

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = _PACKAGE / "assets" / "MiniCPM-nano"


def is_name(text: str | Path) -> bool:
    """Whether `text` names the built-in model."""
    return isinstance(text, str) and text.strip().lower() == EMBEDDED_NAME


def is_present() -> bool:
    """Whether this build of the package has the model, with all that loading it takes."""
    return missing_parts(FOLDER) is None


def folder() -> Path:
    """The model's folder. ModelError, with what to do, where this installation does not have it."""
    missing = missing_parts(FOLDER)
    if missing is None:
        return FOLDER
    instead = "pass -m with a folder or a name such as minicpm-2b-dpo"
    if not _PACKAGE.is_dir():
        raise ModelError(
            f"the built-in model cannot be read from inside {_archive(_PACKAGE)}; install the package unpacked, as pip "
            f"does, or {instead}"
        )
    raise ModelError(
        f"this installation has no built-in model ({missing} is missing in {FOLDER}); install minicpm again from a "
        f"complete source, or {instead}"
    )


def _archive(package: Path) -> Path:
    """The file that stands where a folder should: the archive that the package was imported from."""
    return next((parent for parent in package.parents if parent.is_file()), package)
