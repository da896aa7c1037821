"""The chat page of `minicpm serve`, in a real browser, against answers that the test writes."""

from __future__ import annotations

import re

import pytest

from browser.screens import PHONE
from browser.scripted_server import PAGE

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

ON_PHONE = {"viewport": PHONE, "has_touch": True, "is_mobile": True}


def ask(page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Send").click()


def answer_of(page, index: int = -1):
    articles = page.locator("article.assistant")
    return (articles.last if index == -1 else articles.nth(index)).locator(".text")


def test_the_page_is_small_and_self_contained():
    files = [path for path in PAGE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000
    for path in files:
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text(encoding="utf-8")), path.name


def test_an_answer_streams_and_tells_its_speed(open_page, server):
    page = open_page(server.url)
    expect(page.locator("#model")).to_have_text("scripted")
    answer = server.will_say("Bei", waits=True)
    ask(page, "Which city?")
    expect(page.locator("article.user .text")).to_have_text("Which city?")
    expect(answer_of(page)).to_have_text("Bei")
    answer.say("jing")
    expect(answer_of(page)).to_have_text("Beijing")
    answer.say(".")
    answer.end()
    expect(page.locator("article.assistant .cost")).to_have_text(re.compile(r"^3 tokens · \d+\.\d tokens/s$"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_enter_sends_and_shift_enter_breaks_the_line(open_page, server):
    page = open_page(server.url)
    server.will_say("Yes.")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(answer_of(page)).to_have_text("Yes.")
    assert server.requests[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]


def test_enter_that_chooses_characters_of_an_input_method_does_not_send(open_page, server):
    page = open_page(server.url)
    page.get_by_label("Your question").fill("bei")
    page.evaluate(
        """document.getElementById("question").dispatchEvent(
            new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true, cancelable: true}))"""
    )
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_label("Your question")).to_have_value("bei")


def test_stop_ends_the_servers_work_and_keeps_what_was_said(open_page, server):
    page = open_page(server.url)
    answer = server.will_say("So far", waits=True)
    ask(page, "Count.")
    expect(answer_of(page)).to_have_text("So far")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("article.assistant .cost")).to_contain_text("stopped")
    assert answer.was_left.wait(120)
    server.will_say("More.")
    ask(page, "Go on.")
    expect(answer_of(page)).to_have_text("More.")
    assert [m["content"] for m in server.requests[1]["messages"]] == ["Count.", "So far", "Go on."]


def test_escape_stops_too(open_page, server):
    page = open_page(server.url)
    answer = server.will_say("a", waits=True)
    ask(page, "Count.")
    expect(answer_of(page)).to_have_text("a")
    page.keyboard.press("Escape")
    assert answer.was_left.wait(120)


def test_regenerate_asks_the_last_question_again(open_page, server):
    page = open_page(server.url)
    server.will_say("first")
    ask(page, "Well?")
    expect(answer_of(page)).to_have_text("first")
    server.will_say("second")
    page.get_by_role("button", name="Regenerate").click()
    expect(answer_of(page)).to_have_text("second")
    expect(page.locator("article")).to_have_count(2)
    assert server.requests[0]["messages"] == server.requests[1]["messages"]


def test_a_regeneration_that_fails_leaves_the_old_answer(open_page, server):
    page = open_page(server.url)
    server.will_say("first")
    ask(page, "Well?")
    expect(answer_of(page)).to_have_text("first")
    server.will_say(status=429, error="too many requests wait; try again in 3 s")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("status")).to_have_text("too many requests wait; try again in 3 s")
    expect(answer_of(page)).to_have_text("first")


def test_undo_takes_the_last_round_back_into_the_box(open_page, server):
    page = open_page(server.url)
    for question, said in (("one", "1"), ("two", "2")):
        server.will_say(said)
        ask(page, question)
        expect(answer_of(page)).to_have_text(said)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("article")).to_have_count(2)
    expect(page.get_by_label("Your question")).to_have_value("two")


def test_a_conversation_outlives_the_page_until_it_is_cleared(open_page, server):
    page = open_page(server.url)
    server.will_say("**kept**")
    ask(page, "Well?")
    expect(page.locator("article.assistant .cost")).not_to_be_empty()
    page.reload()
    expect(answer_of(page).locator("strong")).to_have_text("kept")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("article")).to_have_count(0)
    assert page.evaluate("localStorage.getItem('minicpm.chat')") is None
    page.get_by_role("button", name="Bring it back").click()
    expect(page.locator("article")).to_have_count(2)
    page.get_by_role("button", name="Clear").click()
    page.reload()
    expect(page.get_by_role("heading", name="Ask a question")).to_be_visible()


def test_damaged_storage_begins_an_empty_conversation(open_page, server):
    page = open_page(server.url)
    for damage in ("{", "null", '[{"role": "user", "content": 1}]', '[{"role": "system", "content": ""}, {}]'):
        page.evaluate("text => { localStorage['minicpm.chat'] = localStorage['minicpm.settings'] = text }", damage)
        page.reload()
        expect(page.get_by_role("heading", name="Ask a question")).to_be_visible()


def test_settings_reach_the_server_and_stay(open_page, server):
    page = open_page(server.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Longest answer (tokens)").fill("64")
    page.get_by_role("button", name="Done").click()
    page.reload()
    server.will_say("Yes.")
    ask(page, "Well?")
    expect(answer_of(page)).to_have_text("Yes.")
    request = server.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (request["temperature"], request["max_tokens"], "top_p" in request) == (0.5, 64, False)


def test_the_key_is_asked_for_where_the_server_wants_one(open_page, server):
    server.key = "secret"
    page = open_page(server.url)
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#model")).to_have_text("scripted")
    server.will_say("Yes.")
    ask(page, "Well?")
    expect(answer_of(page)).to_have_text("Yes.")
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


@pytest.mark.parametrize(
    "script, sentence, is_said_kept",
    [
        ({"status": 400, "error": "temperature must be 0 or more"}, "temperature must be 0 or more", False),
        ({"status": 500, "error": ""}, "", False),
        ({"error": "the engine has ended"}, "the engine has ended", True),
        ({"breaks": True}, "The connection broke off before the answer was complete.", True),
    ],
    ids=["refused", "failed", "ended", "broken"],
)
def test_errors_are_sentences_and_lose_nothing(open_page, server, script, sentence, is_said_kept):
    page = open_page(server.url)
    server.will_say("Half an", **script)
    ask(page, "Well?")
    expect(page.get_by_role("status")).to_have_text(sentence)
    if is_said_kept:
        expect(answer_of(page)).to_have_text("Half an")
        expect(page.locator("article.assistant .cost")).to_contain_text("broken off")
    else:
        expect(page.locator("article")).to_have_count(0)
        expect(page.get_by_label("Your question")).to_have_value("Well?")


def test_a_server_that_is_gone_is_said(open_page, server):
    page = open_page(server.url)
    expect(page.locator("#model")).to_have_text("scripted")
    page.context.set_offline(True)
    ask(page, "Well?")
    expect(page.get_by_role("status")).to_have_text("The server does not answer. Is it still running?")


HOSTILE = """<script>window.hurt = 1</script><img src=x onerror="window.hurt = 2"><svg onload="window.hurt = 3">
[click](javascript:window.hurt=4) ![p](http://203.0.113.1/steal) <a href="javascript:window.hurt=5">x</a>
<iframe srcdoc="<script>parent.hurt = 6</script>"></iframe><style>body { display: none }</style>

# <b onmouseover="window.hurt = 7">heading</b>
- <form action="http://203.0.113.1/"><button>go</button></form>
> **<img src=x onerror="window.hurt = 8">** `<u>` *</p>*

```"><script>window.hurt=9</script>
</code></pre><script>window.hurt = 10</script>
```
```html
<script>window.hurt = 11</script>
```"""


def test_a_hostile_answer_stays_text(open_page, server):
    page = open_page(server.url)
    answer = server.will_say(*[HOSTILE[i : i + 7] for i in range(0, len(HOSTILE), 7)], waits=True)
    ask(page, "<img src=x onerror='window.hurt = 12'>")
    answer.end()
    expect(page.locator("article.assistant .cost")).to_contain_text("tokens/s")
    expect(page.locator("article.user .text")).to_have_text("<img src=x onerror='window.hurt = 12'>")
    attributes = "nodes => nodes.flatMap(n => n.getAttributeNames()).filter(a => a.startsWith('on') || a === 'href')"
    foreign = "script, img, svg, iframe, style, a, b, u, form, input, link, object, embed"
    for _ in ("as it streamed", "as it was kept"):
        assert page.locator(f"article :is({foreign})").count() == 0
        assert page.locator("article *").evaluate_all(attributes) == []
        assert page.evaluate("window.hurt") is None
        expect(answer_of(page)).to_contain_text('<script>window.hurt = 1</script><img src=x onerror="window.hurt = 2">')
        page.reload()


def test_a_hostile_name_of_a_model_or_error_stays_text(open_page, server):
    page = open_page(server.url)
    server.will_say(status=400, error="<img src=x onerror='window.hurt = 1'>")
    ask(page, "Well?")
    expect(page.get_by_role("status")).to_have_text("<img src=x onerror='window.hurt = 1'>")
    assert page.locator("footer img").count() == 0


def test_the_work_for_an_answer_grows_with_its_length_alone(open_page, server):
    page = open_page(server.url)
    for part in ("**a ", "*a ", "`a``b```", "```\n", "> ", "- a\n ", "[](", "#", "`" * 50 + " "):
        server.will_say(part * (30_000 // len(part)))
        ask(page, "Go on")
        expect(page.locator("article.assistant .cost")).to_have_text("1 token")
        page.get_by_role("button", name="Clear").click()


def test_markdown_is_shown_and_code_is_copied_to_the_letter(open_page, server):
    page = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    code = "def f(a):\n    return a * 2  # <b>\n\nprint(f(3) * 4)"
    server.will_say(
        f"# Title\n\nSome *soft* and **hard** `x`, 2*3*4.\n\n- one\n- two\n\n1. a\n2. b\n\n```python\n{code}\n```\nEnd."
    )
    ask(page, "Well?")
    answer = answer_of(page)
    expect(answer.locator("h3")).to_have_text("Title")
    expect(answer.locator("em")).to_have_text("soft")
    expect(answer.locator("strong")).to_have_text("hard")
    expect(answer.locator("p").first).to_have_text("Some soft and hard x, 2*3*4.")
    expect(answer.locator("ul li")).to_have_text(["one", "two"])
    expect(answer.locator("ol li")).to_have_text(["a", "b"])
    expect(answer.locator("pre code")).to_have_text(code, use_inner_text=True)
    answer.get_by_role("button", name="Copy").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == code
    page.locator("article.assistant > .note").get_by_role("button", name="Copy").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.startsWith('# Title'))")


def test_the_page_speaks_chinese_to_a_chinese_browser_and_changes_on_request(open_page, server):
    page = open_page(server.url, locale="zh-CN")
    expect(page.get_by_role("heading", name="问个问题吧")).to_be_visible()
    server.will_say("北", "京", "。")
    page.get_by_role("button", name="中国的首都是哪座城市？").click()
    expect(answer_of(page)).to_have_text("北京。")
    expect(page.locator("article.assistant .cost")).to_contain_text("3 个 token")
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    page.reload()
    expect(page.locator("article.assistant .cost")).to_contain_text("3 tokens")
    assert page.evaluate("document.documentElement.lang") == "en"


def test_colours_follow_the_system_and_can_be_chosen(open_page, server):
    page = open_page(server.url, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    theme = page.get_by_role("button", name="Light or dark")
    theme.click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    theme.click()
    assert page.evaluate(ground) == dark


def test_a_phone_shows_everything_without_scrolling_sideways(open_page, server):
    page = open_page(server.url, **ON_PHONE)
    server.will_say("```\n" + "wide " * 100 + "\n```\n" + "x" * 500)
    page.get_by_label("Your question").fill("Well?")
    page.get_by_role("button", name="Send").tap()
    expect(page.locator("article.assistant .cost")).to_have_text("1 token")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("Send", "Regenerate", "Undo", "Clear", "Settings"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844
        assert min(box["height"], box["width"]) >= 38  # a finger's


def test_every_control_has_a_name_and_is_reached_by_keyboard(open_page, server):
    page = open_page(server.url)
    server.will_say("Yes.")
    ask(page, "Well?")
    expect(page.locator("article.assistant .cost")).to_have_text("1 token")
    page.get_by_label("Your question").fill("More")
    unnamed = page.locator("button:visible, textarea:visible, input:visible").evaluate_all(
        "nodes => nodes.filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.length)).map(n => n.id)"
    )
    assert unnamed == []
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"language", "theme", "open-settings", "question", "send", "regenerate", "undo", "clear"} <= reached
