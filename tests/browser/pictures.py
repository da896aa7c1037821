"""Pictures of the pages for the documents: `python tests/browser/pictures.py` writes docs/images.

Both pages are the real ones over the built-in model, whose answers are greedy here: another run gives the same words.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from screens import CHROMIUM, DESKTOP, PHONE

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLOURS = 128  # few, flat colours: an eighth of the bytes
QUESTIONS = ("What can you do?", "What is the capital of Japan?", "Tell me a story about a brave rabbit.")


@contextmanager
def running(verb: str) -> Iterator[str]:
    """`minicpm VERB` on a free port; its address."""
    command = [sys.executable, "-m", "minicpm", verb, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield next(m[0] for line in process.stderr if (m := re.search(r"http://[\d.:]+", line))) + "/"
        finally:
            process.send_signal(signal.SIGINT)


def talk_on_page(page: Page) -> None:
    page.evaluate("""localStorage["minicpm.settings"] = '{"temperature": "0"}'""")
    page.reload()
    for count, question in enumerate(QUESTIONS, start=1):
        page.locator("#question").fill(question)
        page.locator("#send").click()
        expect(page.locator("article.assistant")).to_have_count(count)
        expect(page.locator("article.assistant[aria-busy]")).to_have_count(0)


def talk_on_demo(page: Page) -> None:
    page.get_by_label(re.compile("number input for (Temperature|温度)")).fill("0")
    for count, question in enumerate(QUESTIONS, start=1):
        page.locator("#question textarea").fill(question)
        page.locator("#submit").click()
        expect(page.locator('[data-testid="bot"]')).to_have_count(count)
        expect(page.locator("#note")).to_contain_text("token")
        expect(page.locator("#submit")).to_be_visible()
    page.wait_for_timeout(1000)  # the last lines scroll into sight


def take(browser: Any, url: str, name: str, talk: Any, **options: Any) -> None:
    context = browser.new_context(**options)
    page = context.new_page()
    page.goto(url)
    page.locator("#question").wait_for()
    page.wait_for_timeout(500)
    if talk is not None:
        talk(page)
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS)
    picture.save(IMAGES / name, optimize=True)
    context.close()


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    phone = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with running("serve") as url:
            take(browser, url, "page.png", talk_on_page, viewport=DESKTOP)
            take(browser, url, "page-phone.png", talk_on_page, **phone, color_scheme="dark")
            take(browser, url, "page-phone-zh.png", None, **phone, locale="zh-CN")
        with running("demo") as url:
            take(browser, url, "demo.png", talk_on_demo, viewport=DESKTOP)
            take(browser, url, "demo-phone-zh.png", None, **phone, locale="zh-CN")
        browser.close()


if __name__ == "__main__":
    main()
