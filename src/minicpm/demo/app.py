"""The Gradio page: the controls of the 2024 demos over a Source. It holds no model; its texts are in words.py."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

# Gradio reads it at import. Nothing is sent to other hosts.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from fastapi import FastAPI

from minicpm.demo.conversation import Conversation
from minicpm.demo.gate import Gate
from minicpm.demo.source import Source
from minicpm.demo.words import EXAMPLES, WORDS, language_of, note_text
from minicpm.hub import network
from minicpm.sampling import SamplingParams
from minicpm.server.addresses import LOOPBACK_NAMES

# Gradio makes HTTP clients at import, which fail on a proxy or on certificates that they cannot use.
with network.hidden_settings():
    import gradio as gr

MOST_NEW_TOKENS = 1024  # max_dec_len of the 2024 demos
# System fonts; Gradio would download others.
_FONT = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace"]
_CSS = """
.gradio-container > main, .gradio-container main.app { max-width: 76rem !important; width: 100%; margin: 0 auto; }
#head h2 { margin: 0; }
#note { min-height: 1.3rem; padding: 0 .25rem; }
#note p { font-size: .875rem; overflow-wrap: anywhere; }
#buttons { flex-wrap: nowrap; gap: .5rem; }
#buttons button { padding: .5rem .25rem; font-size: 1rem; white-space: nowrap; }
#chat .examples { grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
#chat .example { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
"""


def create_app(source: Source, hosts: tuple[str, ...] | None = LOOPBACK_NAMES, pages: tuple[str, ...] = ()) -> FastAPI:
    """The ASGI app of the demo; `hosts` and `pages` as in Gate."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, hosts=hosts, pages=pages)
    gr.mount_gradio_app(
        app,
        _page(source),
        path="/",
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        footer_links=["settings"],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=_TRANSLATED,
        theme=gr.themes.Soft(font=_FONT, font_mono=_MONO),
        css=_CSS,
    )
    return app


_TRANSLATED = gr.I18n(**WORDS, **{"zh-CN": WORDS["zh"]})


def _page(source: Source) -> Any:  # gr.Blocks, which gives its type away in a with statement
    word = _TRANSLATED
    start = source.sampling
    # vLLM refuses a limit that exceeds the rest of the context, so half of it is kept for the prompt.
    longest = max(1, min(MOST_NEW_TOKENS, (source.context_length or 2 * MOST_NEW_TOKENS) // 2))
    with gr.Blocks(title="MiniCPM", analytics_enabled=False, fill_width=True) as page:
        conversation = gr.State(Conversation)
        gr.Markdown(f"## MiniCPM\n{_plain(source.model)} · {_plain(source.engine)}", elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                chatbot = gr.Chatbot(
                    label=word("chat"),
                    show_label=False,
                    height="min(34rem, 55vh)",
                    buttons=["copy", "copy_all"],
                    sanitize_html=True,
                    allow_tags=True,  # list<int> is text; the tags of HTML are sanitized
                    placeholder=word("ask"),  # type: ignore[arg-type]
                    examples=[{"text": question} for question in EXAMPLES],
                    allow_file_downloads=False,
                    elem_id="chat",
                )
                note = gr.Markdown(elem_id="note", container=False)
                question = gr.Textbox(
                    show_label=False,
                    label=word("question"),
                    placeholder=word("type"),
                    lines=1,  # with more, Gradio's Enter breaks the line and Shift+Enter sends
                    max_lines=8,
                    autofocus=True,
                    max_length=100_000,
                    elem_id="question",
                )
                with gr.Row(elem_id="buttons"):
                    submit = gr.Button(word("submit"), variant="primary", min_width=60, elem_id="submit")
                    stop = gr.Button(word("stop"), variant="stop", min_width=60, visible=False, elem_id="stop")
                    regenerate = gr.Button(word("regenerate"), min_width=60, elem_id="regenerate")
                    undo = gr.Button(word("undo"), min_width=60, elem_id="undo")
                    clear = gr.Button(word("clear"), min_width=60, elem_id="clear")
            with gr.Column(scale=1, min_width=270):
                system = gr.Textbox(label=word("system"), lines=3, max_length=100_000, elem_id="system")
                controls = [
                    _slider("temperature", 0, 2, start.temperature, 0.05),
                    _slider("top_p", 0, 1, start.top_p, 0.05),
                    _slider("repetition_penalty", 0.5, 2, start.repetition_penalty, 0.01),
                    gr.Slider(1, longest, longest, step=1, label=word("max_dec_len")),
                ]

        shown = [chatbot, note, question, submit, stop]
        running: dict[str, Conversation] = {}

        def sampling(temperature: float, top_p: float, repetition_penalty: float, max_tokens: float) -> SamplingParams:
            """The values of the controls; other parameters are the model's defaults."""
            return replace(
                start,
                temperature=temperature,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                max_tokens=int(max_tokens),
            )

        async def answer(
            talk: Conversation, asked: str, box: str | None, system: str, params: SamplingParams, request: gr.Request
        ) -> AsyncGenerator[list[Any], None]:
            """Yield every state of an answer to `asked`; `box` is the question box's new content (None: keep)."""
            if not asked.strip():
                yield _seen(talk, request, box)
                return
            if talk.is_running:  # Enter while an answer is written; the box keeps the next question
                return
            rounds = len(talk.messages)
            running[str(request.session_hash)] = talk
            try:
                async for _ in talk.ask(source, asked, system, params):
                    yield _seen(talk, request, box)
                    box = None
            finally:
                running.pop(str(request.session_hash), None)
            if len(talk.messages) == rounds and talk.note.error:
                yield _seen(talk, request, asked)

        # Gradio counts a handler's positional parameters, so each handler names all the controls.

        async def on_submit(
            talk: Conversation, asked: str, system: str, t: float, p: float, r: float, n: int, request: gr.Request
        ) -> AsyncGenerator[list[Any], None]:
            async for seen in answer(talk, asked, "", system, sampling(t, p, r, n), request):
                yield seen

        async def on_example(
            talk: Conversation,
            system: str,
            t: float,
            p: float,
            r: float,
            n: int,
            request: gr.Request,
            event: gr.SelectData,
        ) -> AsyncGenerator[list[Any], None]:
            async for seen in answer(talk, event.value["text"], None, system, sampling(t, p, r, n), request):
                yield seen

        async def on_regenerate(
            talk: Conversation, system: str, t: float, p: float, r: float, n: int, request: gr.Request
        ) -> AsyncGenerator[list[Any], None]:
            async for seen in answer(talk, talk.undo(), None, system, sampling(t, p, r, n), request):
                yield seen

        # All handlers are coroutines, because a conversation may be used only on the event loop's thread.

        async def on_undo(talk: Conversation, request: gr.Request) -> list[Any]:
            asked = talk.undo()
            return _seen(talk, request, asked or None)

        async def on_clear(talk: Conversation, request: gr.Request) -> list[Any]:
            talk.clear()
            return _seen(talk, request, None)

        async def on_stop(talk: Conversation) -> None:
            talk.stop()

        async def on_leave(request: gr.Request) -> None:
            """Stop the answer of a closed tab at once; Gradio itself would notice only at the next token."""
            if (talk := running.get(str(request.session_hash))) is not None:
                talk.stop()

        how: dict[str, Any] = {
            "outputs": shown,
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        gr.on([submit.click, question.submit], on_submit, [conversation, question, system, *controls], **how)
        chatbot.example_select(on_example, [conversation, system, *controls], **how)
        regenerate.click(on_regenerate, [conversation, system, *controls], **how)
        undo.click(on_undo, [conversation], **how)
        gr.on([clear.click, chatbot.clear], on_clear, [conversation], **how)
        stop.click(on_stop, [conversation], **{**how, "outputs": None})
        page.unload(on_leave)
    # api_open=False: the queue accepts calls from this page's sessions only.
    page.queue(default_concurrency_limit=None, api_open=False)
    return page


def _slider(name: str, low: float, high: float, value: float, step: float) -> gr.Slider:
    low, high = min(low, value), max(high, value)
    return gr.Slider(low, high, value, step=step, label=_TRANSLATED(name), info=_TRANSLATED(f"{name}_info"))


def _seen(talk: Conversation, request: gr.Request, box: str | None) -> list[Any]:
    """Values of the outputs: conversation, note, the question's box (None keeps it), Submit or Stop."""
    text = note_text(talk.note, language_of(request.headers.get("accept-language", "")))
    return [
        [dict(message) for message in talk.messages],
        _plain(text),
        gr.skip() if box is None else box,
        gr.Button(visible=not talk.is_running),
        gr.Button(visible=talk.is_running),
    ]


def _plain(text: str) -> str:
    """Text with the special characters of Markdown and HTML escaped."""
    return "".join(f"&#{ord(c)};" if c in "\\`*_{}[]()<>#+-!|~&$:@" else c for c in text)
