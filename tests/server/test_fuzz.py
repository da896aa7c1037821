"""Requests that nobody thought of, made from our own /openapi.json: no failure of ours, nothing undocumented."""

from __future__ import annotations

from collections.abc import Iterator

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402

from minicpm.server.model import ServedModel  # noqa: E402
from minicpm.server.settings import Settings  # noqa: E402
from server.running import Running, running  # noqa: E402
from server.stub import StubEngine  # noqa: E402

load_all_checks()
KEY = "k"
FUZZED = (
    "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize",
    "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show",
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzzed(model: ServedModel) -> Iterator[Running]:
    with running(StubEngine(), model, Settings(api_keys=(KEY,))) as server:
        yield server


@pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "path",
    FUZZED,
)
def test_whatever_is_sent_the_answer_is_documented(fuzzed: Running, path: str, mode: GenerationMode, examples: int):
    api = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    if path.startswith("/api/"):
        examples //= 2  # all below these routes is fuzzed by way of the others
    operation = api[path]["POST"]
    (body,) = [media["schema"] for media in api.raw_schema["paths"][path]["post"]["requestBody"]["content"].values()]
    schema = jsonschema.Draft202012Validator({**body, "components": api.raw_schema["components"]})

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case: schemathesis.Case) -> None:
        response = case.call(headers={"Authorization": f"Bearer {KEY}"})
        # What fits the schema may still be refused: a prompt too long, an option that this model has not.
        excluded = [positive_data_acceptance]
        # Of the roles that one kind of message may have, schemathesis 4.32 takes the second for a mistake.
        if schema.is_valid(case.body):
            excluded.append(negative_data_rejection)
        case.validate_response(response, excluded_checks=excluded)
        assert response.status_code < 500
        if response.status_code >= 400:
            error = response.json()["error"]
            if path.startswith("/api/"):
                assert isinstance(error, str) and error
            else:
                assert set(error) == {"message", "type", "param", "code"}

    check()


def test_every_route_that_takes_a_body_is_fuzzed(fuzzed: Running):
    with fuzzed.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {path for path, methods in paths.items() if "post" in methods} <= set(FUZZED)
