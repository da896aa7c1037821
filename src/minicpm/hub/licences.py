"""The publishers' notice about the weights, shown once for each model before its first use.

The weights have a licence of their own, different from this package's Apache-2.0.
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
    """The notice for a model of the release's authors; None for other models, whose terms are unknown here."""
    if reference.known is None and not reference.repo_id.lower().startswith("openbmb/"):
        return None
    return _NOTICE.format(name=reference.repo_id)


def show_once(reference: Reference, tell: Callable[[str], None]) -> None:
    """Pass the notice to `tell`, unless it was shown before on this machine, and record that."""
    text = notice(reference)
    # One empty file per model: its creation is atomic, so that concurrent programs lose no record.
    marker = cache.home() / "notices" / quote(f"{reference.source}:{reference.repo_id}", safe="")
    if text is None or marker.exists():
        return
    tell(text)
    cache.touch_note(marker)
