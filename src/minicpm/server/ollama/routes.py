"""/api/chat, /api/generate, /api/embed and /api/embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from starlette.responses import Response

from minicpm.server.answers import Question, Serving, in_thread, unless_client_leaves, worked
from minicpm.server.chat import chat_questions
from minicpm.server.completions import completion_questions
from minicpm.server.embeddings import embedding_ids
from minicpm.server.errors import APIError
from minicpm.server.events import Chunk, EventStream
from minicpm.server.model import ServedModel
from minicpm.server.ollama import responses
from minicpm.server.ollama.catalog import known_name
from minicpm.server.ollama.lines import ChatLines, GenerateLines, Lines, Stopwatch, framing
from minicpm.server.ollama.requests import (
    Generation,
    Message,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    loggable,
)

# When messages are dropped to fit the context, 1 / _ANSWER_SHARE of the context is kept free for the answer.
_ANSWER_SHARE = 4
# Words of errors, and what the client called the same.
_WORDS = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()
    model = serving.model

    @routes.post("/api/chat", response_model=responses.Chat, responses=responses.STREAMS)
    async def chat(body: OllamaChatRequest, request: Request) -> Response:
        """Answer a conversation; without messages, only report that the model is loaded."""
        watch, notes = Stopwatch(), _notes(request)
        name = known_name(model, body.model)
        body.check()
        _note(notes, body.without_effect(model))
        has_functions = False
        questions: list[Question] = []
        if body.messages:
            with _in_clients_words():
                questions, has_functions = await _chat_questions(model, body, body.messages, notes)
        watch.ready()
        lines = ChatLines(name, model, watch, notes, bool(body.logprobs), has_functions=has_functions)
        return await _answer(serving, body, request, questions, lines)

    @routes.post("/api/generate", response_model=responses.Generate, responses=responses.STREAMS)
    async def generate(body: OllamaGenerateRequest, request: Request) -> Response:
        """Answer a prompt, or continue a raw one; without a prompt, only report that the model is loaded."""
        watch, notes = Stopwatch(), _notes(request)
        name = known_name(model, body.model)
        body.check(model)
        _note(notes, body.without_effect(model))
        lines = GenerateLines(name, model, watch, notes, bool(body.logprobs))
        questions: list[Question] = []
        if body.prompt:
            with _in_clients_words({"messages has": "prompt has"}):
                if body.raw:
                    _, questions = await completion_questions(model, body.completion())
                else:
                    questions, _ = await chat_questions(model, body.chat(), notes)
                    questions = [_continuing(model, questions[0], body.context or ())]
                    lines.prompt_ids = questions[0].prompt_ids
        watch.ready()
        return await _answer(serving, body, request, questions, lines)

    @routes.post("/api/embed", response_model=responses.Embed, responses=responses.ERRORS)
    async def embed(body: OllamaEmbedRequest, request: Request) -> Response:
        """A vector of length 1 for each text."""
        watch, notes = Stopwatch(), _notes(request)
        name = known_name(model, body.model)
        _note(notes, body.without_effect(model))
        texts = [body.input] if isinstance(body.input, str) and body.input else list(body.input or ())
        vectors, tokens = await _vectors(serving, request, texts, is_cut=body.truncate is not False)
        if body.dimensions is not None and 0 < body.dimensions < vectors.shape[1]:
            vectors = vectors[:, : body.dimensions]
        notes["prompt"] = str(tokens)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        whole = {
            "model": name,
            "embeddings": (vectors / np.maximum(length, 1e-12)).tolist(),
            **watch.durations(),
            "prompt_eval_count": tokens,
        }
        return _json(whole)

    @routes.post("/api/embeddings", response_model=responses.Embeddings, responses=responses.ERRORS)
    async def embeddings(body: OllamaEmbeddingsRequest, request: Request) -> Response:
        """The older form: one text, and its vector as it is."""
        notes = _notes(request)
        known_name(model, body.model)
        _note(notes, body.without_effect(model))
        vectors, tokens = await _vectors(serving, request, [body.prompt] if body.prompt else [], is_cut=True)
        notes["prompt"] = str(tokens)
        return _json({"embedding": vectors[0].tolist() if len(vectors) else []})

    return routes


async def _answer(
    serving: Serving, body: Generation, request: Request, questions: Sequence[Question], lines: Lines
) -> Response:
    """Generate and return the answer's lines; without a prompt, report the state of the model."""
    if not questions:
        return _json(lines.last("unload" if body.unloads else "load"))
    if body.is_unlimited:
        # The model's own limit is not meant.
        questions = [replace(question, params=replace(question.params, max_tokens=None)) for question in questions]
    async with AsyncExitStack() as stack:
        answers = await stack.enter_async_context(serving.answers(questions))
        if body.streams:
            return EventStream(stack.pop_all(), answers, lines, serving.settings.ping_s, framing(lines))
        (completion,) = await unless_client_leaves(request, answers.completions())
    return _json(lines.whole(completion))


# --- Prompts -------------------------------------------------------------------------------------------------


async def _chat_questions(
    model: ServedModel, body: OllamaChatRequest, messages: Sequence[Message], notes: dict[str, str]
) -> tuple[list[Question], bool]:
    """The question of a conversation, without its oldest messages where all of them do not fit into the context.

    System messages and the last message stay. A quarter of the context is then left to the answer, or as many tokens
    as it may have. Raises APIError where nothing can be left out.
    """
    try:
        return await chat_questions(model, body.translated(messages), notes)
    except APIError as error:
        if error.code != "context_length_exceeded" or body.truncate is False or len(messages) == 1:
            raise
    room = model.context_length // _ANSWER_SHARE
    longest = None if body.is_unlimited else body.fields()["max_tokens"] or model.sampling.max_tokens
    most = model.context_length - min(room, longest or room)

    async def from_message(start: int) -> tuple[list[Question], bool] | None:
        kept = [message for message in messages[:start] if message.role == "system"]
        try:
            found = await chat_questions(model, body.translated([*kept, *messages[start:]]), notes)
        except APIError as error:
            if error.code == "context_length_exceeded" and start < len(messages) - 1:
                return None
            raise
        return found if len(found[0][0].prompt_ids) <= most or start == len(messages) - 1 else None

    # The later the start, the shorter the prompt: the first start that fits.
    low, high = 1, len(messages) - 1
    found = await from_message(high)
    while low < high:
        middle = (low + high) // 2
        shorter = await from_message(middle)
        if shorter is None:
            low = middle + 1
        else:
            high, found = middle, shorter
    assert found is not None
    notes["left_out"] = str(sum(message.role != "system" for message in messages[:high]))
    return found


def _continuing(model: ServedModel, question: Question, context: Sequence[int]) -> Question:
    """The question behind an earlier prompt and its answer. Raises APIError where they do not fit or have no ids."""
    if not context:
        return question
    start = len(model.encode(""))  # <s>, which the context begins with
    prompt_ids = [*context, *question.prompt_ids[start:]]
    model.check_prompt(prompt_ids, "prompt with its context")
    return replace(question, prompt_ids=prompt_ids)


async def _vectors(
    serving: Serving, request: Request, texts: Sequence[str], *, is_cut: bool
) -> tuple[npt.NDArray[np.float32], int]:
    """Vectors (n, hidden) of the texts, and the number of their tokens; a text is cut where the context is full."""
    if not texts:
        return np.zeros((0, 0), np.float32), 0
    ids = await in_thread(_embedding_ids, serving.model, texts, is_cut)
    vectors = await unless_client_leaves(request, worked(serving.engine.embed, ids))
    return vectors, sum(map(len, ids))


def _embedding_ids(model: ServedModel, texts: Sequence[str], is_cut: bool) -> list[list[int]]:
    if not is_cut:
        return embedding_ids(model, texts)
    return embedding_ids(model, [model.encode(text)[: model.context_length - 1] for text in texts])


# --- Bodies and notes ----------------------------------------------------------------------------------------


@contextmanager
def _in_clients_words(more: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Errors name fields and options as Ollama's clients do."""
    try:
        yield
    except APIError as error:
        message = str(error)
        for ours, theirs in {**_WORDS, **more}.items():
            message = message.replace(ours, theirs)
        raise APIError(
            error.status, message, kind=error.kind, param=error.param, code=error.code, headers=error.headers
        ) from None


def _notes(request: Request) -> dict[str, str]:
    notes: dict[str, str] = request.scope["state"]["notes"]
    return notes


def _note(notes: dict[str, str], without_effect: Sequence[str]) -> None:
    if without_effect:
        notes["ignored"] = loggable(without_effect)


def _json(body: Chunk) -> Response:
    return Response(json.dumps(body, ensure_ascii=False).encode(), media_type="application/json; charset=utf-8")
