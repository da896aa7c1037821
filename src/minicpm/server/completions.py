"""/v1/completions: texts or token ids, continued as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from minicpm.engine.constraint import Constraint
from minicpm.engine.request import Completion, Piece, Timings, Usage
from minicpm.sampling import SampledToken
from minicpm.server import responses
from minicpm.server.answers import Question, Serving, in_thread, unless_client_leaves, worked
from minicpm.server.errors import APIError
from minicpm.server.events import Chunk, EventStream
from minicpm.server.generation import Head, note_ignored, note_usage, sampling_params, usage
from minicpm.server.model import ServedModel
from minicpm.server.openapi import STREAMS
from minicpm.server.requests import MAX_PROMPTS, CompletionRequest, Texts
from minicpm.server.structure import constraint_of
from minicpm.tokenizer import Detokenizer


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=responses.Completion, responses=STREAMS)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        model = serving.model
        notes: dict[str, str] = request.scope["state"]["notes"]
        note_ignored(notes, body)
        name = model.check_name(body.model)
        prompts, questions = await completion_questions(model, body)
        head = Head.new("cmpl", name, model, questions[0].params)
        echoes = await unless_client_leaves(request, _echoes(serving, body, prompts))
        unasked: list[Completion] = []
        if body.max_tokens == 0:
            unasked = [_unasked(body, question.prompt_ids, head.seed) for question in questions]
            questions = []
        async with AsyncExitStack() as stack:
            answers = await stack.enter_async_context(serving.answers(questions))
            if body.stream:
                writer = _CompletionChunks(head, model, body, echoes, unasked, notes)
                return EventStream(stack.pop_all(), answers, writer, serving.settings.ping_s)
            completions = unasked or await unless_client_leaves(request, answers.completions())
        used = usage(completions, body.n)
        note_usage(notes, used)
        choices = [
            responses.CompletionChoice(
                index=index,
                text=echo.text + completion.text,
                logprobs=_whole_logprobs(model, echo, completion),
                finish_reason=completion.finish_reason,
            )
            for index, (echo, completion) in enumerate(zip(echoes, completions))
        ]
        whole = responses.Completion(**head.fields(), choices=choices, usage=used)
        return Response(whole.model_dump_json(), media_type="application/json")

    return routes


async def completion_questions(
    model: ServedModel, body: CompletionRequest
) -> tuple[list[tuple[str, list[int]]], list[Question]]:
    """The prompts as texts and ids, and for each of them a question per choice.

    Raises APIError for invalid requests. With "max_tokens": 0 nothing is generated.
    """
    most = 1 if body.max_tokens == 0 else body.max_tokens
    params = sampling_params(body, model, max_tokens=most, logprobs=body.logprobs)
    prompts, constraint = await in_thread(_prepare, model, body)
    questions = [Question(ids, params, False, choice, constraint) for _, ids in prompts for choice in range(body.n)]
    return prompts, questions


@dataclass(frozen=True)
class _Echo:
    """The echoed prompt of a choice: its text and, if requested, its tokens' log-probabilities."""

    text: str = ""
    logprobs: responses.Logprobs | None = None


async def _echoes(serving: Serving, body: CompletionRequest, prompts: Sequence[tuple[str, list[int]]]) -> list[_Echo]:
    """One for every choice. What prompts share with earlier texts is computed again, since its logits are not kept."""
    if not body.echo:
        return [_Echo()] * (len(prompts) * body.n)
    if body.logprobs is None:
        echoes = [_Echo(text) for text, _ in prompts]
    else:
        scored = await worked(serving.engine.prompt_logprobs, [ids for _, ids in prompts], body.logprobs)
        echoes = [
            _Echo(text, _Logprobs(serving.model, 0, continues=False).part(tokens))
            for (text, _), tokens in zip(prompts, scored)
        ]
    return [echo for echo in echoes for _ in range(body.n)]


def _unasked(body: CompletionRequest, prompt_ids: Sequence[int], seed: int) -> Completion:
    """The answer of no tokens."""
    nothing = Timings(first_token_s=0, total_s=0, prefill_tokens_per_s=0, decode_tokens_per_s=0)
    logprobs = None if body.logprobs is None else ()
    return Completion("", (), logprobs, "length", Usage(len(prompt_ids), 0, 0), nothing, seed)


def _prepare(model: ServedModel, body: CompletionRequest) -> tuple[list[tuple[str, list[int]]], Constraint | None]:
    if isinstance(body.prompt, list) and len(body.prompt) * body.n > MAX_PROMPTS and not _is_ids(body.prompt):
        raise APIError(
            400,
            f"prompt times n is more than {MAX_PROMPTS} answers; send them apart",
            param="prompt",
            code="invalid_value",
        )
    if body.prompt is None:
        ids = model.encode("")
        model.check_prompt(ids, "prompt")
        return [("", ids)], constraint_of(body, [], {})
    prompts = []
    for text in as_texts(body.prompt, "prompt"):
        ids = model.encode(text) if isinstance(text, str) else text
        model.check_prompt(ids, "prompt", is_answered=body.max_tokens != 0)
        prompts.append((text if isinstance(text, str) else model.tokenizer.decode(text), ids))
    return prompts, constraint_of(body, [], {})


def as_texts(given: Texts, name: str) -> Sequence[str | list[int]]:
    """One text or several, each a string or ids, as a list of at least one."""
    texts: Sequence[str | list[int]] = [given] if isinstance(given, str) or _is_ids(given) else given  # type: ignore
    if not texts or not all(texts):
        raise APIError(400, f"{name} is empty; give at least one character", param=name, code="invalid_value")
    return texts


def _is_ids(given: object) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], int)


class _Logprobs:
    """OpenAI's older form of log-probabilities, part after part of a text: four lists, one entry a token.

    `offset` is where in the choice's text the first token's characters begin; a prompt does not continue one.
    """

    def __init__(self, model: ServedModel, offset: int, *, continues: bool):
        self._model = model
        self._offset = offset
        self._detokenizer = Detokenizer(model.tokenizer, continues=continues)

    def part(self, tokens: Sequence[SampledToken]) -> responses.Logprobs:
        part = responses.Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in tokens:
            part.tokens.append(self._model.token_text(token.token_id))
            part.token_logprobs.append(token.logprob)
            # Likelier ones last: of two that look the same, such as parts of characters, that one stays.
            top = {self._model.token_text(i): logprob for i, logprob in reversed(token.top_logprobs)}
            if token.logprob is not None and part.tokens[-1] not in top:
                # As OpenAI does it: the token that was taken is always among them.
                top = {part.tokens[-1]: token.logprob, **top}
            part.top_logprobs.append(None if token.logprob is None else top)
            part.text_offset.append(self._offset)
            self._offset += len(self._detokenizer.push(token.token_id))
        return part


def _whole_logprobs(model: ServedModel, echo: _Echo, completion: Completion) -> responses.Logprobs | None:
    """Log-probabilities of the echoed prompt, if any, and the answer."""
    if completion.logprobs is None:
        return None
    answer = _Logprobs(model, len(echo.text), continues=True).part((*completion.logprobs, *_end(echo, completion)))
    if echo.logprobs is None:
        return answer
    return responses.Logprobs(**{name: value + getattr(answer, name) for name, value in echo.logprobs})


def _end(echo: _Echo, completion: Completion) -> tuple[SampledToken, ...]:
    """The token that ended an answer: clients that request the prompt's tokens expect one per sampled token."""
    return () if echo.logprobs is None or completion.end_token is None else (completion.end_token,)


class _CompletionChunks:
    """The chunks of streamed completions; `unasked` are choices that generate nothing."""

    def __init__(
        self,
        head: Head,
        model: ServedModel,
        body: CompletionRequest,
        echoes: Sequence[_Echo],
        unasked: Sequence[Completion],
        notes: dict[str, str],
    ) -> None:
        self._fixed = {**head.fields(), "object": "text_completion"}
        self._choices = body.n
        self._echoes = echoes
        self._logprobs = [_Logprobs(model, len(echo.text), continues=True) for echo in echoes]
        self._completions = dict(enumerate(unasked))
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage
        self._wants_logprobs = body.logprobs is not None
        self._notes = notes
        if self._wants_usage:
            self._fixed["usage"] = None

    def opening(self) -> Iterable[Chunk]:
        for index, echo in enumerate(self._echoes):
            if echo.text:
                logprobs = None if echo.logprobs is None else echo.logprobs.model_dump()
                yield self._chunk(index, echo.text, logprobs, "length" if self._completions else None)

    def chunks(self, piece: Piece) -> Iterable[Chunk]:
        logprobs = None
        tokens = piece.tokens
        if piece.completion is not None:
            tokens += _end(self._echoes[piece.index], piece.completion)
        if self._wants_logprobs and tokens:
            logprobs = self._logprobs[piece.index].part(tokens).model_dump()
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
