"""/tokenize and /detokenize, in vLLM's form: texts and conversations to ids, and ids to text."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from minicpm.server import responses
from minicpm.server.answers import Serving, in_thread
from minicpm.server.chat import conversation
from minicpm.server.errors import APIError
from minicpm.server.openapi import ERRORS
from minicpm.server.requests import DetokenizeRequest, TokenizeRequest


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()
    model = serving.model

    @routes.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeRequest) -> responses.Tokens:
        """Ids of a text, or of the prompt that a conversation becomes."""
        model.check_name(body.model)
        if body.messages is not None:
            text = await in_thread(model.template.render, conversation(body.messages))
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
