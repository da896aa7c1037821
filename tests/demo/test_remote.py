"""The demo over a server that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("httpx")

from browser.scripted_server import ScriptedServer
from minicpm.demo.remote import RemoteSource
from minicpm.demo.source import Progress, SourceError
from minicpm.sampling import SamplingParams

QUESTION = [{"role": "user", "content": "Well?"}]
SAMPLING = SamplingParams(temperature=0.5, top_p=0.9, repetition_penalty=1.0, max_tokens=64)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


def source_of(server: ScriptedServer, **options: Any) -> RemoteSource:
    return RemoteSource(server.url + "v1/", **options)


def all_of(source: RemoteSource, sampling: SamplingParams = SAMPLING) -> list[Progress]:
    async def states() -> list[Progress]:
        return [state async for state in source.answer(QUESTION, sampling)]

    return asyncio.run(states())


def test_an_answer_grows_and_ends_with_the_servers_count(server):
    source = source_of(server)
    server.will_say("Bei", "", "jing", finish_reason="length")
    states = all_of(source)
    assert [state.text for state in states] == ["Bei", "Beijing", "Beijing"]
    assert (states[-1].finish_reason, states[-1].tokens) == ("length", 2)
    assert (source.model, source.context_length) == ("scripted", 256)


def test_a_request_says_what_the_page_says_and_no_more(server):
    server.model = {"id": "scripted"}
    source = source_of(server)
    for sampling in (SAMPLING, SamplingParams(repetition_penalty=1.1)):
        server.will_say("x")
        all_of(source, sampling)
    first, second = server.requests
    assert (first["messages"], first["temperature"], first["top_p"], first["max_tokens"]) == (QUESTION, 0.5, 0.9, 64)
    assert not {"repetition_penalty", "stop"} & set(first)
    assert second["repetition_penalty"] == 1.1


def test_a_server_that_may_have_another_default_is_told_that_nothing_is_penalized(server):
    source = source_of(server)  # it tells its context, as this package's server and vLLM do
    server.will_say("x")
    all_of(source)
    assert server.requests[0]["repetition_penalty"] == 1.0


def test_it_is_told_where_answers_end(server):
    source = source_of(server, stop=("<用户>", "<AI>"))
    server.will_say("x")
    all_of(source)
    assert server.requests[0]["stop"] == ["<用户>", "<AI>"]


def test_leaving_an_answer_ends_the_servers_work(server):
    source = source_of(server)
    answer = server.will_say("a", waits=True)

    async def leave() -> None:
        states = source.answer(QUESTION, SAMPLING)
        await anext(states)
        await states.aclose()

    asyncio.run(leave())
    assert answer.was_left.wait(30)


@pytest.mark.parametrize(
    "script, sentence",
    [
        ({"status": 429, "error": "too many requests wait"}, "says: too many requests wait"),
        ({"error": "the engine has ended"}, "says: the engine has ended"),
        ({"breaks": True}, "broke off before the answer was complete"),
    ],
    ids=["refused", "ended", "broken"],
)
def test_what_goes_wrong_is_a_sentence(server, script, sentence):
    source = source_of(server)
    server.will_say("a", **script)
    with pytest.raises(SourceError, match=sentence):
        all_of(source)


def test_the_key_and_the_model_are_checked_at_the_start(server):
    server.key = "secret"
    with pytest.raises(SourceError, match="a valid API key is needed"):
        source_of(server)
    assert source_of(server, api_key="secret", model="scripted").model == "scripted"
    with pytest.raises(SourceError, match="no model other; there is: scripted"):
        source_of(server, api_key="secret", model="other")


def test_what_is_no_server_is_a_sentence(server):
    with pytest.raises(SourceError, match="not a list of models"):
        RemoteSource(server.url + "?")
    with pytest.raises(SourceError, match="says: there is no such file"):
        RemoteSource(server.url)
    with pytest.raises(SourceError, match="does not answer; is the server running"):
        RemoteSource("http://127.0.0.1:1/v1")
    for address in ("127.0.0.1:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(ValueError, match="is written like"):
            RemoteSource(address)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:port/v1", "http://127.0.0.1:99999/v1", "http://[::1/v1", "http://127.0.0.1:0/v1"]
)
def test_an_address_with_a_wrong_port_or_bracket_is_a_sentence(address):
    with pytest.raises(ValueError, match=r"is written like http://127\.0\.0\.1:8000/v1"):
        RemoteSource(address)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"ALL_PROXY": "socks://127.0.0.1:9"}, "the proxy socks://127.0.0.1:9 of ALL_PROXY is of an unknown kind"),
        ({"HTTP_PROXY": "http://127.0.0.1:9"}, "does not answer through the proxy http://127.0.0.1:9 of HTTP_PROXY"),
        ({"SSL_CERT_FILE": "/nowhere/own.pem"}, "SSL_CERT_FILE is /nowhere/own.pem, which cannot be read"),
    ],
    ids=["kind", "dead", "certificate"],
)
def test_a_setting_of_the_network_is_blamed_and_not_the_server(monkeypatch, settings, sentence):
    for name in ("ALL_PROXY", "HTTP_PROXY", "NO_PROXY", "all_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match=sentence):
        RemoteSource("http://hub.example/v1")


def test_a_server_on_this_machine_is_asked_without_these_settings(server, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/own.pem")
    assert source_of(server).model == "scripted"
