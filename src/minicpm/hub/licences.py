"""What the publishers of the weights want known: their licence, the models' limits, and how to cite them.

The weights have a licence of their own, different from this package's Apache-2.0. A notice about it is shown once for
each model before its first use.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from minicpm.hub import cache
from minicpm.hub.names import Reference

# The General Model License, under which the release's README puts its weights.
GML_NAME = "General Model License"
GML_URL = (
    "https://github.com/OpenBMB/General-Model-License/blob/main/%E9%80%9A%E7%94%A8%E6%A8%A1%E5%9E%8B%E8%AE%B8%E5%8F%AF%"
    "E5%8D%8F%E8%AE%AE-%E6%9D%A5%E6%BA%90%E8%AF%B4%E6%98%8E-%E5%AE%A3%E4%BC%A0%E9%99%90%E5%88%B6-%E5%95%86%E4%B8%9A%E6%8E"
    "%88%E6%9D%83.md"
)
TERMS = "free for academic research; commercial use needs the publishers' permission (cpm@modelbest.cn)"
# The section "Limitations" of the release's README, in short.
LIMITATIONS = (
    "it may invent facts, after DPO more often, because those answers are longer",
    "it may say that it is a GPT model, because its training data has ShareGPT's conversations",
    "its answers depend strongly on the wording of the prompt, and differ from attempt to attempt",
    "its knowledge is limited by its size",
)

_NOTICE = (
    "The weights of {name} have a licence of their own. Under the " + GML_NAME + " of 2024 they are free for "
    "academic research; commercial use needs the publishers' permission, which cpm@modelbest.cn gives on request. "
    "Later releases may come with the MiniCPM Model License instead: the model's own page has the text that counts.\n"
    "{url}\n"
    "The model produces text from what it learned from data. It understands and believes nothing, its output is not "
    "the view of its developers, and whoever uses that output checks it and answers for it. The release says of its "
    "limits: " + "; ".join(LIMITATIONS) + ".\n"
    "(shown once for each model)"
)


def notice(reference: Reference) -> str | None:
    """The notice for a model of the release's authors; None for other models, whose terms are unknown here."""
    if not is_of_release(reference):
        return None
    return _NOTICE.format(name=reference.repo_id, url=GML_URL)


def is_of_release(reference: Reference) -> bool:
    """Whether a model is of the release's authors."""
    return reference.known is not None or reference.repo_id.lower().startswith("openbmb/")


def show_once(reference: Reference, tell: Callable[[str], None]) -> None:
    """Pass the notice to `tell`, unless it was shown before on this machine, and record that."""
    text = notice(reference)
    # One empty file per model: its creation is atomic, so that concurrent programs lose no record.
    marker = cache.home() / "notices" / quote(f"{reference.source}:{reference.repo_id}", safe="")
    if text is None or marker.exists():
        return
    tell(text)
    cache.touch_note(marker)
