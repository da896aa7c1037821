"""From messages to prompt text: templates, roles and stop strings. Text only: no ids, no model."""

from __future__ import annotations

import warnings

from minicpm.chat.messages import (
    ASSISTANT_MARKER,
    MAX_MESSAGES,
    ROLES,
    USER_MARKER,
    Message,
    contains_markers,
    validate_messages,
)
from minicpm.chat.stop import STOP_STRINGS, StopMatcher, extract_response
from minicpm.chat.templates import (
    CHATML_TEMPLATE,
    CURRENT_TEMPLATE,
    FEBRUARY_2024_TEMPLATE,
    ChatTemplate,
    template_for,
    template_from,
)

__all__ = [
    "ASSISTANT_MARKER",
    "CHATML_TEMPLATE",
    "CURRENT_TEMPLATE",
    "FEBRUARY_2024_TEMPLATE",
    "MAX_MESSAGES",
    "ROLES",
    "STOP_STRINGS",
    "USER_MARKER",
    "ChatTemplate",
    "Message",
    "StopMatcher",
    "contains_markers",
    "extract_response",
    "template_for",
    "template_from",
    "validate_messages",
]


def __getattr__(name: str) -> object:
    if name != "SYSTEM_PROMPTS":
        raise AttributeError(f"module 'minicpm.chat' has no attribute {name!r}")
    warnings.warn(
        "minicpm.chat.SYSTEM_PROMPTS is deprecated; write the system text into a message",
        DeprecationWarning,
        stacklevel=2,
    )
    from minicpm.chat.deprecated import SYSTEM_PROMPTS

    return SYSTEM_PROMPTS
