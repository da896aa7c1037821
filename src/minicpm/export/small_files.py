"""The small files beside a model's weights: those of a folder, or the same files made of a GGUF file's metadata.

with small_files(checkpoint) as folder:
    copies = companion_files(folder)
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minicpm.files import json_text, write_text
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.generation import GENERATION_FILE
from minicpm.formats.gguf import GgufFile
from minicpm.formats.gguf_tokenizer import is_byte_level, read_sentencepiece_metadata, tokenizer_texts
from minicpm.tokenizer import PieceType, build_from_sentencepiece, prepends_blank
from minicpm.tokenizer.loading import CONFIG_FILE, JSON_FILE, SENTENCEPIECE_FILE
from minicpm.tokenizer.sentencepiece import SentencePieceModel, sentencepiece_bytes


@contextlib.contextmanager
def small_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder with the tokenizer, chat template, generation defaults and licence of a model.

    It is the model's own folder, or a temporary one for a GGUF file. Raises FormatError if the file has no usable
    tokenizer.
    """
    if checkpoint.format != "gguf":
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="minicpm-") as made:
        folder = Path(made)
        _write_tokenizer(checkpoint, folder)
        write_text(folder / GENERATION_FILE, json_text(_generation_config(checkpoint)))
        yield folder


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, and tokenizer.model with the scores, which another GGUF file needs."""
    with contextlib.closing(GgufFile(checkpoint.path)) as file:
        if is_byte_level(file.metadata):  # without scores: tokenizer.json has all of it
            for name, text in tokenizer_texts(checkpoint.path, file.metadata).items():
                write_text(folder / name, text)
            return
        model, config = read_sentencepiece_metadata(checkpoint.path, file.metadata)
    library = build_from_sentencepiece(model, prepends_blank(config, folder))
    write_text(folder / JSON_FILE, json_text(json.loads(library.to_str())))
    types = [PieceType.UNKNOWN if i == model.unk_id else kind for i, kind in enumerate(model.types)]
    (folder / SENTENCEPIECE_FILE).write_bytes(sentencepiece_bytes(replace(model, types=tuple(types))))
    raw = _tokenizer_config(model, config)
    if checkpoint.has_chat_template:
        raw["chat_template"] = checkpoint.chat_template().text
    write_text(folder / CONFIG_FILE, json_text(raw))


def _tokenizer_config(model: SentencePieceModel, config: dict[str, Any]) -> dict[str, Any]:
    return {
        **config,
        "add_eos_token": False,
        "unk_token": model.pieces[model.unk_id],
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
    }


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Ids that end a text and sampling defaults, by transformers' names; a temperature of 0 becomes greedy decoding."""
    ids = list(checkpoint.eos_token_ids)
    _, advice = checkpoint.generation_config()
    sampling = {name: value for name, value in advice.items() if name != "temperature" or value}
    if advice:
        sampling["do_sample"] = advice.get("temperature") != 0
    eos = ids if len(ids) > 1 else next(iter(ids), None)
    return {"bos_token_id": checkpoint.config.bos_token_id, "eos_token_id": eos, **sampling}
