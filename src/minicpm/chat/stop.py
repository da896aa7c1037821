"""Finds the end of an answer in a model's text: the turn markers, and a matcher of stop strings in a stream."""

from __future__ import annotations

from collections.abc import Sequence

from minicpm.chat.messages import ASSISTANT_MARKER, USER_MARKER

# MiniCPM ends an answer with </s>. If it does not, it writes the next turn's marker as ordinary text.
STOP_STRINGS = (USER_MARKER, ASSISTANT_MARKER)


def extract_response(text: str) -> str:
    """The answer in a model's text: everything before the first turn marker."""
    return text[: min((at for marker in STOP_STRINGS if (at := text.find(marker)) >= 0), default=len(text))]


class StopMatcher:
    """Finds stop strings in a stream. It holds back only text that may still become a stop string.

    The first complete stop string ends the text, however the stream is divided into pieces. If two are complete at
    once, the one that began first counts.
    """

    def __init__(self, stop_strings: Sequence[str]):
        if isinstance(stop_strings, str) or not all(isinstance(s, str) and s for s in stop_strings):
            raise ValueError(f"stop strings must be a list of non-empty strings, got {stop_strings!r:.80}")
        self._stop_strings = tuple(dict.fromkeys(stop_strings))
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next text. Return the text to show, and whether a stop string ended it; the rest is cut."""
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
        """The text that is held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _possible_start(seen: str, stop: str) -> int:
        """The start of the longest suffix of `seen` that is a prefix of `stop`; len(seen) if there is none."""
        at = seen.find(stop[0], max(0, len(seen) - len(stop) + 1))
        while at >= 0 and not stop.startswith(seen[at:]):
            at = seen.find(stop[0], at + 1)
        return len(seen) if at < 0 else at
