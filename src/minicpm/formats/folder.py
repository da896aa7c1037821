"""An existing model folder, and the lookup of its files by plain name."""

from __future__ import annotations

from pathlib import Path

from minicpm.errors import ModelError
from minicpm.files import file_in, has_entry


class ModelFolder:
    """An existing folder whose files are looked up by plain name."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise ModelError(f"{path}: no such folder; give the folder of a model, or the name of a model to pull")
        if not self.path.is_dir():
            raise ModelError(
                f"{path}: not a folder; give the folder that holds config.json and the weights, or a GGUF file"
            )

    def has(self, name: str) -> bool:
        return has_entry(self.path, name)

    def file(self, name: str) -> Path:
        """Path of the regular file `name`. Raises FormatError if it is missing, special, or outside the folder."""
        return file_in(self.path, name)
