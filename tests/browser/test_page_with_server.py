"""The chat page against the server it belongs to, with MiniCPM-nano behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")
expect = sync_api.expect

from minicpm import LLM  # noqa: E402
from minicpm.engine.service import Service  # noqa: E402
from minicpm.server.model import ServedModel  # noqa: E402
from minicpm.server.settings import Settings  # noqa: E402
from server.running import Running, running  # noqa: E402


@pytest.fixture
def real() -> Iterator[Running]:
    llm = LLM(backend="numpy")
    with (
        Service(llm) as service,
        running(service, ServedModel.of(llm, ["minicpm-nano"]), Settings(grace_s=1)) as server,
    ):
        yield server


def test_the_page_and_the_server_understand_each_other(open_page, real: Running):
    page = open_page(real.url)
    expect(page.locator("#model")).to_have_text("minicpm-nano")
    page.get_by_label("Your question").fill("What is the capital of Japan?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("article.assistant .text")).to_contain_text("Tokyo")
    expect(page.locator("article.assistant .cost")).to_contain_text("tokens/s")
