"""What a repository says about a model before its weights are downloaded: its files, config.json and index."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm.errors import HubError
from minicpm.hub.names import Reference
from minicpm.hub.remote import Listing, RemoteFile, is_weights

CONFIG_FILE = "config.json"
# Files that are read: what the model is, and how its weights are spread. A larger one is none of these.
_SUFFIXES = (CONFIG_FILE, ".index.json")
_MAX_BYTES = 8 << 20


@dataclass(frozen=True)
class Preview:
    """A model on a hub. `files` are those that loading takes; `texts` the contents of the small ones, by path."""

    reference: Reference
    listing: Listing
    files: tuple[RemoteFile, ...]
    texts: Mapping[str, bytes]

    @property
    def config(self) -> dict[str, Any] | None:
        """config.json; None for a repository without one, such as one of GGUF files. HubError if it is no object."""
        if CONFIG_FILE not in self.texts:
            return None
        try:
            raw = json.loads(self.texts[CONFIG_FILE])
        except (ValueError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            raise HubError(f"{self.reference}: its {CONFIG_FILE} is not a JSON object; nothing else was downloaded")
        return raw

    @property
    def weight_files(self) -> tuple[RemoteFile, ...]:
        return tuple(file for file in self.files if is_weights(file))

    @property
    def weight_bytes(self) -> int:
        return sum(file.size for file in self.weight_files)


def read(
    reference: Reference,
    listing: Listing,
    files: tuple[RemoteFile, ...],
    fetch: Callable[[RemoteFile, Path], None],
) -> Preview:
    """The preview of a listed repository; `fetch` brings one verified file to a path."""
    wanted = [file for file in files if file.path.endswith(_SUFFIXES) and file.size <= _MAX_BYTES]
    texts = {}
    with tempfile.TemporaryDirectory(prefix="minicpm-") as folder:
        for number, file in enumerate(wanted):
            place = Path(folder) / str(number)
            fetch(file, place)
            texts[file.path] = place.read_bytes()
    return Preview(reference, listing, files, texts)
