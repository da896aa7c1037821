"""Functions that a model may call: their text in the prompt, the form of the answer, and its parsing.

MiniCPM-2B has no template for tools. So the functions stand in the system text, and constrained decoding sees to it
that an answer is either text or calls of this form, one after the other:

    <tool_call>{"name": "NAME", "arguments": {...}}</tool_call>

What functions returned goes back to the model as a user's turn of <tool_response>...</tool_response>.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minicpm.chat import Message
from minicpm.engine.constraint import MAX_CONSTRAINT_CHARACTERS
from minicpm.engine.json_schema import JSON_STYLE, Dropped, Schema, checked, narrowed, relaxed
from minicpm.errors import GenerationError, brief, one_line
from minicpm.server.errors import APIError
from minicpm.server.requests import CalledFunction, ChatRequest, Function

# llguidance options for the schemas that `relaxed` returns.
_LENIENT = {**JSON_STYLE, "lenient": True, "coerce_one_of": True}

OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_NAME, _ARGUMENTS = '{"name": "', '", "arguments": '


def offered(request: ChatRequest) -> list[Function]:
    """The functions an answer may call: none, all, or those that tool_choice names."""
    functions = [tool.function for tool in request.tools or ()]
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise APIError(400, f"two tools have the name {twice}", param="tools", code="invalid_value")
    if request.tool_choice == "none":
        return []
    wanted = request.called_names
    if missing := next((name for name in wanted or () if name not in names), None):
        raise APIError(
            400,
            f"tool_choice names {one_line(missing, 64)}, which is not in tools; there is: {', '.join(names)[:200]}",
            param="tool_choice",
            code="invalid_value",
        )
    return [function for function in functions if wanted is None or function.name in wanted]


def with_functions(messages: Sequence[Message], functions: Sequence[Function]) -> list[Message]:
    """The conversation with the functions at the end of its system text, which is made if there is none."""
    if not functions:
        return list(messages)
    listing = "\n".join(json.dumps(_description(function), ensure_ascii=False) for function in functions)
    text = (
        f"You can call these functions:\n{listing}\n"
        f"To call one, answer {OPEN}{_NAME}NAME{_ARGUMENTS}{{...}}}}{_CLOSE} and nothing else. "
        "Otherwise answer in words.\n"
    )
    if messages[0]["role"] == "system":
        first: Message = {"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _description(function: Function) -> dict[str, object]:
    described = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return {key: value for key, value in described.items() if value is not None}


def call_text(calls: Sequence[CalledFunction]) -> str:
    """The text of an earlier answer of calls, as the model wrote it."""
    return "".join(f"{OPEN}{_NAME}{call.name}{_ARGUMENTS}{_arguments(call)}}}{_CLOSE}" for call in calls)


def _arguments(call: CalledFunction) -> str:
    if isinstance(call.arguments, str):
        return call.arguments.strip() or "{}"
    return json.dumps(call.arguments, ensure_ascii=False)


def result_text(results: Sequence[str]) -> str:
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def grammar(functions: Sequence[Function], schemas: Sequence[Schema], *, is_required: bool, is_parallel: bool) -> str:
    """llguidance's Lark for answers: calls with arguments by `schemas`, or text that does not begin like one.

    A blank in front is what the tokenizer may put there.
    """
    rules = ["start: calls" if is_required else "start: calls | TEXT"]
    rules.append("TEXT: /( ?[^ <](.|\\n)*)?/")
    rules.append("calls: BLANK? call+" if is_parallel else "calls: BLANK? call")
    rules.append('BLANK: " "')
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(functions))))
    for number, (function, schema) in enumerate(zip(functions, schemas)):
        head = json.dumps(f"{OPEN}{_NAME}{function.name}{_ARGUMENTS}")
        tail = json.dumps(f"}}{_CLOSE}")
        rules.append(f"call_{number}: {head} arguments_{number} {tail}")
        rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
    return "\n".join(rules)


def argument_schema(function: Function) -> tuple[Schema, list[Dropped]]:
    """The schema of a function's arguments, which are always one object, and keywords that it leaves out.

    GenerationError for parameters that are no schema of an object, and in a strict function for keywords that cannot be
    followed; else they are left out, since one odd keyword of one function should not end every conversation.
    """
    given = function.parameters or {"properties": {}, "additionalProperties": False}
    kind = given.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise GenerationError(f"arguments are an object, so its type must be 'object', got {brief(kind)}")
    schema: dict[str, Any] = {**given, "type": "object"}
    size = len(json.dumps(schema))
    if size > MAX_CONSTRAINT_CHARACTERS:
        raise GenerationError(f"the schema has {size:,} characters, at most {MAX_CONSTRAINT_CHARACTERS:,} are compiled")
    followed, dropped = (checked(schema), []) if function.strict else relaxed(schema)
    followed = narrowed(followed)
    assert isinstance(followed, dict)  # false is no schema that can be followed
    return {**followed, "x-guidance": JSON_STYLE if function.strict else _LENIENT}, dropped


# --- Reading -------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A call as far as it has been written; `number` counts them within one answer."""

    number: int
    name: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    arguments: str = ""


@dataclass(frozen=True)
class Said:
    """New text of an answer: its own where `call` is None, else a part of that call's arguments.

    A call `begins` with a part without text.
    """

    text: str
    call: Call | None = None
    begins: bool = False


class CallReader:
    """Reads an answer of the grammar above as it is written, giving out text and arguments as soon as they are sure."""

    def __init__(self) -> None:
        self._state: Literal["start", "text", "head", "arguments", "tail"] = "start"
        self._unread = ""
        self._depth = 0
        self._is_in_string = self._is_escaped = False
        self.calls: list[Call] = []

    def push(self, text: str) -> list[Said]:
        """The content and calls that `text`, the next part of the answer, adds."""
        self._unread += text
        said: list[Said] = []
        while self._step(said):
            pass
        return said

    def _step(self, said: list[Said]) -> bool:
        """Read on; False when more text must come first."""
        if not self._unread:
            return False
        if self._state == "start":
            # The blank that the tokenizer puts in front of a text.
            start = self._unread.removeprefix(" ")
            if not start:
                return False
            self._unread = start
            self._state = "head" if start.startswith("<") else "text"
        elif self._state == "text":
            said.append(Said(self._unread))
            self._unread = ""
        elif self._state == "head":
            return self._read_head(said)
        elif self._state == "arguments":
            self._read_arguments(said)
        else:
            return self._read_tail()
        return True

    def _read_head(self, said: list[Said]) -> bool:
        head, found, rest = self._unread.partition(_ARGUMENTS)
        if not found:
            return False
        call = Call(len(self.calls), head.rpartition('"')[2])
        self.calls.append(call)
        said.append(Said("", call, begins=True))
        self._state, self._unread = "arguments", rest
        return True

    def _read_arguments(self, said: list[Said]) -> None:
        """Up to the brace that closes the object: it may hold braces of its own, in strings, too."""
        length = len(self._unread)
        for at, character in enumerate(self._unread):
            if self._is_in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._is_in_string = False
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    length = at + 1
                    self._state = "tail"
                    break
        fragment, self._unread = self._unread[:length], self._unread[length:]
        call = self.calls[-1]
        call.arguments += fragment
        said.append(Said(fragment, call))

    def _read_tail(self) -> bool:
        _, found, rest = self._unread.partition(_CLOSE)
        if found:
            self._state, self._unread = "head", rest
        return bool(found)
