"""The requests of Ollama's clients, and their fields' names in OpenAI's requests.

Ollama ignores what it does not know. Here, too, but the access log names every field and option that has no effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from minicpm.sampling import MAX_LOGPROBS
from minicpm.server.errors import APIError
from minicpm.server.model import ServedModel
from minicpm.server.requests import MAX_TOOLS, ChatRequest, CompletionRequest

R = TypeVar("R", ChatRequest, CompletionRequest)

# Options of the machine, of the memory or of features that are not here; with these values they change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
    "penalize_newline": (False,),
}
_NAME = re.compile(r"((options|messages)\.)?[A-Za-z_][A-Za-z0-9_]{0,39}")
_DURATION = re.compile(r"[+-]?(\d+(\.\d*)?|((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)")


def _whole(value: object) -> object:
    """40.0 is a whole number, too: to many languages a number of JSON has no other form."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class _Lenient(BaseModel):
    """Types as they are written; fields that are not here are kept, to be named."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Options(_Lenient):
    """Ollama's options that have an effect; a missing one has the model's own default."""

    num_predict: Whole | None = Field(None, description="0 or less: until the context is full")
    temperature: float | None = None
    top_k: Whole | None = Field(None, description="0 or less: off")
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Whole | None = Field(None, description="0: no penalties; otherwise they see the whole text")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Whole | None = Field(None, ge=-(1 << 63), lt=1 << 64, description="-1: a random one")
    stop: str | list[str] | None = None
    num_ctx: Whole | None = Field(None, description="without effect: the context is set when the server starts")


class _Body(_Lenient):
    model: str | None = Field(None, description="a name of /api/tags, with or without :latest")
    options: Options | None = None
    keep_alive: float | str | None = Field(None, description="without effect: the model stays loaded")

    @field_validator("keep_alive")
    @classmethod
    def _is_duration(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, str) and not _DURATION.fullmatch(value):
            raise ValueError('a time is written like "5m", "1h30m" or "-1", or is a number of seconds')
        return value

    @property
    def given(self) -> Options:
        """The options, which may be none."""
        return self.options or Options.model_validate({})

    @property
    def unloads(self) -> bool:
        """Whether the model is to be unloaded at once."""
        if isinstance(self.keep_alive, str):
            return not any(digit in "123456789" for digit in self.keep_alive)
        return self.keep_alive == 0

    def without_effect(self, model: ServedModel) -> list[str]:
        """The fields and options that were given and change nothing here."""
        names = [name for name, value in (self.model_extra or {}).items() if value is not None]
        if self.keep_alive is not None and not (isinstance(self.keep_alive, float) and self.keep_alive < 0):
            names.append("keep_alive")
        options = self.given
        for name, value in (options.model_extra or {}).items():
            if value is not None and value not in _NEUTRAL.get(name, ()):
                names.append(f"options.{name}")
        if options.num_ctx not in (None, model.context_length):
            names.append("options.num_ctx")
        if options.repeat_last_n not in (None, -1, 0):
            names.append("options.repeat_last_n")
        return names


class Generation(_Body):
    """The common fields of /api/chat and /api/generate."""

    stream: bool | None = Field(None, description="left out: true")
    format: str | dict[str, Any] | None = Field(None, description='"json" or a JSON schema')
    think: bool | str | None = Field(None, description="no MiniCPM of 2024 thinks aloud: false")
    truncate: bool | None = Field(None, description="left out: true; the oldest messages are left out where need be")
    shift: bool | None = Field(None, description="without effect: an answer ends where the context is full")
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @field_validator("format")
    @classmethod
    def _is_form(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if isinstance(value, str) and value not in ("", "json"):
            raise ValueError('expected "json" or a JSON schema object')
        return value

    @field_validator("think")
    @classmethod
    def _is_level(cls, value: bool | str | None) -> bool | str | None:
        if isinstance(value, str) and value not in ("low", "medium", "high", "max"):
            raise ValueError('expected true, false, "low", "medium", "high" or "max"')
        return value

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def is_unlimited(self) -> bool:
        """Whether an answer may fill the context, even where the model has a limit of its own."""
        return self.given.num_predict is not None and self.given.num_predict <= 0

    def check_thinking(self) -> None:
        """400 for a request to think."""
        if self.think:
            raise APIError(400, f"{json.dumps(self.model)} does not support thinking; leave 'think' out", param="think")

    def without_effect(self, model: ServedModel) -> list[str]:
        names = super().without_effect(model)
        if self.shift:
            names.append("shift")
        if self.top_logprobs and not self.logprobs:
            names.append("top_logprobs")
        return names

    def fields(self) -> dict[str, Any]:
        """The sampling options and the form of the answer, by their names in OpenAI's requests."""
        given = self.given
        seed = None if given.seed == -1 else given.seed
        fields: dict[str, Any] = {
            "max_tokens": given.num_predict if (given.num_predict or 0) > 0 else None,
            "temperature": given.temperature,
            "top_k": None if given.top_k is None else max(0, given.top_k),
            "top_p": given.top_p,
            "min_p": given.min_p,
            "repetition_penalty": given.repeat_penalty,
            "presence_penalty": given.presence_penalty,
            "frequency_penalty": given.frequency_penalty,
            "seed": seed,
            "stop": given.stop,
        }
        if given.repeat_last_n == 0:
            fields |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        if self.format == "json":
            fields["structured_outputs"] = {"json_object": True}
        elif isinstance(self.format, dict):
            fields["structured_outputs"] = {"json": self.format}
        return fields


class CalledFunction(_Lenient):
    name: str
    arguments: dict[str, Any] | None = None


class ToolCall(_Lenient):
    id: str | None = None
    function: CalledFunction


class Message(_Lenient):
    role: str
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    thinking: str | None = Field(None, description="of an earlier answer: left out of the prompt")

    @field_validator("role")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value.lower() not in ("system", "user", "assistant", "tool"):
            raise ValueError("expected system, user, assistant or tool")
        return value.lower()

    def translated(self) -> dict[str, Any]:
        """The message as OpenAI writes it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id or self.tool_name or ""
        elif self.role == "assistant" and self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id or f"call_{number}",
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": json.dumps(call.function.arguments or {}, ensure_ascii=False),
                    },
                }
                for number, call in enumerate(self.tool_calls)
            ]
        return message


class Function(_Lenient):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Lenient):
    type: str | None = None
    function: Function

    def translated(self) -> dict[str, Any]:
        """The tool as OpenAI writes it. Clients write what a schema leaves out as null."""
        given = {"name": self.function.name, "description": self.function.description or None}
        return {"type": "function", "function": {**given, "parameters": _without_nulls(self.function.parameters)}}


class OllamaChatRequest(Generation):
    messages: list[Message] | None = Field(None, description="none: the model is loaded, as it is already")
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None

    def without_effect(self, model: ServedModel) -> list[str]:
        names = super().without_effect(model)
        of_messages = {
            name
            for message in self.messages or ()
            for name, value in {**(message.model_extra or {}), "thinking": message.thinking}.items()
            if value not in (None, "")
        }
        return [*names, *(f"messages.{name}" for name in sorted(of_messages))]

    def check(self) -> None:
        """400 for what this server cannot do."""
        self.check_thinking()
        for number, message in enumerate(self.messages or ()):
            check_images(message.images, f"messages[{number}].images")
        if self.tools and self.format not in (None, ""):
            raise APIError(400, "an answer cannot follow both tools and format; leave one of them out", param="format")

    def translated(self, messages: Sequence[Message]) -> ChatRequest:
        """OpenAI's request for some of the messages. Raises RequestValidationError for what can never be one."""
        return _checked(
            ChatRequest,
            messages=[message.translated() for message in messages],
            tools=[tool.translated() for tool in self.tools or ()] or None,
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs if self.logprobs else None,
            **self.fields(),
        )


class OllamaGenerateRequest(Generation):
    prompt: str | None = Field(None, description="none: the model is loaded, as it is already")
    system: str | None = None
    raw: bool | None = Field(None, description="true: the prompt is continued as it is, without the model's template")
    context: list[Whole] | None = Field(None, description="what an earlier answer gave")
    suffix: str | None = Field(None, description="refused")
    template: str | None = Field(None, description="refused, unless it is the model's own")
    images: list[Any] | None = Field(None, description="refused")

    def without_effect(self, model: ServedModel) -> list[str]:
        names = super().without_effect(model)
        return [*names, "truncate"] if self.truncate else names

    def check(self, model: ServedModel) -> None:
        """400 for what this server cannot do."""
        self.check_thinking()
        check_images(self.images, "images")
        if self.suffix:
            raise APIError(
                400,
                f"{json.dumps(self.model)} does not support insert: MiniCPM was not trained to fill gaps; put all text "
                "into 'prompt'",
                param="suffix",
            )
        if self.raw and (self.template or self.system or self.context):
            raise APIError(400, "raw mode does not support template, system, or context", param="raw")
        if self.template and self.template != model.template.text:
            raise APIError(
                400,
                "template: this server renders the model's own template only; send the finished prompt with "
                '"raw": true',
                param="template",
            )

    def chat(self) -> ChatRequest:
        """The prompt as a conversation of one turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return _checked(
            ChatRequest,
            messages=[*system, {"role": "user", "content": self.prompt}],
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs if self.logprobs else None,
            **self.fields(),
        )

    def completion(self) -> CompletionRequest:
        """The raw prompt."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return _checked(CompletionRequest, prompt=self.prompt, logprobs=logprobs, **self.fields())


class OllamaEmbedRequest(_Body):
    input: str | list[str] | None = None
    truncate: bool | None = Field(None, description="left out: true; a text ends where the context is full")
    dimensions: Whole | None = Field(None, description="so many numbers of each vector, normalised again; 0: all")


class OllamaEmbeddingsRequest(_Body):
    prompt: str | None = None


class ShowRequest(_Lenient):
    model: str | None = None
    name: str | None = Field(None, description="the same, as older clients write it")
    verbose: bool | None = None


def check_images(images: Sequence[object] | None, where: str) -> None:
    """400 for an image."""
    if images:
        raise APIError(
            400, f"{where} has an image, and this model reads text only", param=where, code="unsupported_content"
        )


def loggable(names: Sequence[str]) -> str:
    """Names for the access log. What a client made up may be a part of a prompt, and is only counted."""
    known = [name for name in names if _NAME.fullmatch(name)][:20]
    return ",".join([*known, *([f"{len(names) - len(known)}_more"] if len(known) < len(names) else [])])


def _checked(kind: type[R], **fields: Any) -> R:
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return kind(**given)
    except ValidationError as error:
        raise RequestValidationError(error.errors(), body=given) from None


def _without_nulls(schema: Any) -> Any:
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if value is not None or key in ("const", "default")}
        return {key: _without_nulls(value) for key, value in kept.items()}
    if isinstance(schema, list):
        return [_without_nulls(item) for item in schema]
    return schema
