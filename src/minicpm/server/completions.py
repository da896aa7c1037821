"""/v1/completions: texts or token ids, continued as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from starlette.responses import Response

from minicpm.engine.constraint import Constraint
from minicpm.engine.request import Completion, Piece
from minicpm.sampling import SampledToken
from minicpm.server import responses
from minicpm.server.answers import Question, Serving, in_thread, unless_client_leaves
from minicpm.server.errors import APIError
from minicpm.server.events import Chunk, EventStream
from minicpm.server.generation import Head, note_usage, sampling_params, usage
from minicpm.server.model import ServedModel
from minicpm.server.openapi import STREAMS
from minicpm.server.requests import MAX_PROMPTS, CompletionRequest, Texts
from minicpm.server.structure import constraint_of


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=responses.Completion, responses=STREAMS)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        model = serving.model
        name = model.check_name(body.model)
        params = sampling_params(body, model, max_tokens=body.max_tokens, logprobs=body.logprobs)
        prompts, constraint = await in_thread(_prepare, model, body)
        questions = [Question(ids, params, False, choice, constraint) for _, ids in prompts for choice in range(body.n)]
        echoed = [text if body.echo else "" for text, _ in prompts for _ in range(body.n)]
        head = Head.new("cmpl", name, model, params)
        notes: dict[str, str] = request.scope["state"]["notes"]
        async with AsyncExitStack() as stack:
            answers = await stack.enter_async_context(serving.answers(questions))
            if body.stream:
                writer = _CompletionChunks(head, model, body, echoed, notes)
                return EventStream(stack.pop_all(), answers, writer, serving.settings.ping_s)
            completions = await unless_client_leaves(request, answers.completions())
        used = usage(completions, body.n)
        note_usage(notes, used)
        choices = [
            responses.CompletionChoice(
                index=index,
                text=echo + completion.text,
                logprobs=None if completion.logprobs is None else _logprobs(model, completion.logprobs, 0),
                finish_reason=completion.finish_reason,
            )
            for index, (echo, completion) in enumerate(zip(echoed, completions))
        ]
        whole = responses.Completion(**head.fields(), choices=choices, usage=used)
        return Response(whole.model_dump_json(), media_type="application/json")

    return routes


def _prepare(model: ServedModel, body: CompletionRequest) -> tuple[list[tuple[str, list[int]]], Constraint | None]:
    if isinstance(body.prompt, list) and len(body.prompt) * body.n > MAX_PROMPTS and not _is_ids(body.prompt):
        raise APIError(
            400,
            f"prompt times n is more than {MAX_PROMPTS} answers; send them apart",
            param="prompt",
            code="invalid_value",
        )
    prompts = []
    for text in as_texts(body.prompt, "prompt"):
        ids = model.encode(text) if isinstance(text, str) else text
        model.check_prompt(ids, "prompt")
        prompts.append((text if isinstance(text, str) else model.tokenizer.decode(text), ids))
    return prompts, constraint_of(body, [])


def as_texts(given: Texts, name: str) -> Sequence[str | list[int]]:
    """One text or several, each a string or ids, as a list of at least one."""
    texts: Sequence[str | list[int]] = [given] if isinstance(given, str) or _is_ids(given) else given  # type: ignore
    if not texts or not all(texts):
        raise APIError(400, f"{name} is empty; give at least one character", param=name, code="invalid_value")
    return texts


def _is_ids(given: object) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], int)


def _logprobs(model: ServedModel, tokens: Sequence[SampledToken], offset: int) -> responses.Logprobs:
    """OpenAI's older form: four lists, one entry a token; `offset` is where in the answer they begin."""
    whole = responses.Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token in tokens:
        assert token.logprob is not None
        text = model.token_text(token.token_id)
        whole.tokens.append(text)
        whole.token_logprobs.append(token.logprob)
        whole.top_logprobs.append({model.token_text(i): logprob for i, logprob in reversed(token.top_logprobs)})
        whole.text_offset.append(offset)
        offset += len(text)
    return whole


class _CompletionChunks:
    """The chunks of streamed completions."""

    def __init__(
        self, head: Head, model: ServedModel, body: CompletionRequest, echoed: Sequence[str], notes: dict[str, str]
    ) -> None:
        self._fixed = {**head.fields(), "object": "text_completion"}
        self._model = model
        self._choices = body.n
        self._echoed = echoed
        self._offsets = [0] * len(echoed)
        self._completions: dict[int, Completion] = {}
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage
        self._wants_logprobs = body.logprobs is not None
        self._notes = notes
        if self._wants_usage:
            self._fixed["usage"] = None

    def opening(self) -> Iterable[Chunk]:
        for index, text in enumerate(self._echoed):
            if text:
                yield self._chunk(index, text)

    def chunks(self, piece: Piece) -> Iterable[Chunk]:
        logprobs = None
        if self._wants_logprobs and piece.tokens:
            part = _logprobs(self._model, piece.tokens, self._offsets[piece.index])
            self._offsets[piece.index] += sum(map(len, part.tokens))
            logprobs = part.model_dump()
        if piece.completion is not None:
            self._completions[piece.index] = piece.completion
            yield self._chunk(piece.index, piece.text, logprobs, piece.completion.finish_reason)
        elif piece.text or logprobs:
            yield self._chunk(piece.index, piece.text, logprobs)

    def closing(self) -> Iterable[Chunk]:
        used = usage([self._completions[index] for index in sorted(self._completions)], self._choices)
        note_usage(self._notes, used)
        if self._wants_usage:
            yield {**self._fixed, "choices": [], "usage": used.model_dump()}

    def _chunk(self, index: int, text: str, logprobs: object = None, finish_reason: str | None = None) -> Chunk:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._fixed, "choices": [choice]}
