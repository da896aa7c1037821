"""/v1/chat/completions: a conversation, with or without functions, to an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from starlette.responses import Response

from minicpm.chat import Message
from minicpm.engine.constraint import Constraint
from minicpm.engine.request import Completion, Piece
from minicpm.server import requests, responses, tools
from minicpm.server.answers import Question, Serving, in_thread, unless_client_leaves
from minicpm.server.errors import APIError
from minicpm.server.events import Chunk, EventStream
from minicpm.server.generation import Head, note_ignored, note_usage, sampling_params, token_logprob, usage
from minicpm.server.model import ServedModel
from minicpm.server.openapi import STREAMS
from minicpm.server.requests import (
    AssistantMessage,
    ChatRequest,
    ContentPart,
    Function,
    FunctionMessage,
    ImagePart,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolMessage,
)
from minicpm.server.structure import constraint_of


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", response_model=responses.ChatCompletion, responses=STREAMS)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        model = serving.model
        notes: dict[str, str] = request.scope["state"]["notes"]
        note_ignored(notes, body)
        name = model.check_name(body.model)
        questions, has_functions = await chat_questions(model, body, notes)
        head = Head.new("chatcmpl", name, model, questions[0].params)
        async with AsyncExitStack() as stack:
            answers = await stack.enter_async_context(serving.answers(questions))
            if body.stream:
                writer = _ChatChunks(head, model, body, has_functions, notes)
                return EventStream(stack.pop_all(), answers, writer, serving.settings.ping_s)
            completions = await unless_client_leaves(request, answers.completions())
        used = usage(completions, body.n)
        note_usage(notes, used)
        choices = [_choice(model, index, c, has_functions) for index, c in enumerate(completions)]
        whole = responses.ChatCompletion(**head.fields(), choices=choices, usage=used)
        return Response(whole.model_dump_json(), media_type="application/json")

    return routes


async def chat_questions(
    model: ServedModel, body: ChatRequest, notes: dict[str, str], prompt_name: str = "messages"
) -> tuple[list[Question], bool]:
    """A question per choice of a conversation, and whether its answer may call functions.

    `notes` gets the keywords of schemas that are not followed. Raises APIError for what cannot be answered, which calls
    the conversation `prompt_name`.
    """
    functions = tools.offered(body)
    params = sampling_params(
        body,
        model,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    messages = conversation(body.messages)
    # Schemas are compiled, an untrusted template is rendered by another process, and a long text is encoded.
    prompt_ids, constraint = await in_thread(_prepare, model, messages, body, functions, notes)
    model.check_prompt(prompt_ids, prompt_name)
    questions = [Question(prompt_ids, params, True, choice, constraint) for choice in range(body.n)]
    return questions, bool(functions)


def _prepare(
    model: ServedModel,
    messages: Sequence[Message],
    body: ChatRequest,
    functions: Sequence[Function],
    notes: dict[str, str],
) -> tuple[list[int], Constraint | None]:
    constraint = constraint_of(body, functions, notes)
    return model.chat_ids(tools.with_functions(messages, functions)), constraint


# --- Messages ------------------------------------------------------------------------------------------------


def conversation(messages: Sequence[requests.Message]) -> list[Message]:
    """The turns that chat templates know: system, user, assistant. Results of functions that stand together are one."""
    turns: list[Message] = []
    results: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        if isinstance(message, ToolMessage | FunctionMessage):
            results.append(_text(message.content or "", where))
            continue
        if results:
            turns.append({"role": "user", "content": tools.result_text(results)})
            results = []
        if isinstance(message, AssistantMessage):
            turns.append({"role": "assistant", "content": _said(message, where)})
        else:
            role = "system" if isinstance(message, SystemMessage) else "user"
            turns.append({"role": role, "content": _text(message.content, where)})
    if results:
        turns.append({"role": "user", "content": tools.result_text(results)})
    return turns


def _said(message: AssistantMessage, where: str) -> str:
    """An earlier answer as the model wrote it, calls behind words."""
    content = message.refusal if message.content is None else message.content
    calls = [call.function for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append(message.function_call)
    return _text(content or "", where) + tools.call_text(calls)


def _text(content: str | Sequence[ContentPart | RefusalPart], where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if isinstance(part, ImagePart):
            raise APIError(
                400,
                f"{where} has an image, and this model reads text only",
                param=where,
                code="unsupported_content",
            )
        texts.append(part.text if isinstance(part, TextPart) else part.refusal)
    return "\n".join(texts)


# --- Answers -------------------------------------------------------------------------------------------------


def _choice(model: ServedModel, index: int, completion: Completion, has_functions: bool) -> responses.ChatChoice:
    text: str | None = completion.text
    calls: list[responses.ToolCall] = []
    if has_functions:
        reader = tools.CallReader()
        said = reader.push(completion.text)
        # A message without content must have calls, or it could not be sent back.
        text = "".join(part.text for part in said if part.call is None) or (None if reader.calls else "")
        calls = [_tool_call(call) for call in reader.calls]
    logprobs = None
    if completion.logprobs is not None:
        logprobs = responses.ChatLogprobs(content=[token_logprob(model, token) for token in completion.logprobs])
    return responses.ChatChoice(
        index=index,
        message=responses.ChatMessage(content=text, tool_calls=calls or None),
        logprobs=logprobs,
        finish_reason=_finish_reason(completion, bool(calls)),
    )


def _tool_call(call: tools.Call) -> responses.ToolCall:
    return responses.ToolCall(id=call.id, function=responses.CalledFunction(name=call.name, arguments=call.arguments))


def _finish_reason(completion: Completion, has_calls: bool) -> responses.FinishReason:
    return "tool_calls" if has_calls and completion.finish_reason == "stop" else completion.finish_reason


class _ChatChunks:
    """The chunks of a streamed chat completion."""

    def __init__(
        self, head: Head, model: ServedModel, body: ChatRequest, has_functions: bool, notes: dict[str, str]
    ) -> None:
        self._fixed = {**head.fields(), "object": "chat.completion.chunk"}
        self._model = model
        self._readers = [tools.CallReader() if has_functions else None for _ in range(body.n)]
        self._completions: dict[int, Completion] = {}
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage
        self._wants_logprobs = body.logprobs
        self._notes = notes
        if self._wants_usage:
            self._fixed["usage"] = None

    def opening(self) -> Iterable[Chunk]:
        for index in range(len(self._readers)):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def chunks(self, piece: Piece) -> Iterable[Chunk]:
        reader = self._readers[piece.index]
        logprobs = None
        if self._wants_logprobs:
            logprobs = {"content": [token_logprob(self._model, t).model_dump() for t in piece.tokens], "refusal": None}
        if reader is None:
            deltas: list[Chunk] = [{"content": piece.text}] if piece.text or piece.tokens else []
        else:
            deltas = [_delta(said) for said in reader.push(piece.text)]
            if logprobs and not deltas:
                deltas = [{}]
        for delta in deltas:
            yield self._chunk(piece.index, delta, logprobs)
            logprobs = None  # they are of the piece, not of each of its parts
        if piece.completion is not None:
            self._completions[piece.index] = piece.completion
            reason = _finish_reason(piece.completion, bool(reader and reader.calls))
            yield self._chunk(piece.index, {}, None, reason)

    def closing(self) -> Iterable[Chunk]:
        used = usage([self._completions[index] for index in sorted(self._completions)], len(self._readers))
        note_usage(self._notes, used)
        if self._wants_usage:
            yield {**self._fixed, "choices": [], "usage": used.model_dump()}

    def _chunk(self, index: int, delta: Chunk, logprobs: object = None, finish_reason: str | None = None) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._fixed, "choices": [choice]}


def _delta(said: tools.Said) -> Chunk:
    if said.call is None:
        return {"content": said.text}
    call: Chunk = {"index": said.call.number, "function": {"arguments": said.text}}
    if said.begins:
        call = {
            "index": said.call.number,
            "id": said.call.id,
            "type": "function",
            "function": {"name": said.call.name, "arguments": ""},
        }
    return {"tool_calls": [call]}
