"""A real Chromium, driven headless. Nothing but this machine is reachable for it, and an attempt fails the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from browser.screens import CHROMIUM, DESKTOP
from browser.scripted_server import ScriptedServer


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        sync_api.expect.set_options(timeout=120_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(url, viewport=PHONE, locale="zh-CN")`; at the end no page may have erred or asked another machine."""
    contexts: list[Any] = []
    problems: list[str] = []

    def keep_local(route: Any) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("data", "blob") or url.hostname == "127.0.0.1":
            route.continue_()
        else:
            problems.append(f"asked {route.request.url}")
            route.abort()

    def note(message: Any) -> None:
        # The browser logs every 4xx, which the pages tell their user.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def open_(url: str, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": DESKTOP, "locale": "en-US", **options})
        contexts.append(context)
        context.route("**/*", keep_local)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.set_default_timeout(120_000)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted
