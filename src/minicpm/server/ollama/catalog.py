"""Ollama's routes about models: /api/tags, /api/show, /api/ps, /api/version; and the routes that are refused."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from fastapi import APIRouter, Request

from minicpm.errors import one_line
from minicpm.formats.gguf_model import ARCHITECTURE, model_fields
from minicpm.server.answers import Serving
from minicpm.server.errors import APIError
from minicpm.server.model import ServedModel
from minicpm.server.ollama import responses
from minicpm.server.ollama.lines import timestamp
from minicpm.server.ollama.requests import ShowRequest

# Clients decide by it what they may ask. /api/chat and /api/generate have logprobs since 0.12.11. Codex speaks to
# /v1/responses from 0.13.4 on and refuses older servers; Copilot Chat wants 0.6.4. 0.13.5 is the last version without
# /v1/messages (0.14.0), which is not here. Three plain numbers, since some clients parse each of them.
API_VERSION = "0.13.5"
# MiniCPM has no template for functions, but this server has one for all (tools.py).
CAPABILITIES = ["completion", "tools"]
_DEFAULT_TAG = ":latest"
_DEFAULT_PREFIXES = ("registry.ollama.ai/", "library/")
# Ollama's value for a model that is never unloaded: the maximum of int64 nanoseconds from now.
_FOREVER_S = (1 << 63) / 1e9


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()
    model = serving.model

    async def version() -> responses.Version:
        """The version of Ollama's API that is spoken here."""
        return responses.Version(version=API_VERSION)

    async def tags() -> responses.Tags:
        """The model, once by each of its names."""
        return responses.Tags(models=[_listed(model, name) for name in model.names])

    async def running() -> responses.Running:
        """The same: the model is always loaded."""
        until = timestamp(time.time() + _FOREVER_S)
        return responses.Running(models=[_running(model, name, until) for name in model.names])

    for path, route in (("/api/version", version), ("/api/tags", tags), ("/api/ps", running)):
        routes.get(path, responses=responses.ERRORS)(route)
        routes.head(path, include_in_schema=False)(route)

    @routes.post("/api/show", responses=responses.ERRORS)
    async def show(body: ShowRequest) -> responses.Shown:
        """The details of the model."""
        known_name(model, body.model or body.name)
        return _shown(model)

    @routes.head("/", include_in_schema=False)
    async def heartbeat() -> None:
        """Ollama's clients ask so whether a server is there."""

    async def refused(request: Request) -> None:
        raise APIError(
            501,
            f"{one_line(request.url.path, 40)} is not there: this server has one model and changes none; download "
            "another one with 'minicpm pull NAME' and serve it with 'minicpm serve -m NAME'",
            code="not_found",
        )

    for path, method in (
        ("pull", "POST"),
        ("push", "POST"),
        ("create", "POST"),
        ("copy", "POST"),
        ("delete", "DELETE"),
        ("blobs/{digest}", "POST"),
        ("blobs/{digest}", "HEAD"),
    ):
        routes.add_api_route(f"/api/{path}", refused, methods=[method], include_in_schema=False)
    return routes


# --- Names ---------------------------------------------------------------------------------------------------


def known_name(model: ServedModel, name: str | None) -> str:
    """The name as given. Raises APIError if it is not a name of the model, with or without a tag."""
    if not name:
        raise APIError(400, f"model is required; there is: {_names(model)}", param="model", code="invalid_value")
    if name not in model.names and _full(name) not in map(_full, model.names):
        message = f"model {one_line(name, 100)!r} not found; there is: {_names(model)}"
        raise APIError(404, message, param="model", code="model_not_found")
    return name


def tagged(name: str) -> str:
    """The name with a tag: 'nano' -> 'nano:latest'."""
    return name if ":" in name.rpartition("/")[2] else name + _DEFAULT_TAG


def _full(name: str) -> str:
    for prefix in _DEFAULT_PREFIXES:
        name = name.removeprefix(prefix)
    return tagged(name).lower()


def _names(model: ServedModel) -> str:
    return ", ".join(map(tagged, model.names))


# --- The model -----------------------------------------------------------------------------------------------


def _listed(model: ServedModel, name: str) -> responses.Listed:
    return responses.Listed(
        name=tagged(name),
        model=tagged(name),
        modified_at=timestamp(model.facts.modified),
        size=model.facts.weight_bytes,
        digest=_digest(model),
        details=_details(model),
        capabilities=CAPABILITIES,
    )


def _running(model: ServedModel, name: str, until: str) -> responses.Loaded:
    return responses.Loaded(
        name=tagged(name),
        model=tagged(name),
        size=model.facts.weight_bytes,
        digest=_digest(model),
        details=_details(model),
        expires_at=until,
        size_vram=model.facts.weight_bytes if model.facts.is_on_gpu else 0,
        context_length=model.context_length,
    )


def _shown(model: ServedModel) -> responses.Shown:
    parameters = _parameters(model)
    lines = [f"PARAMETER {name} {value}" for name, value in parameters]
    return responses.Shown(
        license=model.facts.licence,
        modelfile="\n".join(["# What 'minicpm serve' serves", f"FROM {tagged(model.names[0])}", *lines, ""]),
        parameters="\n".join(f"{name:<30} {value}" for name, value in parameters),
        template=model.template.text,
        details=_details(model),
        model_info=_model_info(model),
        capabilities=CAPABILITIES,
        modified_at=timestamp(model.facts.modified),
    )


def _digest(model: ServedModel) -> str:
    """It stays the same while the model and this package do. The weights are not read for it."""
    return hashlib.sha256(f"{model.fingerprint}/{model.facts.weight_bytes}".encode()).hexdigest()


def _details(model: ServedModel) -> responses.Details:
    facts = model.facts
    return responses.Details(
        format=facts.format,
        family=ARCHITECTURE,
        families=[ARCHITECTURE],
        parameter_size=_human(facts.config.num_parameters()),
        quantization_level=facts.quantization,
        context_length=model.context_length,
        embedding_length=facts.config.hidden_size,
    )


def _model_info(model: ServedModel) -> dict[str, Any]:
    """A GGUF file's metadata; the context is the one that is served."""
    config, tokenizer = model.facts.config, model.tokenizer
    return {
        "general.architecture": ARCHITECTURE,
        "general.basename": model.names[0],
        "general.parameter_count": config.num_parameters(),
        **{field.key: field.value for field in model_fields(config)},
        f"{ARCHITECTURE}.context_length": model.context_length,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": next(iter(sorted(tokenizer.eos_token_ids)), None),
    }


def _parameters(model: ServedModel) -> list[tuple[str, object]]:
    """The model's own defaults, by Ollama's names."""
    sampling = model.sampling
    numbers = {
        "num_ctx": model.context_length,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
    }
    if sampling.max_tokens is not None:
        numbers["num_predict"] = sampling.max_tokens
    return [*numbers.items(), *(("stop", f'"{stop}"') for stop in model.template.stop_strings)]


def _human(count: int) -> str:
    """2724880896 -> '2.7B', 8123456 -> '8.12M'."""
    if count >= 1e9:
        return f"{count / 1e9:.1f}B"
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.1f}K"
