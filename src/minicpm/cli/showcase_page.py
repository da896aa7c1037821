"""Prompts and their answers as one HTML page that needs nothing else: no script, no request, every text escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm.chat import Message
from minicpm.cli.output import footer, printable
from minicpm.cli.vote import Vote

if TYPE_CHECKING:
    from minicpm.engine.request import Completion

STYLE = Path(__file__).with_suffix(".css")
# What the page may do: show itself. A text that got past the escaping could still load and run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MARK = '<meta name="generator" content="minicpm run --html">'  # only such a page may be replaced
_FENCE = re.compile(r"(?:^|\n+)```[^\n`]*\n(.*?)(?:^```[ \t]*$\n*|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """One prompt on the page: who said what, its answers, and what they agree on where votes were taken."""

    title: str
    category: str
    language: str  # HTML's lang, "" if nobody said
    messages: Sequence[Message]
    completions: Sequence[Completion]
    vote: Vote | None = None
    sampling: str = ""  # what this prompt alone asks for


def page(title: str, facts: Mapping[str, str], entries: Sequence[Entry]) -> str:
    """The page: `facts` are shown under the title, entries by category in the order in which these first come."""
    categories = list(dict.fromkeys(entry.category for entry in entries))
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>',
        '<meta charset="utf-8">',
        MARK,
        f'<meta http-equiv="Content-Security-Policy" content="{_text(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>",
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>",
        f"</head>\n<body>\n<h1>{_text(title)}</h1>",
        "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items()) + "</dl>",
    ]
    if any(categories):
        links = (f'<a href="#part-{number}">{_text(name)}</a>' for number, name in enumerate(categories))
        parts.append(f"<nav>{''.join(links)}</nav>")
    for number, category in enumerate(categories):
        parts.append(f'<section id="part-{number}">' + (f"\n<h2>{_text(category)}</h2>" if category else ""))
        parts += [_article(entry) for entry in entries if entry.category == category]
        parts.append("</section>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def check_destination(file: Path) -> None:
    """Raise ValueError unless a page may be written to `file`: nothing is there, or an earlier page."""
    if file.is_symlink() and not file.exists():
        raise ValueError(f"{file}: a symbolic link to nothing; remove it or name another file")
    if file.is_dir():
        raise ValueError(f"{file}: is a folder; name a file in it")
    if file.exists() and not _is_page(file):
        raise ValueError(f"{file}: exists and is not a page that --html wrote; name another file")
    parent = next(folder for folder in file.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"{file}: {parent} is not a folder; name a file in one")


def _is_page(file: Path) -> bool:
    if not file.is_file():  # a device or a pipe
        return False
    with file.open("rb") as content:
        return MARK.encode() in content.read(1024)


def _article(entry: Entry) -> str:
    language = f' lang="{_text(entry.language)}"' if entry.language else ""
    parts = [f"<article{language}>"]
    if entry.title:
        label = f'<span class="language">{_text(entry.language)}</span>' if entry.language else ""
        parts.append(f"<header><h3>{_text(entry.title)}</h3>{label}</header>")
    parts += [_turn(message["role"], message["content"]) for message in entry.messages]
    chosen = entry.completions[entry.vote.winner if entry.vote else 0]
    parts.append(_turn("assistant", chosen.text))
    if entry.vote:
        parts.append(_votes(entry.vote))
    others = [completion for completion in entry.completions if completion is not chosen]
    if others:
        turns = "\n".join(_turn("assistant", other.text) + _footer(other) for other in others)
        parts.append(f"<details><summary>{len(others)} more</summary>\n{turns}\n</details>")
    return "\n".join([*parts, _footer(chosen, entry.sampling), "</article>"])


def _turn(role: str, text: str) -> str:
    if not text.strip():
        return f'<div class="turn {_text(role)} nothing">(nothing)</div>'
    return f'<div class="turn {_text(role)}">{_with_code(text.strip())}</div>'


def _with_code(text: str) -> str:
    """Escaped text whose fenced blocks are blocks; everything else stays as it was written."""
    parts, end = [], 0
    for block in _FENCE.finditer(text):
        parts += [_text(text[end : block.start()]), f"<pre><code>{_text(block[1])}</code></pre>"]
        end = block.end()
    return "".join([*parts, _text(text[end:])])


def _votes(vote: Vote) -> str:
    rows = "".join(f"<tr><td>{_text(answer) or 'no answer'}</td><td>{count}</td></tr>" for answer, count in vote.counts)
    return f"<table><tr><th>final answer</th><th>samples</th></tr>{rows}</table>"


def _footer(completion: Completion, sampling: str = "") -> str:
    asked = f", {sampling}" if sampling else ""
    return f"<footer>{_text(footer(completion) + asked)}, seed {completion.seed}</footer>"


def _text(text: str) -> str:
    return html.escape(printable(text))
