"""What a new model starts from: a tokenizer learned from training files, and a config.json. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from minicpm.chat.templates import CURRENT_TEMPLATE
from minicpm.errors import DataError
from minicpm.export.destination import new_folder
from minicpm.files import write_text
from minicpm.formats.config import CONFIG_FILE, DecoderConfig
from minicpm.tokenizer.training import train_tokenizer
from minicpm.train.records import Conversation, Problem, Text, read_records
from minicpm.train.shapes import shape_for

# The turn markers of MiniCPM's template, and the newline: whole in every text, as in MiniCPM-nano.
MARKERS = ("\n", "<用户>", "<AI>")


def prepare(data: Sequence[Path], out: Path, *, parameters: int, vocab_size: int, context: int) -> DecoderConfig:
    """Write tokenizer and config.json into the new folder `out`; return the shape.

    Raises DataError for a bad record, as training does, and ModelError where no shape has about so many parameters.
    """
    with new_folder(out) as folder:
        pieces = train_tokenizer(
            _texts(data),
            folder,
            vocab_size=vocab_size,
            markers=MARKERS,
            chat_template=CURRENT_TEMPLATE.text,
            context=context,
        )
        shape = shape_for(parameters, pieces, context)
        write_text(folder / CONFIG_FILE, json.dumps(shape.to_dict(), indent=2) + "\n")
    return shape


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        for place, record in read_records(path):
            if isinstance(record, Problem):
                raise DataError(f"{path}: {place}: {record.text}; 'minicpm data check {path}' lists all")
            if isinstance(record, Text):
                yield record.text
            elif isinstance(record, Conversation):
                yield from (message["content"] for message in record.messages)
