"""/v1/embeddings: one vector a text, as LLM.embed makes it."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from starlette.responses import Response

from minicpm.server import responses
from minicpm.server.answers import Serving, in_thread, unless_client_leaves, worked
from minicpm.server.completions import as_texts
from minicpm.server.errors import APIError
from minicpm.server.generation import note_ignored
from minicpm.server.model import ServedModel
from minicpm.server.openapi import ERRORS
from minicpm.server.requests import MAX_EMBEDDINGS, EmbeddingRequest


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/embeddings", response_model=responses.Embeddings, responses=ERRORS)
    async def create_embedding(body: EmbeddingRequest, request: Request) -> Response:
        """Mean of the last hidden states of each text's tokens; not normalised."""
        note_ignored(request.scope["state"]["notes"], body)
        name = serving.model.check_name(body.model)
        ids = await in_thread(_encode, serving, body)
        vectors = await unless_client_leaves(request, worked(serving.engine.embed, ids))
        if body.dimensions is not None and body.dimensions != vectors.shape[1]:
            raise APIError(
                400,
                f"this model's vectors have {vectors.shape[1]} numbers, which cannot be chosen; leave dimensions out",
                param="dimensions",
                code="invalid_value",
            )
        tokens = sum(map(len, ids))
        request.scope["state"]["notes"]["prompt"] = str(tokens)
        data = [
            responses.Embedding(index=index, embedding=_written(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ]
        used = responses.EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        whole = responses.Embeddings(model=name, data=data, usage=used)
        return Response(whole.model_dump_json(), media_type="application/json")

    return routes


def _encode(serving: Serving, body: EmbeddingRequest) -> list[list[int]]:
    return embedding_ids(serving.model, as_texts(body.input, "input"))


def embedding_ids(model: ServedModel, texts: Sequence[str | list[int]]) -> list[list[int]]:
    """The ids of texts to embed. Raises APIError for too many texts, and for one that does not fit into the context."""
    if len(texts) > MAX_EMBEDDINGS:
        raise APIError(
            400,
            f"{len(texts):,} texts are more than the {MAX_EMBEDDINGS:,} of one request",
            param="input",
            code="invalid_value",
        )
    ids = []
    for text in texts:
        ids.append(model.encode(text) if isinstance(text, str) else text)
        model.check_prompt(ids[-1], "input")
    return ids


def _written(vector: npt.NDArray[np.float32], encoding: str) -> list[float] | str:
    """Numbers, or their float32 bytes, little-endian, in base64."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
