"""Messages <-> prompt text: templates, roles, the markers where an answer ends. Text only; no ids, no model."""

from minicpm.chat.messages import (
    ASSISTANT_MARKER,
    MAX_MESSAGES,
    ROLES,
    SYSTEM_PROMPTS,
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
    "SYSTEM_PROMPTS",
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
