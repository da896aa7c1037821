"""The sources of a model's tokenizer, chat template and generation defaults.

The function that opens a format passes a `TextSources` to `Checkpoint`. `FolderTexts` is a folder's; gguf_model.py
implements a GGUF file's.
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
    """A model's tokenizer, chat template and generation defaults. Each is read when it is first needed."""

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The existing files with the tokenizer and the template."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a template of its own. Otherwise MiniCPM's built-in one is used."""

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises FormatError if it has no usable one."""

    def chat_template(self) -> ChatTemplate:
        """The model's chat template, or MiniCPM's own if it has none."""

    def generation_config(self) -> tuple[Path, dict[str, Any]]:
        """The file with generation defaults, and those by transformers' names; {} if there are none."""


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
