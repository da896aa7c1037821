"""`minicpm demo` in a real browser, against answers that the test writes."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from browser.forwarding import Forwarding
from browser.test_page import HOSTILE, ON_PHONE
from demo.scripted_source import ScriptedSource

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
import uvicorn  # noqa: E402

from minicpm.demo.app import create_app  # noqa: E402
from minicpm.demo.source import Source  # noqa: E402
from minicpm.server.addresses import bind  # noqa: E402

expect = sync_api.expect


@pytest.fixture
def source() -> ScriptedSource:
    return ScriptedSource()


@pytest.fixture
def url(source: ScriptedSource) -> Iterator[str]:
    with serving(source) as address:
        yield address


@pytest.fixture
def url_of_256(source: ScriptedSource) -> Iterator[str]:
    source.context_length = 256
    with serving(source) as address:
        yield address


@contextmanager
def serving(source: Source, **access: tuple[str, ...]) -> Iterator[str]:
    """The demo over a source; its address."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(create_app(source, **access), log_level="warning", timeout_graceful_shutdown=1, ws="none")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    listener.close()


def ask(page, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#submit").click()


def bot(page):
    return page.locator('[data-testid="bot"]').last


def until(holds: Callable[[], bool], seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def test_an_answer_streams_and_tells_its_speed(open_page, source, url):
    source.pieces, source.waits = ["Bei"], True
    page = open_page(url)
    expect(page.get_by_text("scripted · by hand")).to_be_visible()
    ask(page, "Which city?")
    expect(bot(page)).to_have_text("Bei")
    expect(page.locator("#question textarea")).to_have_value("")
    source.more.put("jing")
    expect(bot(page)).to_have_text("Beijing")
    source.more.put(None)
    expect(page.locator("#note")).to_have_text(re.compile(r"^\s*2 tokens · \d+\.\d tokens/s\s*$"))
    expect(page.locator("#submit")).to_be_visible()
    sampling = source.params[0]
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.3, 0.9, 1024)


@pytest.mark.parametrize(
    "locale, said",
    [("en-US", "Your question (Enter sends, Shift+Enter breaks the line)"), ("zh-CN", "输入您的问题（Enter 发送")],
)
def test_enter_sends_shift_enter_breaks_the_line_and_the_page_says_so(open_page, source, url, locale, said):
    source.pieces = ["Yes."]
    page = open_page(url, locale=locale)
    box = page.locator("#question textarea")
    expect(box).to_have_attribute("placeholder", re.compile(re.escape(said)))
    box.click()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(bot(page)).to_have_text("Yes.")
    expect(box).to_have_value("")
    assert [m["content"] for m in source.asked[0]] == ["one\ntwo"]


def test_enter_while_an_answer_is_written_keeps_the_next_question(open_page, source, url):
    source.pieces, source.waits = ["So far"], True
    page = open_page(url)
    ask(page, "Count.")
    expect(bot(page)).to_have_text("So far")
    box = page.locator("#question textarea")
    box.fill("And then?")
    box.press("Enter")
    source.more.put(None)
    expect(page.locator("#submit")).to_be_visible()
    expect(box).to_have_value("And then?")
    box.press("Enter")
    expect(page.locator('[data-testid="bot"]')).to_have_count(2)
    source.more.put(None)
    assert until(lambda: len(source.asked) == 2)


@pytest.mark.parametrize("forwards_host", [True, False])
def test_it_works_behind_a_proxy(open_page, source, forwards_host):
    source.pieces = ["Beijing"]
    with serving(source, pages=("127.0.0.1",)) as address, Forwarding(address, forwards_host) as proxy:
        page = open_page(proxy.url)
        ask(page, "Which city?")
        expect(bot(page)).to_have_text("Beijing")


def test_the_longest_answer_leaves_half_of_a_small_context(open_page, source, url_of_256):
    page = open_page(url_of_256)
    source.pieces = ["x"]
    ask(page, "Well?")
    expect(bot(page)).to_have_text("x")
    assert source.params[0].max_tokens == 128


def test_stop_ends_the_work_and_keeps_what_was_said(open_page, source, url):
    source.pieces, source.waits = ["So far"], True
    page = open_page(url)
    ask(page, "Count.")
    expect(bot(page)).to_have_text("So far")
    page.locator("#stop").click()
    expect(page.locator("#note")).to_contain_text("stopped")
    assert until(lambda: source.ended == 1)
    source.pieces, source.waits = ["More."], False
    ask(page, "Go on.")
    expect(bot(page)).to_have_text("More.")
    assert [m["content"] for m in source.asked[1]] == ["Count.", "So far", "Go on."]


def test_closing_the_tab_ends_the_work(open_page, source, url):
    source.pieces, source.waits = ["So far"], True
    page = open_page(url)
    ask(page, "Count.")
    expect(bot(page)).to_have_text("So far")
    page.close()
    assert until(lambda: source.ended == 1)


def test_regenerate_undo_and_clear(open_page, source, url):
    page = open_page(url)
    for said in ("first", "second"):
        source.pieces = [said]
        ask(page, f"the {said}")
        expect(bot(page)).to_have_text(said)
        expect(page.locator("#submit")).to_be_visible()
    source.pieces = ["third"]
    page.locator("#regenerate").click()
    expect(bot(page)).to_have_text("third")
    assert source.asked[2] == source.asked[1]
    expect(page.locator('[data-testid="bot"]')).to_have_count(2)
    page.locator("#undo").click()
    expect(page.locator('[data-testid="bot"]')).to_have_count(1)
    expect(page.locator("#question textarea")).to_have_value("the second")
    page.locator("#clear").click()
    expect(page.locator('[data-testid="bot"]')).to_have_count(0)
    source.pieces = ["afresh"]
    ask(page, "Again?")
    expect(bot(page)).to_have_text("afresh")
    assert [m["content"] for m in source.asked[-1]] == ["Again?"]


def test_the_system_prompt_and_an_example_in_chinese(open_page, source, url):
    source.pieces = ["北", "京"]
    page = open_page(url, locale="zh-CN")
    page.get_by_label("系统提示词").fill("请简短。")
    page.get_by_text("中国的首都是哪座城市？").click()
    expect(bot(page)).to_have_text("北京")
    expect(page.locator("#note")).to_contain_text("2 个 token")
    assert [m["content"] for m in source.asked[0]] == ["请简短。", "中国的首都是哪座城市？"]
    for name in ("提交", "重新生成", "撤回", "清空"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()


def test_an_error_is_a_sentence_and_gives_the_question_back(open_page, source, url):
    source.error = "the queue is <b>full</b>"
    page = open_page(url)
    ask(page, "Well?")
    expect(page.locator("#note")).to_have_text(re.compile(r"^\s*⚠ the queue is <b>full</b>\s*$"))
    expect(page.locator("#question textarea")).to_have_value("Well?")
    expect(page.locator('[data-testid="bot"]')).to_have_count(0)


def test_two_sessions_are_two_conversations(open_page, source, url):
    source.pieces = ["yes"]
    pages = [open_page(url), open_page(url)]
    for page, question in zip(pages, ("one", "two")):
        ask(page, question)
        expect(bot(page)).to_have_text("yes")
    assert [[m["content"] for m in asked] for asked in source.asked] == [["one"], ["two"]]


def test_a_hostile_answer_runs_nothing(open_page, source, url):
    # Without addresses of other hosts: the policy forbids those, and test_gate.py checks it.
    source.pieces = [HOSTILE.replace("http://203.0.113.1/steal", "data:,").replace("src=x", "src=data:,")]
    page = open_page(url)
    ask(page, "Well?")
    expect(bot(page).locator("pre").last).to_contain_text("window.hurt = 11")
    assert page.evaluate("window.hurt") is None
    assert bot(page).locator("script, iframe, style, [onerror], [onload], [onmouseover]").count() == 0
    assert bot(page).locator('a[href^="javascript"]').count() == 0


def test_a_phone_shows_everything_without_scrolling_sideways(open_page, source, url):
    source.pieces = ["```\n" + "wide " * 100 + "\n```\n" + "x" * 300]
    page = open_page(url, **ON_PHONE)
    page.locator("#question textarea").fill("Well?")
    page.locator("#submit").tap()
    expect(bot(page)).to_contain_text("wide")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("submit", "regenerate", "undo", "clear"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
