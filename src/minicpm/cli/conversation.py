"""A conversation as the terminal keeps it: its messages, undo, and its file (JSON Lines, one message a line)."""

from __future__ import annotations

import json
from pathlib import Path

from minicpm.chat import Message, validate_messages
from minicpm.cli.text_input import read_text
from minicpm.errors import FormatError
from minicpm.files import write_text


class Conversation:
    """Messages from the system text on; user and assistant take turns."""

    def __init__(self, messages: list[Message] | None = None):
        self.messages: list[Message] = list(messages or [])

    @property
    def system(self) -> str:
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else ""

    @system.setter
    def system(self, text: str) -> None:
        rest = self.messages[1:] if self.system else self.messages
        first: list[Message] = [{"role": "system", "content": text}] if text else []
        self.messages = first + rest

    @property
    def turns(self) -> int:
        return sum(message["role"] == "user" for message in self.messages)

    def since(self, turns: int) -> list[Message]:
        """The messages without the first `turns` questions and what followed each; the system text stays."""
        if turns == 0:
            return self.messages
        questions = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return (self.messages[:1] if self.system else []) + self.messages[questions[turns] :]

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def clear(self) -> None:
        """Forget all turns; the system text stays."""
        self.messages = self.messages[:1] if self.system else []

    def undo(self) -> str | None:
        """Take back the last question and its answer; returns the question, None if there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                question = self.messages[i]["content"]
                self.messages = self.messages[:i]
                return question
        return None

    def save(self, path: Path) -> None:
        """Write to `path`, readable by its owner alone; a crash leaves the old file or the new one, whole."""
        lines = [json.dumps(message, ensure_ascii=False) + "\n" for message in self.messages]
        write_text(path, "".join(lines), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read a saved conversation; FormatError names the line that is wrong."""
        messages: list[Message] = []
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                message = json.loads(line)
                validate_messages([message])
            except (ValueError, RecursionError) as error:
                raise FormatError(path, f"line {number}: {error}") from error
            messages.append(message)
        return cls(messages)
