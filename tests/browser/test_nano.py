"""Both pages over the built-in model and the real server, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from browser.test_demo import ask as ask_demo
from browser.test_demo import bot, serving
from browser.test_page import answer_of, ask
from minicpm import LLM

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")
for library in ("fastapi", "uvloop", "gradio"):
    pytest.importorskip(library)

from minicpm.demo.local import LocalSource  # noqa: E402
from minicpm.demo.remote import RemoteSource  # noqa: E402
from minicpm.engine.service import Service  # noqa: E402
from minicpm.server.model import ServedModel  # noqa: E402
from minicpm.server.settings import Settings  # noqa: E402
from server.running import running  # noqa: E402

expect = sync_api.expect
QUESTION, ANSWER = "What is the capital of Japan?", "The capital of Japan is Tokyo."


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service(LLM(max_batch=4)) as service:
        yield service


@pytest.fixture(scope="module")
def model(service: Service) -> ServedModel:
    return ServedModel.of(service.llm, ["minicpm-nano"])


def set_option(page, label: str, value: str) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Done").click()


def test_the_page_talks_with_nano(open_page, service, model):
    with running(service, model, Settings()) as server:
        page = open_page(server.url)
        expect(page.locator("#model")).to_have_text("minicpm-nano")
        set_option(page, "Temperature", "0")
        ask(page, QUESTION)
        expect(answer_of(page)).to_have_text(ANSWER)
        expect(page.locator("article.assistant .cost")).to_have_text(re.compile(r"^\d+ tokens · \d+\.\d tokens/s$"))
        set_option(page, "Longest answer (tokens)", "5")
        page.get_by_role("button", name="Regenerate").click()
        expect(page.locator("article.assistant .cost")).to_contain_text("5 tokens")
        expect(page.locator("article.assistant .cost")).to_contain_text("cut at the longest allowed")
        set_option(page, "Temperature", "-1")
        page.get_by_role("button", name="Regenerate").click()
        expect(page.get_by_role("status")).to_contain_text("temperature must be 0")


def test_the_page_asks_for_the_real_servers_key(open_page, service, model):
    with running(service, model, Settings(api_keys=("secret",))) as server:
        page = open_page(server.url)
        page.get_by_label("API key").fill("wrong")
        page.get_by_label("API key").press("Tab")
        expect(page.locator("#model")).to_have_text("")
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Done").click()
        expect(page.locator("#model")).to_have_text("minicpm-nano")


def test_the_demo_talks_with_nano_in_its_process_and_behind_the_server(open_page, service, model):
    with running(service, model, Settings()) as server:
        for source in (LocalSource(service.llm, service, "minicpm-nano"), RemoteSource(server.url + "/v1")):
            with serving(source) as url:
                page = open_page(url)
                page.get_by_label("number input for Temperature").fill("0")
                ask_demo(page, QUESTION)
                expect(bot(page)).to_have_text(ANSWER)
                expect(page.locator("#note")).to_contain_text("tokens/s")
