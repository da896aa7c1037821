"""generation_config.json: the one fact of it that a model cannot do without, the ids that end a text.

What it advises about sampling is the engine's to judge (engine/advice.py).
"""

from __future__ import annotations

from pathlib import Path

from minicpm.errors import FormatError, brief
from minicpm.files import read_json_object

GENERATION_FILE = "generation_config.json"
MAX_FILE_BYTES = 1 << 20
MAX_EOS_TOKEN_IDS = 256
# What a GGUF file calls the advice that it has a key for.
GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def read_eos_token_ids(path: Path, vocab_size: int) -> tuple[int, ...]:
    """eos_token_id of a generation_config.json, () where it says nothing. Raises FormatError for what is no id."""
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
