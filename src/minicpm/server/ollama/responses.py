"""Responses of Ollama's routes, field for field as Ollama's, for the routes and for /openapi.json. Times are in ns."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from minicpm.server import openapi


class OllamaError(BaseModel):
    error: str


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class TopLogprob(BaseModel):
    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class _Generated(_Answer):
    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[TokenLogprob] | None = None


class CalledFunction(BaseModel):
    index: int
    name: str
    arguments: dict[str, Any]


class ToolCall(BaseModel):
    id: str
    function: CalledFunction


class Message(BaseModel):
    role: Literal["assistant"]
    content: str
    tool_calls: list[ToolCall] | None = None


class Chat(_Generated):
    message: Message


class Generate(_Generated):
    response: str
    context: list[int] | None = None


class Embed(_Answer):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Embeddings(BaseModel):
    embedding: list[float]


class Version(BaseModel):
    version: str


class Details(BaseModel):
    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int
    embedding_length: int


class _Named(_Answer):
    name: str
    model: str
    size: int
    digest: str
    details: Details


class Listed(_Named):
    modified_at: str
    capabilities: list[str]


class Tags(BaseModel):
    models: list[Listed]


class Loaded(_Named):
    expires_at: str
    size_vram: int
    context_length: int


class Running(BaseModel):
    models: list[Loaded]


class Shown(_Answer):
    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**meaning, "model": OllamaError} for status, meaning in openapi.ERRORS.items()
}
STREAMS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {
        "description": 'the answer; without "stream": false as lines of JSON',
        "content": {"application/x-ndjson": {}},
    },
}
