"""Real servers on real sockets of this machine, in this process: over nano, and over the stub engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from minicpm import LLM
from minicpm.engine.request import Completion
from minicpm.engine.service import Engine, Service
from minicpm.server.model import ServedModel
from minicpm.server.settings import Settings
from server.running import Running, running
from server.stub import StubEngine


@pytest.fixture(scope="session")
def llm() -> LLM:
    return LLM(max_batch=8)


@pytest.fixture(scope="session")
def model(llm: LLM) -> ServedModel:
    return ServedModel.of(llm, ["minicpm-nano", "nano"])


@pytest.fixture(scope="session")
def service(llm: LLM) -> Iterator[Service]:
    service = Service(llm)
    yield service
    service.close(10)


class Direct:
    """The model without a server, asked on the engine's thread as long as that runs."""

    def __init__(self, service: Service):
        self._service = service

    def chat(self, question: str, **options: Any) -> Completion:
        return self._service.call(lambda: self._service.llm.chat(question, **options))

    def generate(self, prompt: str, **options: Any) -> Completion:
        return self._service.call(lambda: self._service.llm.generate(prompt, **options))[0]

    def embed(self, texts: list[str]) -> Any:
        return self._service.embed(texts).result()


@pytest.fixture(scope="session")
def direct(service: Service) -> Direct:
    return Direct(service)


@pytest.fixture(scope="session")
def nano(service: Service, model: ServedModel) -> Iterator[Running]:
    """MiniCPM-nano behind the server, for all tests of a session."""
    with running(service, model, Settings(grace_s=1)) as server:
        yield server


@pytest.fixture(scope="session")
def client(nano: Running) -> Iterator[httpx.Client]:
    with nano.client() as client:
        yield client


@pytest.fixture
def start(model: ServedModel) -> Iterator[Callable[..., Running]]:
    """`start(engine, **settings)`: a server of this test's own, over the stub engine if there is no other."""
    with ExitStack() as stack:

        def begin(engine: Engine | None = None, **settings: object) -> Running:
            return stack.enter_context(running(engine or StubEngine(), model, replace(Settings(grace_s=1), **settings)))

        yield begin
