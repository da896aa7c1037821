"""Access checks: host, origin and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from minicpm.server.answers import Serving
from minicpm.server.app import create_app
from minicpm.server.model import ServedModel
from minicpm.server.settings import Settings
from server.running import ASK, CHAT, Running, error_of, running
from server.stub import StubEngine

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def keyed(model: ServedModel) -> Iterator[Running]:
    with running(StubEngine(), model, Settings(api_keys=KEYS)) as server:
        yield server


@pytest.fixture(scope="module")
def plain(model: ServedModel) -> Iterator[Running]:
    with running(StubEngine(), model, Settings()) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/v1/nothing"])
@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", "Bearer first-key2", "Basic first-key", "first-key"])
def test_without_a_key_nothing_is_told(keyed: Running, path: str, given: str | None):
    with keyed.client(headers={"authorization": given} if given else {}) as client:
        response = client.get(path)
        assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(keyed: Running, key: str):
    with keyed.client(headers={"authorization": f"Bearer {key}"}) as client:
        assert client.post(CHAT, json=ASK).status_code == 200


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_a_key_may_come_in_the_headers_of_other_clients(keyed: Running, header: str):
    with keyed.client() as client:
        assert client.get("/v1/models", headers={header: KEYS[1]}).status_code == 200
        assert client.get("/v1/models", headers={header: "wrong"}).status_code == 401
        both = {header: KEYS[0], "authorization": "Bearer wrong"}
        assert client.get("/v1/models", headers=both).status_code == 200
        assert client.get("/v1/models", headers={header: ""}).status_code == 401


def test_health_needs_no_key(keyed: Running):
    with keyed.client() as client:
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.", "[::2]"]
)
def test_a_foreign_name_is_not_answered(plain: Running, host: str):
    with plain.client(headers={"host": host}) as client:
        response = client.get("/v1/models")
        assert (response.status_code, error_of(response)["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_answered(plain: Running, host: str):
    with plain.client(headers={"host": host}) as client:
        assert client.get("/v1/models").status_code == 200


def test_a_page_of_another_origin_may_not_ask(plain: Running):
    with plain.client() as client:
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            response = client.post(CHAT, json=ASK, headers={"origin": origin})
            assert (response.status_code, error_of(response)["code"]) == (403, "origin_not_allowed")
        assert client.post(CHAT, json=ASK, headers={"origin": plain.url}).status_code == 200
        preflight = client.options(CHAT, headers={"origin": plain.url, "access-control-request-method": "POST"})
        assert "access-control-allow-origin" not in preflight.headers


def test_an_allowed_origin_may_ask_and_no_other(start: Callable[..., Running]):
    mine = "https://chat.example"
    with start(cors_origins=(mine,), api_keys=KEYS).client() as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = client.options(CHAT, headers={"origin": mine, **asked})
        assert preflight.headers["access-control-allow-origin"] == mine
        key = {"authorization": f"Bearer {KEYS[0]}"}
        assert client.post(CHAT, json=ASK, headers={"origin": mine, **key}).status_code == 200
        other = client.post(CHAT, json=ASK, headers={"origin": "https://evil.example", **key})
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers


def test_the_page_is_served_with_a_strict_policy_and_nothing_beside_it(tmp_path, model):
    from fastapi.testclient import TestClient

    from minicpm.server.settings import Settings
    from server.stub import StubEngine

    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<!doctype html>")
    (tmp_path / "page" / "chat.js").write_text("1")
    (tmp_path / "secret.js").write_text("2")
    settings = Settings(allowed_hosts=None, api_keys=KEYS)
    client = TestClient(create_app(Serving(StubEngine(), model, settings), tmp_path / "page"))
    index = client.get("/")
    assert index.text == "<!doctype html>" and index.headers["content-type"].startswith("text/html")
    assert index.headers["content-security-policy"].startswith("default-src 'none'")
    assert client.get("/page/chat.js").text == "1"
    for path in ("/page/../secret.js", "/page/%2e%2e/secret.js", "/page/..%2fsecret.js", "/page/", "/page/nothing.js"):
        assert client.get(path).status_code in (401, 404)


def test_the_page_of_the_package_is_there(nano: Running):
    with nano.client() as client:
        index = client.get("/")
        assert index.status_code == 200 and "script-src 'self'" in index.headers["content-security-policy"]
        for name in re.findall(r'(?:src|href)="(page/[^"]+)"', index.text):
            assert client.get(f"/{name}").status_code == 200


def test_only_an_origin_equal_to_the_host_is_the_servers_own(plain: Running):
    host = plain.url.removeprefix("http://")
    name = host.partition(":")[0]
    near = (
        f"{host}.evil.example",
        f"evil.example.{host}",
        f"{host}0",
        f"1{host}",
        host[:-1],
        host[1:],
        name,
        f"x@{host}",
    )
    with plain.client() as client:
        for other in near:
            response = client.get("/v1/models", headers={"origin": f"http://{other}"})
            assert (response.status_code, error_of(response)["code"]) == (403, "origin_not_allowed"), other


def test_only_an_origin_equal_to_an_allowed_one_may_ask(start: Callable[..., Running]):
    mine = "https://chat.example"
    with start(cors_origins=(mine,)).client() as client:
        assert client.get("/v1/models", headers={"origin": mine}).status_code == 200
        for other in (f"{mine}.evil.example", mine[:-1], "http://chat.example", f"{mine}:444", ""):
            assert client.get("/v1/models", headers={"origin": other}).status_code == 403, other


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[::1", "http://]:80", "//", "http://a:b:c", "\\", "http://[v1.x]"]
)
def test_a_malformed_origin_is_one_without_access(plain: Running, origin: str):
    with plain.client() as client:
        response = client.get("/v1/models", headers={"origin": origin})
        assert (response.status_code, error_of(response)["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    "origin",
    ["https://chat.example", "app://obsidian.md", "chrome-extension://abcdef", "capacitor://localhost", "null"],
)
@pytest.mark.parametrize(
    "headers",
    ["content-type,authorization", "x-stainless-os,x-stainless-retry-count", "openai-beta", "x-request-id,x-api-key"],
)
def test_pages_of_an_allowed_origin_may_send_what_clients_send(
    start: Callable[..., Running], origin: str, headers: str
):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": headers}
    private = {"access-control-request-private-network": "true"}
    with start(cors_origins=(origin,)).client() as client:
        allowed = client.options(CHAT, headers={"origin": origin, **asked, **private})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == origin
        assert allowed.headers["access-control-allow-private-network"] == "true"
        assert set(headers.split(",")) <= set(allowed.headers["access-control-allow-headers"].split(","))
        refused = client.options(CHAT, headers={"origin": "https://evil.example", **asked})
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        answer = client.post(CHAT, json=ASK, headers={"origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/api/chat"])
def test_a_page_of_an_allowed_origin_may_read_errors_that_nobody_expected(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
):
    def broken(*arguments: object, **options: object) -> None:
        raise ArithmeticError("secret words of the inside")

    monkeypatch.setattr(ServedModel, "check_prompt", broken)
    mine = "https://chat.example"
    body = {"model": "nano", **({"input": "Hi"} if path == "/v1/responses" else ASK)}
    with start(cors_origins=(mine,)).client() as client:
        answer = client.post(path, json=body, headers={"origin": mine})
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.headers["access-control-allow-origin"] == mine
        assert f"request {answer.headers['x-request-id']} failed" in caplog.text and "ArithmeticError" in caplog.text
        other = client.post(path, json=body, headers={"origin": "https://evil.example"})
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers


def test_with_a_star_every_origin_may_ask(start: Callable[..., Running]):
    with start(cors_origins=("*",)).client() as client:
        assert client.get("/v1/models", headers={"origin": "https://any.example"}).status_code == 200


@pytest.mark.parametrize("given", ["bearer first-key", "BEARER first-key", "Bearer   first-key"])
def test_the_schemes_case_and_blanks_before_a_key_do_not_matter(keyed: Running, given: str):
    with keyed.client(headers={"authorization": given}) as client:
        assert client.get("/v1/models").status_code == 200


def test_a_key_behind_another_scheme_does_not_open(keyed: Running):
    with keyed.client(headers={"authorization": f"Basic {KEYS[1]}"}) as client:
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/health/", "/pages", "/page"])
def test_only_the_page_and_the_health_check_are_open(keyed: Running, path: str):
    with keyed.client() as client:
        assert client.get(path).status_code == 401
