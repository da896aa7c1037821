"""Answers in Ollama's form: JSON objects, one a line where they are streamed (NDJSON).

An answer that is not streamed is what its lines add up to, so both have the same fields.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from minicpm.engine.request import Completion, Piece
from minicpm.server import tools
from minicpm.server.errors import APIError
from minicpm.server.events import Chunk, Framing, encoded
from minicpm.server.generation import note_usage, token_logprob, usage
from minicpm.server.model import ServedModel

# JSON leaves them in strings as they are, but some clients take them for the end of a line.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def framing(lines: Lines) -> Framing:
    """How the lines of one answer are streamed. A line without text keeps a silent stream open."""
    return Framing("application/x-ndjson", _line, lambda: _line(lines.line("")), b"", _error)


def _line(chunk: Chunk) -> bytes:
    return encoded(chunk).translate(_LINE_ENDS).encode() + b"\n"


def _error(error: APIError) -> Iterable[Chunk]:
    yield {"error": str(error)}


def timestamp(seconds: float | None = None) -> str:
    """Seconds since 1970 (None: now) by RFC 3339."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


class Stopwatch:
    """Times of a request: from its arrival, and until its prompt was ready."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._ready_s = self._start_s

    def ready(self) -> None:
        self._ready_s = time.perf_counter()

    def durations(self) -> dict[str, int]:
        return {
            "total_duration": nanoseconds(time.perf_counter() - self._start_s),
            "load_duration": nanoseconds(self._ready_s - self._start_s),
        }


class Lines:
    """The lines of an answer; `name` is what the client called the model."""

    def __init__(self, name: str, model: ServedModel, watch: Stopwatch, notes: dict[str, str], wants_logprobs: bool):
        self._name, self._model = name, model
        self._watch, self._notes = watch, notes
        self._wants_logprobs = wants_logprobs
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text has not gone out

    def line(self, text: str, **more: object) -> Chunk:
        """A line with a part of the answer."""
        return {"model": self._name, "created_at": timestamp(), **self._said(text), "done": False, **more}

    def last(self, reason: str, **more: object) -> Chunk:
        """The line that ends an answer, and all of one that has no text."""
        return self.line("", done=True, done_reason=reason, **more)

    def opening(self) -> Iterable[Chunk]:
        return ()

    def chunks(self, piece: Piece) -> Iterable[Chunk]:
        if self._wants_logprobs:
            self._logprobs += [token_logprob(self._model, token).model_dump() for token in piece.tokens]
        for line in self._read(piece.text):
            yield line | self._taken_logprobs()
        if piece.completion is not None:
            yield self.last(piece.completion.finish_reason, **self._sums(piece.completion)) | self._taken_logprobs()

    def closing(self) -> Iterable[Chunk]:
        return ()

    def whole(self, completion: Completion) -> Chunk:
        """The answer that is not streamed."""
        return joined(list(self.chunks(Piece(0, completion.text, completion, completion.logprobs or ()))))

    def _said(self, text: str) -> Chunk:
        return {"response": text}

    def _read(self, text: str) -> Iterable[Chunk]:
        if text:
            yield self.line(text)

    def _taken_logprobs(self) -> Chunk:
        taken, self._logprobs = self._logprobs, []
        return {"logprobs": taken} if taken else {}

    def _sums(self, completion: Completion) -> Chunk:
        used = usage([completion], 1)
        note_usage(self._notes, used)
        times = completion.timings
        computed = completion.usage.prompt_tokens - completion.usage.cached_tokens
        prefill_s = computed / times.prefill_tokens_per_s if times.prefill_tokens_per_s else 0.0
        return {
            **self._watch.durations(),
            "prompt_eval_count": used.prompt_tokens,
            "prompt_eval_duration": nanoseconds(prefill_s),
            "eval_count": used.completion_tokens,
            "eval_duration": nanoseconds(max(0.0, times.total_s - times.first_token_s)),
        }


class GenerateLines(Lines):
    """Lines of /api/generate. `prompt_ids` and the answer's ids are the context to go on with (None: there is none)."""

    prompt_ids: Sequence[int] | None = None

    def _sums(self, completion: Completion) -> Chunk:
        context = {} if self.prompt_ids is None else {"context": [*self.prompt_ids, *completion.ids]}
        return {**context, **super()._sums(completion)}


class ChatLines(Lines):
    """Lines of /api/chat. A call of a function is one line; one that the answer's end cuts off is left out."""

    def __init__(self, *arguments: Any, has_functions: bool) -> None:
        super().__init__(*arguments)
        self._reader = tools.CallReader() if has_functions else None
        self._written = 0  # calls that have gone out

    def _said(self, text: str) -> Chunk:
        return {"message": {"role": "assistant", "content": text}}

    def _read(self, text: str) -> Iterable[Chunk]:
        if self._reader is None:
            yield from super()._read(text)
            return
        own = "".join(said.text for said in self._reader.push(text) if said.call is None)
        yield from super()._read(own)
        for call in self._reader.calls[self._written :]:
            arguments = _object(call.arguments)
            if arguments is not None:
                self._written += 1
                yield self._call(call, arguments)

    def _call(self, call: tools.Call, arguments: dict[str, Any]) -> Chunk:
        function = {"index": call.number, "name": call.name, "arguments": arguments}
        line = self.line("")
        line["message"]["tool_calls"] = [{"id": call.id, "function": function}]
        return line


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object; None while its end is missing."""
    if not text.endswith("}"):
        return None
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return found


def joined(lines: Sequence[Chunk]) -> Chunk:
    """The whole answer that its lines add up to."""
    whole = dict(lines[-1])
    logprobs = [logprob for line in lines for logprob in line.get("logprobs", ())]
    if logprobs:
        whole["logprobs"] = logprobs
    if "message" not in whole:
        return whole | {"response": "".join(line["response"] for line in lines)}
    messages = [line["message"] for line in lines]
    whole["message"] = {"role": "assistant", "content": "".join(message["content"] for message in messages)}
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    if calls:
        whole["message"]["tool_calls"] = calls
    return whole
