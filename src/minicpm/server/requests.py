"""The requests of clients: one class per route.

An option is never ignored in silence: an unknown one is refused, and so is one that this server cannot fulfil
(errors.py says what to do instead). Ranges of sampling options are SamplingParams' to check. Fields marked `Ignored`
are OpenAI's and change nothing here. Fields marked `Foreign`, and what stands in messages and functions beside the
fields of OpenAI's, are of other programs; they change nothing either, and the log names them (`ignored_fields`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from minicpm.sampling import MAX_LOGPROBS

MAX_CHOICES = 16
MAX_PROMPTS = 128
MAX_EMBEDDINGS = 2048
MAX_TOOLS = 128

_FOREIGN = "of other programs: accepted, without effect, and named in the log"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_MOST_NAMES = 8

Ignored = Annotated[Any, Field(description="accepted, without effect")]
Foreign = Annotated[Any, Field(description=_FOREIGN)]
TokenIds = Annotated[list[int], Field(min_length=1)]
Texts = str | list[str] | TokenIds | list[TokenIds]


def _or_no_limit(value: object) -> object:
    return None if type(value) is int and value == -1 else value


# -1 is what llama.cpp's and LM Studio's clients write for no limit.
Limit = Annotated[int | None, BeforeValidator(_or_no_limit)]


def _contradiction(param: str, sentence: str) -> PydanticCustomError:
    """The error of fields that do not go together; `param` is the one to change."""
    return PydanticCustomError("contradiction", "{sentence}", {"sentence": sentence, "param": param})


class Fields(BaseModel):
    """An object of JSON. Types as they are written: "1" is no number, 1 is no truth value.

    Null is the same as leaving an optional field out: clients of typed languages send every field they know.
    """

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=(), serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        optional = {field.alias or name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in given.items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Mark every optional field as nullable in /openapi.json."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        for name, field in schema.get("properties", {}).items():
            if name not in schema.get("required", ()):
                schema["properties"][name] = _nullable(field)
        return reference


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    about: JsonSchemaValue = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    allowed = {key: value for key, value in schema.items() if key not in about}
    null = {"type": "null"}
    if not allowed or allowed == null or null in allowed.get("anyOf", ()):
        return schema
    return {"anyOf": [allowed, null], **about}


class Body(Fields):
    """The fields of every route."""

    model: str | None = Field(None, description="a name of /v1/models; left out: the model that is served")


class Open(Fields):
    """An object whose unknown fields are ignored: answers of clients and servers come back with fields of theirs."""

    model_config = ConfigDict(extra="allow")


def ignored_fields(body: BaseModel) -> list[str]:
    """Names of the fields of other programs that `body` has, such as 'messages.cache_control', for the log."""
    names = dict.fromkeys(".".join(path) for path in _ignored(body))
    shown = [name if _NAME.fullmatch(name) else "?" for name in names]
    return [*shown[:_MOST_NAMES], *(["..."] if len(shown) > _MOST_NAMES else [])]


def _ignored(value: object) -> Iterator[tuple[str, ...]]:
    if isinstance(value, list):
        for item in value:
            yield from _ignored(item)
    elif isinstance(value, BaseModel):
        for name in value.model_extra or ():
            yield (name,)
        for name in value.model_fields_set & type(value).model_fields.keys():
            if type(value).model_fields[name].description == _FOREIGN:
                yield (name,)
            for path in _ignored(getattr(value, name)):
                yield (name, *path)


# --- Messages ------------------------------------------------------------------------------------------------


class TextPart(Open):
    type: Literal["text"]
    text: str


class RefusalPart(Open):
    type: Literal["refusal"]
    refusal: str


class ImageURL(Open):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Open):
    type: Literal["image_url"]
    image_url: ImageURL


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
AnswerPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class CalledFunction(Open):
    name: str
    arguments: str | dict[str, Any] = Field("", description="a JSON object, as text or as it is")


class ToolCall(Open):
    """Also what a client has joined of a stream's deltas."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(Open):
    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: Ignored = None


class UserMessage(Open):
    role: Literal["user"]
    content: str | list[ContentPart]
    name: Ignored = None


class AssistantMessage(Open):
    """Also what the server answered, sent back as it is or as a client's own object of it."""

    role: Literal["assistant"]
    content: str | list[AnswerPart] | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = Field(default=None, description="the older form of tool_calls")
    refusal: str | None = Field(default=None, description="read where there is no content")
    name: Ignored = None
    audio: Ignored = None
    annotations: Ignored = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and self.refusal is None and not self.tool_calls and self.function_call is None:
            raise _contradiction("", "an assistant message needs content or tool_calls, and this one has neither")
        return self


class ToolMessage(Open):
    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str
    name: Ignored = None


class FunctionMessage(Open):
    """The older form of a tool's message."""

    role: Literal["function"]
    content: str | None = None
    name: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")
]


# --- Functions and structure ---------------------------------------------------------------------------------


class Function(Open):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema; left out: no arguments")
    strict: bool | None = Field(None, description="refuse a schema of which a keyword cannot be followed")


class Tool(Open):
    type: Literal["function"]
    function: Function


class NamedFunction(Open):
    name: str


class NamedTool(Open):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Open):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(Open):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]


class TextFormat(Open):
    type: Literal["text"]


class JSONFormat(Open):
    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="a JSON schema, as llama.cpp takes it")


class JSONSchema(Open):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: Ignored = None  # answers always follow the schema


class JSONSchemaFormat(Open):
    type: Literal["json_schema"]
    json_schema: JSONSchema


ResponseFormat = Annotated[TextFormat | JSONFormat | JSONSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Fields):
    """The required form of an answer, by vLLM's names: exactly one of the fields."""

    json_: dict[str, Any] | None = Field(None, alias="json", description="a JSON schema")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    grammar: str | None = Field(None, description="in llguidance's form of Lark")

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        given = [name.rstrip("_") for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise _contradiction("", f"give exactly one of json, json_object, regex, choice, grammar; got {found}")
        return self


class StreamOptions(Open):
    include_usage: bool = False
    include_obfuscation: Ignored = None


# --- Routes --------------------------------------------------------------------------------------------------


class Generation(Body):
    """The common fields of /v1/chat/completions and /v1/completions."""

    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: Limit = Field(None, description="left out, or -1: no limit but the context")
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    presence_penalty: float | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    # ours, by vLLM's names
    ignore_eos: bool = False
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputs | None = None
    top_k: int | None = None
    # OpenAI's, for their own servers
    metadata: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning_effort: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None
    verbosity: Ignored = None
    # of clients of other servers: what they ask for either does not exist here or is done in any case
    cache_prompt: Foreign = None
    cache_salt: Foreign = None
    chat_id: Foreign = None
    chat_template_kwargs: Foreign = None
    enable_thinking: Foreign = None
    id_slot: Foreign = None
    include_reasoning: Foreign = None
    keep_alive: Foreign = None
    num_ctx: Foreign = None
    priority: Foreign = None
    provider: Foreign = None
    reasoning: Foreign = None
    reasoning_format: Foreign = None
    request_id: Foreign = None
    route: Foreign = None
    session_id: Foreign = None
    thinking: Foreign = None
    thinking_budget: Foreign = None
    timings_per_token: Foreign = None
    transforms: Foreign = None
    ttl: Foreign = None
    usage: Foreign = None

    @model_validator(mode="after")
    def _streams_where_options_say(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise _contradiction(
                "stream_options",
                'stream_options needs "stream": true, since it is about events; leave stream_options out or set stream',
            )
        return self


class ChatRequest(Generation):
    messages: list[Message] = Field(min_length=1)
    logprobs: bool = False
    max_completion_tokens: Limit = Field(None, description="the newer name of max_tokens")
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    web_search_options: None = None

    @property
    def needs_call(self) -> bool:
        """Whether the answer must be a call."""
        if isinstance(self.tool_choice, AllowedToolsChoice):
            return self.tool_choice.allowed_tools.mode == "required"
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def called_names(self) -> list[str] | None:
        """Names of the only functions that tool_choice lets an answer call; None: all."""
        if isinstance(self.tool_choice, NamedTool):
            return [self.tool_choice.function.name]
        if isinstance(self.tool_choice, AllowedToolsChoice):
            return [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
        return None

    @model_validator(mode="after")
    def _is_consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise _contradiction(
                "top_logprobs", 'top_logprobs needs "logprobs": true; leave top_logprobs out or set logprobs'
            )
        limits = self.max_tokens, self.max_completion_tokens
        if None not in limits and limits[0] != limits[1]:
            raise _contradiction(
                "max_completion_tokens",
                f"max_tokens is {limits[0]} and max_completion_tokens is {limits[1]}, but both are the longest answer; "
                "give one of them",
            )
        if self.tool_choice not in (None, "none") and not self.tools:
            raise _contradiction(
                "tool_choice", "tool_choice needs tools, from which it chooses; give tools or leave tool_choice out"
            )
        if isinstance(self.response_format, TextFormat | None):
            form = None if self.structured_outputs is None else "structured_outputs"
        elif self.structured_outputs is None:
            form = "response_format"
        else:
            raise _contradiction(
                "structured_outputs",
                "response_format and structured_outputs both say what the answer looks like; give one of them",
            )
        if form and self.tools and self.tool_choice != "none":
            raise _contradiction(
                form,
                f"{form} and tools contradict each other, since an answer has one form; leave one of them out, or set "
                'tool_choice to "none"',
            )
        return self


class CompletionRequest(Generation):
    prompt: Texts | None = Field(description="null: a text from its very beginning")
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _is_possible(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise _contradiction(
                "best_of",
                f"best_of is {self.best_of} and n is {self.n}, but this server does not choose between answers; leave "
                "best_of out, ask for n answers and choose",
            )
        if self.max_tokens == 0 and not self.echo:
            raise _contradiction(
                "max_tokens", 'max_tokens 0 needs "echo": true, since nothing else would come; give 1 or more'
            )
        return self


class EmbeddingRequest(Body):
    input: Texts
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: Ignored = None
    input_type: Foreign = None
    keep_alive: Foreign = None


class TokenizeRequest(Body):
    """The text to tokenize, or messages whose rendered prompt is tokenized."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_generation_prompt: bool | None = Field(None, description="of messages: let an answer begin; default true")
    add_special_tokens: bool = True
    continue_final_message: bool = Field(False, description="of messages: leave the last one open")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> TokenizeRequest:
        if self.prompt is not None and self.messages is not None:
            raise _contradiction("prompt", "prompt and messages are both there, but one text is encoded; give one")
        if self.prompt is None and self.messages is None:
            raise _contradiction("prompt", "prompt or messages is missing; give one of them")
        if self.continue_final_message and self.messages is None:
            raise _contradiction(
                "continue_final_message", "continue_final_message needs messages, and there is a prompt; leave it out"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise _contradiction(
                "add_generation_prompt",
                "add_generation_prompt begins an answer and continue_final_message goes on with the last message; set "
                "one of them",
            )
        return self


class DetokenizeRequest(Body):
    tokens: list[int]
