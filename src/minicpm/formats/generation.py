"""generation_config.json: reads the ids that end a text.

engine/advice.py reads its sampling defaults.
"""

from __future__ import annotations

from pathlib import Path

from minicpm.errors import FormatError, brief
from minicpm.files import read_json_object

GENERATION_FILE = "generation_config.json"
MAX_FILE_BYTES = 1 << 20
MAX_EOS_TOKEN_IDS = 256
# transformers' names of sampling defaults -> the keys of a GGUF file.
GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def read_eos_token_ids(path: Path, vocab_size: int) -> tuple[int, ...]:
    """eos_token_id of a generation_config.json; () if it has none. Raises FormatError for an invalid id."""
    value = read_json_object(path, MAX_FILE_BYTES).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if len(ids) > MAX_EOS_TOKEN_IDS:
        raise FormatError(path, f"eos_token_id has {len(ids):,} ids, expected at most {MAX_EOS_TOKEN_IDS}")
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
            raise FormatError(
                path, f"eos_token_id must be ids from 0 to {vocab_size - 1} or null, got {brief(token_id)}"
            )
    return tuple(ids)
