"""A page written for the Gradio of 2024 (3.50 to 4) over the Gradio that is installed.

Between the two, Gradio dropped arguments and methods, and a chat became a list of messages where it was a list of
[question, answer] pairs. Both are given back to the script; nothing else of Gradio is changed.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Arguments of 2024 that say how something looks or waits. One that the installed Gradio still takes is passed on.
GONE = frozenset({
    *("bubble_full_width", "likeable", "show_copy_button", "show_copy_all_button", "show_share_button", "color_map"),
    *("show_download_button", "show_fullscreen_button", "mirror_webcam", "streamable", "plain", "title_size"),
    *("concurrency_count", "default_enabled", "client_position_to_load_data", "enable_queue", "show_tips", "encrypt"),
    *("show_api", "file_directories"),
})  # fmt: skip
# Names of 2024, and what has taken their place.
RENAMED = {"Box": "Group", "Variable": "State"}


def teach_when_imported() -> None:
    """Adapt Gradio as soon as the script imports it; nothing is imported here."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if "gradio" in sys.modules:
        teach(sys.modules["gradio"])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds gradio where everybody else does, and adapts it after its own code has run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "gradio":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            original = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                original(module)
                teach(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def teach(gradio: ModuleType) -> None:
    """Give back to this Gradio what scripts of 2024 expect of it."""
    blocks = getattr(gradio, "Blocks", None)
    chatbot = getattr(gradio, "Chatbot", None)
    if not hasattr(gradio, "__version__") or blocks is None or chatbot is None:
        return  # a module of the script's own
    base = next(kind for kind in reversed(blocks.__mro__) if kind.__name__ == "Block")
    kinds = {kind for kind in vars(gradio).values() if isinstance(kind, type) and issubclass(kind, base)}
    if "type" not in inspect.signature(chatbot.__init__).parameters:
        _speak_pairs(chatbot)
    for kind in kinds:
        for name in ("__init__", "launch", "queue"):
            if name in vars(kind):
                setattr(kind, name, _without_gone(getattr(kind, name), f"gr.{kind.__name__}"))
        for name in ("click", "submit", "change", "load", "select", "input", "then", "success"):
            if name in vars(kind):
                setattr(kind, name, _with_js(getattr(kind, name)))
    if not hasattr(base, "style"):
        base.style = lambda self, *args, **kwargs: self
    if hasattr(gradio, "update") and not hasattr(base, "update"):
        base.update = staticmethod(gradio.update)
    for old, new in RENAMED.items():
        if not hasattr(gradio, old) and hasattr(gradio, new):
            setattr(gradio, old, getattr(gradio, new))


_told: set[str] = set()


def _without_gone(call: Any, owner: str) -> Any:
    """`call` without the arguments of 2024 that it no longer takes; each is said once."""
    known = inspect.signature(call).parameters

    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        for name in sorted(GONE & set(kwargs) - set(known)):
            del kwargs[name]
            if f"{owner}({name})" not in _told:
                _told.add(f"{owner}({name})")
                print(f"minicpm.compat: this Gradio has no {name!r} in {owner}; it is left out", file=sys.stderr)
        return call(*args, **kwargs)

    return called


def _with_js(listener: Any) -> Any:
    """An event's listener that takes `_js`, which is `js` today."""
    if not callable(listener):
        return listener

    @functools.wraps(listener)
    def called(*args: Any, **kwargs: Any) -> Any:
        if "_js" in kwargs:
            kwargs["js"] = kwargs.pop("_js")
        return listener(*args, **kwargs)

    return called


def _speak_pairs(chatbot: Any) -> None:
    """Chatbots exchange [question, answer] pairs with a script that gives them pairs, and messages with any other."""
    init, preprocess, postprocess = chatbot.__init__, chatbot.preprocess, chatbot.postprocess
    gone = GONE - set(inspect.signature(init).parameters)

    @functools.wraps(init)
    def created(self: Any, *args: Any, **kwargs: Any) -> None:
        if "value" in kwargs:
            kwargs["value"] = _as_messages(kwargs["value"])
        elif args:
            args = (_as_messages(args[0]), *args[1:])
        kind = kwargs.pop("type", None if gone.isdisjoint(kwargs) else "tuples")
        self.speaks_pairs = kind == "tuples"
        init(self, *args, **kwargs)

    @functools.wraps(preprocess)
    def received(self: Any, payload: Any) -> Any:
        messages = preprocess(self, payload)
        return as_pairs(messages) if self.speaks_pairs else messages

    @functools.wraps(postprocess)
    def given(self: Any, value: Any) -> Any:
        messages = _as_messages(value)
        self.speaks_pairs = self.speaks_pairs or messages is not value
        return postprocess(self, messages)

    # Gradio keeps the arguments of every construction, and asks its own wrapper of __init__ for their names.
    chatbot.__init__, chatbot.preprocess, chatbot.postprocess = created, received, given


def _as_messages(value: Any) -> Any:
    """Pairs as messages; anything else, such as messages, as it is."""
    if not isinstance(value, list | tuple) or not value or not all(_is_pair(pair) for pair in value):
        return value
    turns = [(role, text) for pair in value for role, text in zip(("user", "assistant"), pair) if text is not None]
    return [{"role": role, "content": _content(text)} for role, text in turns]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _content(text: Any) -> Any:
    """A file was a tuple of its path and its description."""
    if isinstance(text, list | tuple):
        return {"path": text[0], "alt_text": text[1] if len(text) > 1 else None}
    return text


def as_pairs(messages: Sequence[Any]) -> list[list[Any]]:
    """Messages as the [question, answer] lists of 2024, in which a script appends and writes."""
    pairs: list[list[Any]] = []
    for message in messages:
        if message["role"] != "assistant":
            pairs.append([_text(message["content"]), None])
        elif pairs and pairs[-1][1] is None:
            pairs[-1][1] = _text(message["content"])
        else:
            pairs.append([None, _text(message["content"])])
    return pairs


def _text(content: Any) -> Any:
    parts = content if isinstance(content, list) else [content]
    files = [part["file"]["path"] for part in parts if isinstance(part, dict) and part.get("type") == "file"]
    if files:
        return (files[0],)
    return "".join(part["text"] if isinstance(part, dict) else str(part) for part in parts)
