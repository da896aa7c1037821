"""/v1/responses: items in, items out; what a chat completion is, in the form of OpenAI's newer route.

A request becomes a ChatRequest, so that prompts, functions and forms of answers are those of /v1/chat/completions.
Nothing is kept between requests: a conversation is sent as a whole, and fields that would need memory are refused.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from starlette.responses import Response

from minicpm.engine.request import Completion, Piece
from minicpm.errors import one_line
from minicpm.sampling import MAX_LOGPROBS, SampledToken
from minicpm.server import requests, tools
from minicpm.server.answers import Serving, unless_client_leaves
from minicpm.server.chat import chat_questions
from minicpm.server.errors import APIError
from minicpm.server.events import Chunk, EventStream, Framing, encoded, sent_event_ping
from minicpm.server.generation import note_ignored, note_usage, token_logprob, usage
from minicpm.server.model import ServedModel
from minicpm.server.openapi import ERRORS, STREAMS
from minicpm.server.requests import MAX_TOOLS, Body, Ignored, Open

Status = Literal["in_progress", "completed", "incomplete", "failed"]


# --- Requests ------------------------------------------------------------------------------------------------


class Sent(BaseModel):
    """An input item. Clients send back earlier output with extra fields, which are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class ContentPart(Sent):
    type: Literal["input_text", "output_text", "text", "refusal", "input_image", "input_file", "input_audio"]
    text: str | None = None
    refusal: str | None = None


class InputMessage(Sent):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]


class FunctionCall(Sent):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = Field(description="a JSON object, as text")


class FunctionCallOutput(Sent):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]


class Reasoning(Sent):
    """The reasoning of an earlier answer; it is not put into the prompt."""

    type: Literal["reasoning"]


def _kind_of_item(item: object) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(_kind_of_item),
]


class FunctionTool(requests.Function):
    type: Literal["function"]


class NamedFunction(Open):
    type: Literal["function"]
    name: str


class JSONSchemaFormat(requests.JSONSchema):
    type: Literal["json_schema"]


class TextOptions(Open):
    format: (
        Annotated[requests.TextFormat | requests.JSONFormat | JSONSchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: Ignored = None


class ResponseRequest(Body):
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    temperature: float | None = None
    text: TextOptions | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    top_p: float | None = None
    # ours, by vLLM's names
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    top_k: int | None = None
    # without effect, or with the only value that this server can fulfil
    background: Literal[False] | None = None
    conversation: None = None
    max_tool_calls: Ignored = None
    previous_response_id: None = None
    prompt: None = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    stream_options: Ignored = None
    truncation: Literal["disabled"] | None = None
    user: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _needs_no_memory(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            for name in ("previous_response_id", "conversation", "prompt"):
                if raw.get(name) is not None:
                    raise APIError(
                        400,
                        f"{name}: this server keeps nothing between requests; send the whole conversation as input",
                        param=name,
                        code="invalid_value",
                    )
        return raw

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or ())


def chat_request(body: ResponseRequest) -> requests.ChatRequest:
    """The equivalent request to /v1/chat/completions. Raises APIError if there is none."""
    wanted: Any = body.text.format if body.text is not None else None
    if isinstance(wanted, JSONSchemaFormat):
        schema = requests.JSONSchema(**wanted.model_dump(by_alias=True, exclude={"type"}))
        wanted = requests.JSONSchemaFormat(type="json_schema", json_schema=schema)
    choice: Any = body.tool_choice
    if isinstance(choice, NamedFunction):
        choice = {"type": "function", "function": {"name": choice.name}}
    offered = [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in body.tools or ()]
    given: dict[str, Any] = {
        "messages": messages_of(body),
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": body.wants_logprobs,
        "top_logprobs": (body.top_logprobs or 0) if body.wants_logprobs else None,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "response_format": wanted,
        "tool_choice": choice if offered or choice != "auto" else None,
        "tools": offered or None,
    }
    same = ("model", "temperature", "top_p", "min_p", "repetition_penalty", "seed", "top_k")
    try:
        return requests.ChatRequest(**given, **{name: getattr(body, name) for name in same})
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ").replace("response_format", "text.format")
        raise APIError(400, one_line(message, 300), code="invalid_value") from None


def messages_of(body: ResponseRequest) -> list[requests.Message]:
    """The messages that instructions and items are: an answer and its calls are one message of the assistant."""
    found: list[requests.Message] = []
    if body.instructions:
        found.append(requests.SystemMessage(role="system", content=body.instructions))
    items = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    for number, item in enumerate(items):
        last = found[-1] if found else None
        if isinstance(item, InputMessage):
            text = _text(item.content, f"input[{number}].content")
            if item.role == "user":
                found.append(requests.UserMessage(role="user", content=text))
            elif item.role == "assistant":
                found.append(requests.AssistantMessage(role="assistant", content=text))
            elif len(found) == 1 and isinstance(last, requests.SystemMessage):
                found[0] = requests.SystemMessage(role="system", content=f"{last.content}\n\n{text}")
            else:
                found.append(requests.SystemMessage(role="system", content=text))
        elif isinstance(item, FunctionCall):
            called = requests.CalledFunction(name=item.name, arguments=item.arguments)
            call = requests.ToolCall(id=item.call_id, type="function", function=called)
            if not isinstance(last, requests.AssistantMessage):
                last = requests.AssistantMessage(role="assistant", content="")
                found.append(last)
            last.tool_calls = [*(last.tool_calls or ()), call]
        elif isinstance(item, FunctionCallOutput):
            result = _text(item.output, f"input[{number}].output")
            found.append(requests.ToolMessage(role="tool", content=result, tool_call_id=item.call_id))
    if not any(not isinstance(message, requests.SystemMessage) for message in found):
        raise APIError(400, "input has no message to answer", param="input", code="invalid_value")
    return found


def _text(content: str | Sequence[ContentPart], where: str) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.text is None and part.refusal is None:
            message = f"{where} has an {part.type} without text, and this model reads text only"
            raise APIError(400, message, param=where, code="unsupported_content")
    return "\n".join(part.text if part.text is not None else str(part.refusal) for part in content)


# --- Answers -------------------------------------------------------------------------------------------------


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    status: Status = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


class CachedTokens(BaseModel):
    cached_tokens: int


class ReasoningTokens(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseObject(BaseModel):
    """OpenAI's object; `seed` is ours and gives the same answer again."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: Literal[False] = False
    error: dict[str, str] | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, None] = {"effort": None, "summary": None}
    seed: int
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: Any = None


@dataclass
class Writing:
    """An answer as it is written: the response so far, and the events of what a piece adds.

    An answer that is not streamed is one piece whose events are discarded: both have the same content.
    """

    response: ResponseObject
    model: ServedModel
    reader: tools.CallReader | None  # None where no function was offered
    notes: dict[str, str]
    _count: int = field(default=0, init=False)

    def opening(self) -> Iterable[Chunk]:
        yield self._event("response.created", response=self.response.model_dump())
        yield self._event("response.in_progress", response=self.response.model_dump())

    def chunks(self, piece: Piece) -> Iterable[Chunk]:
        logprobs = [_logprob(self.model, token) for token in piece.tokens if token.logprob is not None]
        if self.reader is not None:
            for said in self.reader.push(piece.text):
                yield from self._text(said.text, logprobs) if said.call is None else self._call(said.text, said.call)
        elif piece.text or logprobs:
            yield from self._text(piece.text, logprobs)
        if piece.completion is not None:
            yield from self._finish(piece.completion)

    def closing(self) -> Iterable[Chunk]:
        yield self._event(f"response.{self.response.status}", response=self.response.model_dump())

    def failing(self, error: APIError) -> Iterable[Chunk]:
        code = error.code or error.kind
        yield self._event("error", code=code, message=str(error), param=error.param)
        self.response.status, self.response.error = "failed", {"code": code, "message": str(error)}
        yield self._event("response.failed", response=self.response.model_dump())

    def _finish(self, completion: Completion) -> Iterable[Chunk]:
        is_whole = completion.finish_reason == "stop"
        if not self.response.output:
            yield from self._text("", [])
        yield from self._close("completed" if is_whole else "incomplete")
        self.response.status = "completed" if is_whole else "incomplete"
        self.response.incomplete_details = None if is_whole else {"reason": "max_output_tokens"}
        used = usage([completion], 1)
        note_usage(self.notes, used)
        self.response.usage = ResponseUsage(
            input_tokens=used.prompt_tokens,
            input_tokens_details=CachedTokens(cached_tokens=used.prompt_tokens_details.cached_tokens),
            output_tokens=used.completion_tokens,
            output_tokens_details=ReasoningTokens(),
            total_tokens=used.total_tokens,
        )

    def _text(self, text: str, logprobs: list[Chunk]) -> Iterable[Chunk]:
        item = self._open_item
        if not isinstance(item, OutputMessage):
            yield from self._close("completed")
            item = OutputMessage(id=_new_id("msg"))
            yield from self._add(item)
            item.content = [OutputText()]
            yield self._of_item("response.content_part.added", item, content_index=0, part=OutputText().model_dump())
        (part,) = item.content
        part.text += text
        part.logprobs = [*part.logprobs, *logprobs]
        if text or logprobs:
            yield self._of_item("response.output_text.delta", item, content_index=0, delta=text, logprobs=logprobs)

    def _call(self, arguments: str, call: tools.Call) -> Iterable[Chunk]:
        item = self._open_item
        if not isinstance(item, OutputCall) or item.call_id != call.id:
            yield from self._close("completed")
            item = OutputCall(id=_new_id("fc"), call_id=call.id, name=call.name)
            yield from self._add(item)
        item.arguments += arguments
        if arguments:
            yield self._of_item("response.function_call_arguments.delta", item, delta=arguments)

    @property
    def _open_item(self) -> OutputMessage | OutputCall | None:
        last = self.response.output[-1] if self.response.output else None
        return last if last is not None and last.status == "in_progress" else None

    def _add(self, item: OutputMessage | OutputCall) -> Iterable[Chunk]:
        self.response.output.append(item)
        place = {"output_index": len(self.response.output) - 1}
        yield self._event("response.output_item.added", **place, item=item.model_dump())

    def _close(self, status: Status) -> Iterable[Chunk]:
        item = self._open_item
        if item is None:
            return
        if isinstance(item, OutputMessage):
            (part,) = item.content
            yield self._of_item(
                "response.output_text.done", item, content_index=0, text=part.text, logprobs=part.logprobs
            )
            yield self._of_item("response.content_part.done", item, content_index=0, part=part.model_dump())
        else:
            yield self._of_item("response.function_call_arguments.done", item, name=item.name, arguments=item.arguments)
        item.status = status
        place = {"output_index": len(self.response.output) - 1}
        yield self._event("response.output_item.done", **place, item=item.model_dump())

    def _event(self, kind: str, **fields: Any) -> Chunk:
        event = {"type": kind, "sequence_number": self._count, **fields}
        self._count += 1
        return event

    def _of_item(self, kind: str, item: OutputMessage | OutputCall, **fields: Any) -> Chunk:
        return self._event(kind, item_id=item.id, output_index=len(self.response.output) - 1, **fields)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _logprob(model: ServedModel, token: SampledToken) -> Chunk:
    return token_logprob(model, token).model_dump()


# --- The route -----------------------------------------------------------------------------------------------


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/responses", response_model=ResponseObject, responses=STREAMS)
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        """Answer items with items."""
        model = serving.model
        notes: dict[str, str] = request.scope["state"]["notes"]
        note_ignored(notes, body)
        name = model.check_name(body.model)
        asked = chat_request(body)
        (question,), has_functions = await chat_questions(model, asked, notes, "input")
        params = question.params
        assert params.seed is not None
        response = ResponseObject(
            id=_new_id("resp"),
            created_at=int(time.time()),
            status="in_progress",
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=name,
            output=[],
            parallel_tool_calls=asked.parallel_tool_calls,
            seed=params.seed,
            temperature=params.temperature,
            text=_text_options(body),
            tool_choice=body.tool_choice.model_dump()
            if isinstance(body.tool_choice, NamedFunction)
            else (body.tool_choice or "auto"),
            tools=[tool.model_dump() for tool in body.tools or ()],
            top_logprobs=body.top_logprobs or 0,
            top_p=params.top_p,
            user=body.user,
        )
        writing = Writing(response, model, tools.CallReader() if has_functions else None, notes)
        async with AsyncExitStack() as stack:
            answers = await stack.enter_async_context(serving.answers([question]))
            if body.stream:
                # Each event has its type as its name, and the last one ends the stream.
                framing = Framing("text/event-stream", _named, sent_event_ping, b"", writing.failing)
                return EventStream(stack.pop_all(), answers, writing, serving.settings.ping_s, framing)
            (completion,) = await unless_client_leaves(request, answers.completions())
        for _ in writing.chunks(Piece(0, completion.text, completion, completion.logprobs or ())):
            pass
        return Response(response.model_dump_json(), media_type="application/json")

    @routes.get("/v1/responses/{response_id}", responses=ERRORS)
    async def retrieve_response(response_id: str) -> None:
        """Always 404: nothing is kept."""
        raise APIError(404, "this server keeps no responses; ask again with the whole input", code="not_found")

    return routes


def _text_options(body: ResponseRequest) -> dict[str, Any]:
    wanted = body.text.format if body.text is not None else None
    shown = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True)
    return {"format": shown, "verbosity": "medium"}


def _named(event: Chunk) -> bytes:
    return f"event: {event['type']}\ndata: {encoded(event)}\n\n".encode()
