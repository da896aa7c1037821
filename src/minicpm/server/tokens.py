"""/tokenize and /detokenize, in vLLM's form: texts and conversations to ids, and ids to text."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request

from minicpm.chat import ChatTemplate
from minicpm.server import responses
from minicpm.server.answers import Serving, in_thread
from minicpm.server.chat import conversation
from minicpm.server.errors import APIError
from minicpm.server.generation import note_ignored
from minicpm.server.openapi import ERRORS
from minicpm.server.requests import DetokenizeRequest, TokenizeRequest


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()
    model = serving.model

    @routes.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeRequest, request: Request) -> responses.Tokens:
        """Ids of a text, or of the prompt that a conversation becomes."""
        model.check_name(body.model)
        note_ignored(request.scope["state"]["notes"], body)
        if body.messages is not None:
            text = await in_thread(_rendered, model.template, body)
        else:
            text = body.prompt or ""
        ids = await in_thread(partial(model.tokenizer.encode, text, add_bos=body.add_special_tokens))
        strings = [model.tokenizer.id_to_token(i) or "" for i in ids] if body.return_token_strs else None
        return responses.Tokens(count=len(ids), max_model_len=model.context_length, tokens=ids, token_strs=strings)

    @routes.post("/detokenize", responses=ERRORS)
    async def detokenize(body: DetokenizeRequest) -> responses.Text:
        """Text of ids; special tokens are left out."""
        model.check_name(body.model)
        bad = next((i for i in body.tokens if not 0 <= i < model.vocab_size), None)
        if bad is not None:
            raise APIError(400, f"tokens are from 0 to {model.vocab_size - 1:,}", param="tokens", code="invalid_value")
        return responses.Text(prompt=await in_thread(model.tokenizer.decode, body.tokens))

    return routes


def _rendered(template: ChatTemplate, body: TokenizeRequest) -> str:
    """The prompt of a conversation; with continue_final_message it ends where the last message's text ends."""
    turns = conversation(body.messages or [])
    if not body.continue_final_message:
        return template.render(turns, body.add_generation_prompt is not False)
    text, last = template.render(turns, False), turns[-1]["content"].strip()
    at = text.rfind(last)
    if not last or at < 0:
        raise APIError(
            400,
            "continue_final_message: the last message is empty, or the chat template does not repeat it",
            param="continue_final_message",
            code="invalid_value",
        )
    end = at + len(last)
    # Blanks behind the text are a part of it if the template keeps them.
    kept = turns[-1]["content"][len(turns[-1]["content"].rstrip()) :]
    return text[: end + len(kept)] if text.startswith(kept, end) else text[:end]
