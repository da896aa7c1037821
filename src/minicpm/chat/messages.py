"""What a conversation is made of, and where an answer in a model's text ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypedDict

ROLES = ("system", "user", "assistant")
USER_MARKER, ASSISTANT_MARKER = "<用户>", "<AI>"
# MiniCPM ends an answer with </s>, but one that runs on starts a turn by itself: ordinary text, so cut as text.
STOP_STRINGS = (USER_MARKER, ASSISTANT_MARKER)

# System texts of the 2024 mobile apps; as a system message they give the apps' prompts to the letter.
SYSTEM_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "android": "<系统命令>你是MiniCPM，由面壁智能开发。",
        "ios": "<系统命令>你是MiniCPM，你是由面壁智能开发的语言模型。",
    }
)

MAX_MESSAGES = 4096
MAX_CONTENT_CHARACTERS = 1 << 20


class Message(TypedDict):
    """One turn. `role` is system, user or assistant."""

    role: str
    content: str


def validate_messages(messages: Sequence[Message]) -> None:
    """Raise ValueError, naming message and field, for anything that is no conversation."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of role and content, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages is empty; give at least one with the role 'user'")
    if len(messages) > MAX_MESSAGES:
        raise ValueError(f"{len(messages):,} messages are more than the {MAX_MESSAGES:,} a conversation may have")
    for i, message in enumerate(messages):
        _validate_message(f"messages[{i}]", message)


def contains_markers(text: str) -> bool:
    """Whether `text` spells a turn marker: the model will read it as one, since upstream never escapes it."""
    return any(marker in text for marker in STOP_STRINGS)


def extract_response(text: str) -> str:
    """The answer in what a model wrote: all before the first turn marker."""
    return text[: min((at for marker in STOP_STRINGS if (at := text.find(marker)) >= 0), default=len(text))]


class StopMatcher:
    """Finds stop strings in a stream, holding back only text that could still become one.

    The string that is complete first ends the text, wherever the pieces were cut; of two complete at once, the
    one that began first.
    """

    def __init__(self, stop_strings: Sequence[str]):
        if isinstance(stop_strings, str) or not all(isinstance(s, str) and s for s in stop_strings):
            raise ValueError(f"stop strings must be a list of non-empty strings, got {stop_strings!r:.80}")
        self._stop_strings = tuple(dict.fromkeys(stop_strings))
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next text; return what may be shown, and whether a stop string ended it (then all else is cut)."""
        if self.is_stopped:
            return "", True
        seen = self._held + text
        ends = [(at + len(s), at) for s in self._stop_strings if (at := seen.find(s)) >= 0]
        if ends:
            self.is_stopped, self._held = True, ""
            return seen[: min(ends)[1]], True
        hold_from = min((self._possible_start(seen, s) for s in self._stop_strings), default=len(seen))
        self._held = seen[hold_from:]
        return seen[:hold_from], False

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _possible_start(seen: str, stop: str) -> int:
        """Where the longest end of `seen` starts that `stop` could continue; its length if there is none."""
        at = seen.find(stop[0], max(0, len(seen) - len(stop) + 1))
        while at >= 0 and not stop.startswith(seen[at:]):
            at = seen.find(stop[0], at + 1)
        return len(seen) if at < 0 else at


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
            "which is no Unicode character; decode the input as UTF-8 first"
        ) from None
