"""Where a model's text side comes from: tokenizer, chat template, and advice about generation.

`Checkpoint` is handed one of these by whoever opens its form, and asks it. A folder's is here; a GGUF file is its own
(gguf_model.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minicpm.chat import ChatTemplate, template_for
from minicpm.chat.templates import TEMPLATE_FILE
from minicpm.files import file_in, has_entry, read_json_object
from minicpm.formats.generation import GENERATION_FILE, MAX_FILE_BYTES
from minicpm.tokenizer import Tokenizer, read_tokenizer_config
from minicpm.tokenizer.loading import CONFIG_FILE, JSON_FILE, SENTENCEPIECE_FILE

TOKENIZER_FILES = (
    JSON_FILE,
    SENTENCEPIECE_FILE,
    CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE_FILE,
)


class TextSources(Protocol):
    """What turns text into a model's ids and back, and what its authors advise. Nothing is read before it is asked."""

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The files that the tokenizer and the template are in, those that exist."""

    @property
    def has_chat_template(self) -> bool:
        """True if the model brings a template; the prompt format of 2024 is built in for those that don't."""

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; FormatError where it has none that can be used."""

    def chat_template(self) -> ChatTemplate:
        """The model's chat template, MiniCPM's own where it has none."""

    def generation_config(self) -> tuple[Path, dict[str, Any]]:
        """The file that advises about generation, and its advice by transformers' names; {} for none."""


@dataclass(frozen=True)
class FolderTexts:
    """The text sources of a model folder."""

    path: Path
    tokenizer_files: tuple[Path, ...]

    @property
    def has_chat_template(self) -> bool:
        names = {file.name for file in self.tokenizer_files}
        if TEMPLATE_FILE in names:
            return True
        return CONFIG_FILE in names and bool(read_tokenizer_config(self.path).get("chat_template"))

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.path)

    def chat_template(self) -> ChatTemplate:
        return template_for(self.path)

    def generation_config(self) -> tuple[Path, dict[str, Any]]:
        if not has_entry(self.path, GENERATION_FILE):
            return self.path, {}
        path = file_in(self.path, GENERATION_FILE)
        return path, read_json_object(path, MAX_FILE_BYTES)
