"""added_tokens.json, which tokenizers of 2023 and earlier wrote: tokens that no other file of the folder may name.

Newer folders name theirs in tokenizer_config.json's added_tokens_decoder, which wins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, brief
from minicpm.files import file_in, has_entry, read_json_object

ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE = "added_tokens.json", "special_tokens_map.json"
MAX_FILE_BYTES = 4 << 20
MAX_TOKENS, MAX_CHARACTERS, MAX_ID = 1 << 14, 256, 1 << 31


def listed_tokens(folder: Path, config: dict[str, Any], is_known: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """The tokens of added_tokens.json that are not known yet, in the form of an added_tokens_decoder.

    A token is special if special_tokens_map.json or `config`, a tokenizer_config.json, names it. Raises FormatError for
    a file that is not an object of token ids.
    """
    if not has_entry(folder, ADDED_TOKENS_FILE):
        return {}
    path = file_in(folder, ADDED_TOKENS_FILE)
    listed = read_json_object(path, MAX_FILE_BYTES)
    if len(listed) > MAX_TOKENS:
        raise FormatError(path, f"{len(listed):,} tokens, expected at most {MAX_TOKENS:,}")
    for content, token_id in listed.items():
        if not 0 < len(content) <= MAX_CHARACTERS or type(token_id) is not int or not 0 <= token_id < MAX_ID:
            raise FormatError(path, f"{brief(content)} has the id {brief(token_id)}, expected tokens with their ids")
    declared = config.get("added_tokens_decoder")
    decoder = declared if isinstance(declared, dict) else {}
    named = {token.get("content") for token in decoder.values() if isinstance(token, dict)}
    special = _special_contents(folder, config)
    return {
        # Found in the text as it is written, before blanks are marked, as the tokenizers of that time did.
        str(token_id): {"content": content, "special": content in special, "normalized": False}
        for content, token_id in sorted(listed.items(), key=lambda item: item[1])
        if content not in named and not is_known(content)
    }


def _special_contents(folder: Path, config: dict[str, Any]) -> set[str]:
    """Every text that the folder's small files name as a special token."""
    sources = [config]
    if has_entry(folder, SPECIAL_TOKENS_FILE):
        sources.append(read_json_object(file_in(folder, SPECIAL_TOKENS_FILE), MAX_FILE_BYTES))
    found: set[str] = set()
    for source in sources:
        for key, value in source.items():
            if key.endswith(("_token", "_special_tokens")):
                for token in value if isinstance(value, list) else [value]:
                    content = token.get("content") if isinstance(token, dict) else token
                    found |= {content} if isinstance(content, str) else set()
    return found
