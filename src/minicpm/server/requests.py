"""What a client may send: one class a route. Unknown fields are refused, so that no option is ignored in silence.

Ranges of sampling options are SamplingParams' to check. Fields marked `ignored` are OpenAI's and change nothing here;
those that ask for what this server cannot do are refused (errors.py says what to do instead).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from minicpm.sampling import MAX_LOGPROBS

MAX_CHOICES = 16
MAX_PROMPTS = 128
MAX_EMBEDDINGS = 2048
MAX_TOOLS = 128

Ignored = Annotated[Any, Field(description="accepted, without effect")]
TokenIds = Annotated[list[int], Field(min_length=1)]
Texts = str | list[str] | TokenIds | list[TokenIds]


class Body(BaseModel):
    """Types as they are written: "1" is no number, 1 is no truth value."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: str | None = Field(None, description="a name of /v1/models; left out: the model that is served")


# --- Messages ------------------------------------------------------------------------------------------------


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(Part):
    type: Literal["text"]
    text: str


class ImageURL(Part):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Part):
    type: Literal["image_url"]
    image_url: ImageURL


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Part):
    name: str
    arguments: str = Field(description="a JSON object, as text")


class ToolCall(Part):
    id: str
    type: Literal["function"]
    function: CalledFunction


class SystemMessage(Part):
    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: Ignored = None


class UserMessage(Part):
    role: Literal["user"]
    content: str | list[ContentPart]
    name: Ignored = None


class AssistantMessage(Part):
    """Also what the server answered, sent back as it is."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    name: Ignored = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(Part):
    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str
    name: Ignored = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


# --- Functions and structure ---------------------------------------------------------------------------------


class Function(Part):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema; left out: no arguments")
    strict: Ignored = None  # arguments always follow the schema


class Tool(Part):
    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    name: str


class NamedTool(Part):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Part):
    type: Literal["text"]


class JSONFormat(Part):
    type: Literal["json_object"]


class JSONSchema(Part):
    model_config = ConfigDict(strict=True, extra="forbid", serialize_by_alias=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: Ignored = None  # answers always follow the schema


class JSONSchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: JSONSchema


ResponseFormat = Annotated[TextFormat | JSONFormat | JSONSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Part):
    """What an answer must look like, by vLLM's names: exactly one of the fields."""

    json_: dict[str, Any] | None = Field(None, alias="json", description="a JSON schema")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    grammar: str | None = Field(None, description="in llguidance's form of Lark")

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1 or not any(
            getattr(self, name) is not None for name in self.model_fields_set
        ):
            raise ValueError("give exactly one of json, json_object, regex, choice, grammar")
        return self


class StreamOptions(Part):
    include_usage: bool = False
    include_obfuscation: Ignored = None


# --- Routes --------------------------------------------------------------------------------------------------


class Generation(Body):
    """What /v1/chat/completions and /v1/completions have in common."""

    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
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
    user: Ignored = None

    @model_validator(mode="after")
    def _streams_where_options_say(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError('stream_options are for requests with "stream": true')
        return self


class ChatRequest(Generation):
    messages: list[Message] = Field(min_length=1)
    logprobs: bool = False
    max_completion_tokens: int | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    metadata: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning_effort: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    verbosity: Ignored = None

    @model_validator(mode="after")
    def _is_consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError('top_logprobs needs "logprobs": true')
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens say two things; give one of them")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice needs tools")
        structures = [self.response_format if not isinstance(self.response_format, TextFormat) else None]
        structures.append(self.structured_outputs)  # type: ignore[arg-type]
        asked = sum(structure is not None for structure in structures)
        if asked > 1:
            raise ValueError("response_format and structured_outputs say two things; give one of them")
        if asked and self.tools and self.tool_choice != "none":
            raise ValueError('an answer cannot follow both tools and a response format; set tool_choice to "none"')
        return self


class CompletionRequest(Generation):
    prompt: Texts
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _is_possible(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of other than n is not there; ask for n answers and choose")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 leaves nothing to say without echo; give 1 or more")
        return self


class EmbeddingRequest(Body):
    input: Texts
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: Ignored = None


class TokenizeRequest(Body):
    """Of a text, or of the prompt that a conversation becomes."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    tokens: list[int]
