"""The parts of a conversation: roles, turn markers, messages and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

ROLES = ("system", "user", "assistant")
USER_MARKER, ASSISTANT_MARKER = "<用户>", "<AI>"

MAX_MESSAGES = 4096
MAX_CONTENT_CHARACTERS = 1 << 20


class Message(TypedDict):
    """One turn. `role` is system, user or assistant."""

    role: str
    content: str


def validate_messages(messages: Sequence[Message]) -> None:
    """Raise ValueError, with message and field, for anything that is not a conversation."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of role and content, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages is empty; give at least one with the role 'user'")
    if len(messages) > MAX_MESSAGES:
        raise ValueError(f"{len(messages):,} messages are more than the {MAX_MESSAGES:,} a conversation may have")
    for i, message in enumerate(messages):
        _validate_message(f"messages[{i}]", message)


def contains_markers(text: str) -> bool:
    """Whether `text` contains a turn marker. The model reads it as one, because upstream never escapes it."""
    return any(marker in text for marker in (USER_MARKER, ASSISTANT_MARKER))


def _validate_message(where: str, message: object) -> None:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must have role and content, got {type(message).__name__}")
    unknown = [str(key) for key in message if key not in ("role", "content")]
    if unknown:
        raise ValueError(f"{where} has the field {unknown[0]!r:.40}; there are: role, content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.40}")
    if not isinstance(content, str):
        raise ValueError(f"{where}.content must be a string, got {type(content).__name__}")
    if len(content) > MAX_CONTENT_CHARACTERS:
        raise ValueError(f"{where}.content has {len(content):,} characters, at most {MAX_CONTENT_CHARACTERS:,} fit")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}.content holds half of a surrogate pair ({content[error.start]!r} at character {error.start}), "
            "which is not a Unicode character; decode the input as UTF-8 first"
        ) from None
