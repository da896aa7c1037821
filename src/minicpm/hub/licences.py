"""What the publishers ask every user to know, shown once for each model before its first use.

The weights have terms of their own, apart from this package's Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from minicpm.hub import cache
from minicpm.hub.names import Reference

_NOTICE = (
    "The weights of {name} have a licence of their own. Under the General Model License of 2024 they are free for "
    "academic research; commercial use needs the publishers' permission, which cpm@modelbest.cn gives on request. "
    "Later releases may come with the MiniCPM Model License instead: the model's own page has the text that counts.\n"
    "The model produces text from what it learned from data. It understands and believes nothing, its output is not "
    "the view of its developers, and whoever uses that output checks it and answers for it.\n"
    "(shown once for each model)"
)


def notice(reference: Reference) -> str | None:
    """The notice for a model of the release's authors; None for other people's models, whose terms are unknown here."""
    if reference.known is None and not reference.repo_id.lower().startswith("openbmb/"):
        return None
    return _NOTICE.format(name=reference.repo_id)


def show_once(reference: Reference, tell: Callable[[str], None]) -> None:
    """`tell` the notice unless it was told before on this machine, and remember it."""
    text = notice(reference)
    # One empty file a model: two programs at once cannot lose each other's notes, and creating it is atomic.
    marker = cache.home() / "notices" / quote(f"{reference.source}:{reference.repo_id}", safe="")
    if text is None or marker.exists():
        return
    tell(text)
    cache.touch_note(marker)
