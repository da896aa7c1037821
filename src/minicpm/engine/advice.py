"""What a model's own generation_config.json advises about sampling: the defaults of its requests."""

from __future__ import annotations

from pathlib import Path

from minicpm.errors import FormatError
from minicpm.files import file_in, has_entry, read_json_object
from minicpm.formats.checkpoint import GENERATION_FILE
from minicpm.formats.generation import MAX_FILE_BYTES
from minicpm.sampling import SamplingParams

# transformers' name -> ours
FIELDS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}


def advised_sampling(folder: Path) -> SamplingParams:
    """SamplingParams of the folder's generation_config.json; this package's own where it says nothing.

    `do_sample` false is temperature 0. Raises FormatError for a value that is out of range.
    """
    if not has_entry(folder, GENERATION_FILE):
        return SamplingParams()
    path = file_in(folder, GENERATION_FILE)
    raw = read_json_object(path, MAX_FILE_BYTES)
    given = {ours: raw[theirs] for theirs, ours in FIELDS.items() if raw.get(theirs) is not None}
    if raw.get("do_sample") is False:
        given["temperature"] = 0.0
    try:
        return SamplingParams(**given)
    except ValueError as error:
        raise FormatError(path, f"its advice about sampling cannot be followed: {error}") from error
