"""A model's recommended sampling, from generation_config.json or its GGUF file: the defaults of its requests."""

from __future__ import annotations

from minicpm.errors import FormatError
from minicpm.formats.checkpoint import Checkpoint
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


def advised_sampling(checkpoint: Checkpoint) -> SamplingParams:
    """SamplingParams that an opened model recommends; this package's defaults if it has none.

    `do_sample` false is temperature 0. Raises FormatError for a value that is out of range.
    """
    path, raw = checkpoint.generation_config()
    given = {ours: raw[theirs] for theirs, ours in FIELDS.items() if raw.get(theirs) is not None}
    if raw.get("do_sample") is False:
        given["temperature"] = 0.0
    try:
        return SamplingParams(**given)
    except ValueError as error:
        raise FormatError(path, f"its advice about sampling cannot be followed: {error}") from error
