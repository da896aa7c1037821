"""Ollama's routes, /api/...: a translation to and from what /v1/chat/completions and /v1/completions are made of.

Prompts, functions, forms, sampling and streams are those rooms'. Here are only Ollama's names, defaults and shapes:
`requests.py` reads, `lines.py` writes, `routes.py` has the routes that compute, `catalog.py` those about the model,
`form.py` the shape of errors.
"""

from __future__ import annotations

from fastapi import APIRouter

from minicpm.server.answers import Serving
from minicpm.server.ollama import catalog, routes
from minicpm.server.ollama.form import OllamaForm

__all__ = ["OllamaForm", "router"]


def router(serving: Serving) -> APIRouter:
    """All of Ollama's routes."""
    every = APIRouter()
    for room in (routes, catalog):
        every.include_router(room.router(serving))
    return every
