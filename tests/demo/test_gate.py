"""What of Gradio a browser may reach. Everything else is answered before Gradio sees it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("gradio")

import httpx

from demo.scripted_source import ScriptedSource
from minicpm.demo.app import create_app
from minicpm.server.addresses import LOOPBACK_NAMES

HOME = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def app() -> Iterator[object]:
    yield create_app(ScriptedSource())


@pytest.fixture(scope="module")
def behind_proxy() -> Iterator[object]:
    names = ("chat.example",)
    yield create_app(ScriptedSource(), hosts=(*LOOPBACK_NAMES, *names), pages=names)


def asked(app, method: str, path: str, **options) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOME) as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def test_the_page_is_served_and_may_ask_nobody_else(app):
    response = asked(app, "GET", "/")
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.com/"),
        ("POST", "/gradio_api/call/on_submit"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/component_server"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/login"),
        ("GET", "/static/../config/../gradio_api/file=/etc/passwd"),
    ],
)
def test_files_other_hosts_and_descriptions_are_out_of_reach(app, method, path):
    assert asked(app, method, path).status_code == 404


def test_other_names_and_pages_of_other_origins_are_refused(app):
    assert asked(app, "GET", "/", headers={"Host": "rebound.example"}).status_code == 403
    foreign = {"Origin": "https://evil.example"}
    assert asked(app, "POST", "/gradio_api/queue/join", headers=foreign, json={}).status_code == 403
    assert asked(app, "GET", "/config", headers={"Origin": HOME}).status_code == 200


@pytest.mark.parametrize("origin", ["http://[", "http://a]b", "null", "://", "chat.example", "file:///etc"])
def test_a_malformed_origin_is_refused(app, origin):
    assert asked(app, "GET", "/", headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize("host", ["chat.example", "chat.example:443", "127.0.0.1:7860"])
@pytest.mark.parametrize("path", ["/config", "/gradio_api/queue/join"])
def test_a_proxy_may_forward_its_own_name_or_ours(behind_proxy, host, path):
    headers = {"Host": host, "Origin": "https://Chat.example"}
    method, body = ("GET", None) if path == "/config" else ("POST", {"data": [], "fn_index": 0, "session_hash": "x"})
    response = asked(behind_proxy, method, path, headers=headers, json=body)
    assert response.status_code != 403, response.text


def test_a_proxys_name_opens_the_demo_to_no_other_page(behind_proxy):
    for origin in ("https://evil.example", "https://chat.example.evil.example", "http://localhost:3000", "http://["):
        response = asked(behind_proxy, "GET", "/config", headers={"Host": "127.0.0.1:7860", "Origin": origin})
        assert response.status_code == 403
        assert "--allowed-host" in response.text
    assert asked(behind_proxy, "GET", "/", headers={"Host": "rebound.example"}).status_code == 403


def test_starting_and_serving_the_page_asks_no_other_machine():
    code = (
        "import asyncio, sys\n"
        "asked = []\n"
        "sys.addaudithook(lambda event, args: asked.append(args) if event in ('socket.connect', 'socket.getaddrinfo') "
        "else None)\n"
        "import httpx\n"
        "from demo.scripted_source import ScriptedSource\n"
        "from minicpm.demo.app import create_app\n"
        "app = create_app(ScriptedSource())\n"
        "async def ask():\n"
        "    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://127.0.0.1') as client:\n"
        "        return await client.get('/')\n"
        "print(asyncio.run(ask()).status_code, [a for a in asked if '127.0.0.1' not in map(str, a)])\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split("\n")[0] == "200 []"
