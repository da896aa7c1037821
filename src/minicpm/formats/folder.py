"""An existing model folder, and the lookup of its files by plain name."""

from __future__ import annotations

from pathlib import Path

from minicpm.errors import ModelError
from minicpm.files import file_in, has_entry
from minicpm.formats.config import CONFIG_FILE
from minicpm.formats.recognition import folder_without_config


class ModelFolder:
    """An existing folder whose files are looked up by plain name."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise ModelError(f"{path}: no such folder; give the folder of a model, or the name of a model to pull")
        if not self.path.is_dir():
            beside = f", here {self.path.parent}" if has_entry(self.path.parent, CONFIG_FILE) else ""
            raise ModelError(
                f"{path}: not a folder; give the folder that holds config.json and the weights{beside}, or a GGUF file"
            )

    def has(self, name: str) -> bool:
        return has_entry(self.path, name)

    def file(self, name: str) -> Path:
        """Path of the regular file `name`. Raises FormatError if it is missing, special, or outside the folder.

        Where config.json is missing, raises ModelError if the folder is recognised as another thing than a model.
        """
        if name == CONFIG_FILE and not self.has(name) and (found := folder_without_config(self.path)):
            raise ModelError(f"{self.path}: {found}")
        return file_in(self.path, name)
