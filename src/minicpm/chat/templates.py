"""Chat templates: MiniCPM's own and ChatML in Python, all others in the sandbox.

MiniCPM-2B's two published templates and the ChatML of the 128k model are plain functions here. They are used if a
folder's template equals one of them in text or in structure. Any other is an untrusted program: see foreign.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from minicpm.chat.foreign import render_foreign
from minicpm.chat.messages import ASSISTANT_MARKER, USER_MARKER, Message, validate_messages
from minicpm.chat.stop import STOP_STRINGS
from minicpm.errors import FormatError
from minicpm.files import file_in, has_entry, read_text
from minicpm.tokenizer import adds_bos, read_tokenizer_config, special_token
from minicpm.tokenizer.loading import CONFIG_FILE as TOKENIZER_CONFIG_FILE

TEMPLATE_FILE = "chat_template.jinja"
# Those that transformers gives to a template under these names.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_TEMPLATE_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class ChatTemplate:
    """The prompt format of a model's conversations; make one with `template_for`.

    `text` is the jinja2 source that other formats store. `stop_strings` end an answer, as the model's end token does.
    `origin` is the template's source, for the user.
    """

    name: str
    text: str
    stop_strings: tuple[str, ...]
    origin: str = "built in"
    _render: Callable[[Sequence[Message], bool], str] = field(repr=False, compare=False, kw_only=True)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt text, without the beginning-of-sequence token if the folder's tokenizer puts it in front.

        `tokenizer.encode(template.render(messages))` therefore has that token only once.

        MiniCPM's own templates end each user turn with `<AI>`, so `add_generation_prompt` has no effect on them.
        Raises ValueError for invalid messages, FormatError if a foreign template fails.
        """
        validate_messages(messages)
        return self._render(messages, add_generation_prompt)


def template_for(folder: str | Path) -> ChatTemplate:
    """The chat template of a model folder: chat_template.jinja, else tokenizer_config.json's, else MiniCPM's own.

    A missing template is logged once per folder. Raises FormatError for a template that is not text.
    """
    folder = Path(folder)
    config = read_tokenizer_config(folder)
    found = _template_text(folder, config)
    if found is None:
        _log_default(folder)
        return CURRENT_TEMPLATE
    text, path = found
    return template_from(text, path, config)


def template_from(text: str, path: Path, config: dict[str, Any]) -> ChatTemplate:
    """The chat template of a jinja2 source from the file `path`; `config` is a tokenizer_config.json."""
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise FormatError(
            path, f"the chat template has {len(text):,} characters, expected at most {MAX_TEMPLATE_CHARACTERS:,}"
        )
    return _known_template(text, path.name) or _foreign_template(text, path, config)


# --- The templates -------------------------------------------------------------------------------------------


def _render_current(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    return "".join(_turn(m["role"], m["content"]) for m in messages)


def _render_february_2024(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    return "".join(_turn(m["role"], m["content"].strip()) for m in messages)


def _turn(role: str, content: str) -> str:
    return f"{USER_MARKER}{content}{ASSISTANT_MARKER}" if role == "user" else content


def _render_chatml(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return turns + "<|im_start|>assistant\n" if add_generation_prompt else turns


# The official tokenizer_config.json of today; the text's sha256 begins with d9f25394.
CURRENT_TEMPLATE = ChatTemplate(
    "minicpm",
    "{% for message in messages %}{% if message['role'] == 'user' %}{{'<用户>' + message['content'] + '<AI>'}}"
    "{% else %}{{message['content']}}{% endif %}{% endfor %}",
    STOP_STRINGS,
    _render=_render_current,
)
# The one published in February 2024; sha256 ae9b050c...
FEBRUARY_2024_TEMPLATE = ChatTemplate(
    "minicpm-2024-02",
    "{% for message in messages %}{% if message['role'] == 'user' %}{{'<用户>' + message['content'].strip() + '<AI>'}}"
    "{% else %}{{message['content'].strip()}}{% endif %}{% endfor %}",
    STOP_STRINGS,
    _render=_render_february_2024,
)
CHATML_TEMPLATE = ChatTemplate(
    "chatml",
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ("<|im_end|>", "<|im_start|>"),
    _render=_render_chatml,
)
KNOWN_TEMPLATES = (CURRENT_TEMPLATE, FEBRUARY_2024_TEMPLATE, CHATML_TEMPLATE)


# --- Recognising a folder's template -------------------------------------------------------------------------


def _template_text(folder: Path, config: dict[str, Any]) -> tuple[str, Path] | None:
    """The template of a folder and its file, looked up in transformers' order."""
    if has_entry(folder, TEMPLATE_FILE):
        path = file_in(folder, TEMPLATE_FILE)
        return read_text(path, 4 * MAX_TEMPLATE_CHARACTERS), path
    path = folder / TOKENIZER_CONFIG_FILE
    text = config.get("chat_template")
    if isinstance(text, list):
        named = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}
        if "default" not in named:
            raise FormatError(path, "chat_template is a list without one named 'default'")
        text = named["default"]
    if text is None:
        return None
    if not isinstance(text, str):
        raise FormatError(path, f"chat_template must be a string, got {type(text).__name__}")
    return text, path


def _known_template(text: str, origin: str) -> ChatTemplate | None:
    for template in KNOWN_TEMPLATES:
        if text == template.text:
            return replace(template, origin=origin)
    structure = _structure(text)
    if structure is not None:
        for template in KNOWN_TEMPLATES:
            if structure == _structure(template.text):
                return replace(template, text=text, origin=origin)
    return None


def _structure(text: str) -> object:
    """The structure of a template, whatever its quotes and blanks, and with `m.role` equal to `m['role']`.

    None if it cannot be parsed. Parsing does not run the template.
    """
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    try:
        return _simplified(environment.parse(text))
    except (jinja2.TemplateSyntaxError, RecursionError, ValueError):  # ValueError: a number of 5,000 digits
        return None


def _simplified(node: Any) -> object:
    """A jinja2 node as nested tuples, with string concatenation flattened and attributes read as items."""
    from jinja2 import nodes

    if isinstance(node, nodes.Getattr):
        return "item", _simplified(node.node), node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return "item", _simplified(node.node), node.arg.value
    if isinstance(node, nodes.Name):
        return "name", node.name
    if isinstance(node, nodes.Output | nodes.Add | nodes.Concat):
        return "text", *_joined(_text_parts(node))
    if isinstance(node, nodes.Node):
        return type(node).__name__, *((name, _simplified(value)) for name, value in node.iter_fields())
    if isinstance(node, list):
        return tuple(_simplified(item) for item in _merged_outputs(node))
    return node


def _merged_outputs(items: list[Any]) -> list[Any]:
    """Merge neighbouring outputs: `{{ a }}{{ b }}` is the same as `{{ a + b }}`."""
    from jinja2 import nodes

    merged: list[Any] = []
    for item in items:
        if merged and isinstance(item, nodes.Output) and isinstance(merged[-1], nodes.Output):
            merged[-1] = nodes.Output(merged[-1].nodes + item.nodes)
        else:
            merged.append(item)
    return merged


def _text_parts(node: Any) -> list[object]:
    from jinja2 import nodes

    if isinstance(node, nodes.Output | nodes.Concat):
        return [part for child in node.nodes for part in _text_parts(child)]
    if isinstance(node, nodes.Add):
        return _text_parts(node.left) + _text_parts(node.right)
    if isinstance(node, nodes.TemplateData):
        return [node.data]
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        return [node.value]
    return [_simplified(node)]


def _joined(parts: list[object]) -> list[object]:
    joined: list[object] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _foreign_template(text: str, path: Path, config: dict[str, Any]) -> ChatTemplate:
    # As in transformers, a token that the tokenizer does not have is undefined in the template.
    tokens = {name: token for name in SPECIAL_TOKENS if isinstance(token := special_token(config, name), str)}
    # Templates of other families write the first token themselves; the tokenizer must not add it again.
    written_twice = tokens.get("bos_token", "") if adds_bos(config, path.parent) else ""
    render = partial(_render_in_sandbox, text, path, tokens, written_twice)
    stops = tuple(marker for marker in ("<|im_end|>", *STOP_STRINGS) if marker in text)
    return ChatTemplate("foreign", text, stops, path.name, _render=render)


def _render_in_sandbox(
    text: str,
    path: Path,
    tokens: dict[str, str],
    written_twice: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
) -> str:
    variables: dict[str, object] = {
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **tokens,
    }
    return render_foreign(text, variables, path).removeprefix(written_twice)


@cache
def _log_default(folder: Path) -> None:
    logging.getLogger("minicpm").warning("%s has no chat template; using MiniCPM's own", folder)
