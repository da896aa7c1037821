"""What a model is called, and on which hub: the one table of the release's downloads, and how a name is read.

Knows names only; never looks at a disk or a network.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

from minicpm.errors import HubError

Source = Literal["huggingface", "modelscope"]

# What people call a hub: before a name, after --source, in MINICPM_HUB.
SOURCES: dict[str, Source] = {
    "huggingface": "huggingface",
    "hf": "huggingface",
    "modelscope": "modelscope",
    "ms": "modelscope",
}
EMBEDDED_NAME = "minicpm-nano"  # the model inside the package, which is on no hub
# The library's own rule for a repository's name, without the form that has no owner.
_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*", re.ASCII)


@dataclass(frozen=True)
class KnownModel:
    """A published model under all its names. The first alias is the one that messages use."""

    huggingface: str
    modelscope: str | None  # None: not known to be there
    aliases: tuple[str, ...]
    wisemodel: str | None = None
    unsupported: str | None = None  # why this version does not run it: what follows its name in a sentence

    def on(self, source: Source) -> str | None:
        """The repository's name on that hub, if it is there."""
        return self.huggingface if source == "huggingface" else self.modelscope

    def reference(self, asked: Source | None) -> Reference:
        """Where to take it from: the hub that was asked for, else the preferred one if it has the model."""
        source = asked or _preferred_source()
        if (repo_id := self.on(source)) is not None:
            return Reference(source, repo_id)
        if asked is None:
            return Reference("huggingface", self.huggingface)
        raise HubError(f"{self.aliases[0]} is not known to be on ModelScope; take it from Hugging Face")


def _known(
    name: str,
    *aliases: str,
    modelscope: str | None = "the same",
    wisemodel: str | None = None,
    unsupported: str | None = None,
) -> KnownModel:
    there = f"OpenBMB/{name if modelscope == 'the same' else modelscope}" if modelscope else None
    return KnownModel(f"openbmb/{name}", there, (*aliases, name.lower()), wisemodel, unsupported)


def _int4(stage: str) -> KnownModel:
    """The INT4 version of 2024 of MiniCPM-2B after `stage`."""
    name = f"MiniCPM-2B-{stage}-int4"
    advice = f"make INT4 weights of your own with: minicpm quantize minicpm-2b-{stage} {name}"
    return _known(
        name, modelscope=None, unsupported=f"has INT4 files of 2024, which this version does not read; {advice}"
    )


_PICTURES = "sees pictures; this version runs the text models only"
# The download table of the 2024 README, then what the same authors published in the months after it.
# WiseModel's odd names are as printed there: one repository stands for both sft-fp32 and dpo-fp32.
KNOWN_MODELS: tuple[KnownModel, ...] = (
    _known("MiniCPM-2B-sft-bf16", "minicpm-2b-sft", modelscope="miniCPM-bf16", wisemodel="OpenBMB/miniCPM-bf16"),
    _known("MiniCPM-2B-sft-fp32", wisemodel="OpenBMB/miniCPM-dpo-fp32"),
    _known("MiniCPM-2B-dpo-bf16", "minicpm-2b-dpo", "minicpm-2b", wisemodel="OpenBMB/MiniCPM-2B-dpo-bf16"),
    _known("MiniCPM-2B-dpo-fp16", wisemodel="OpenBMB/MiniCPM-2B-dpo-fp16"),
    _known("MiniCPM-2B-dpo-fp32", wisemodel="OpenBMB/miniCPM-dpo-fp32"),
    _known("MiniCPM-V", wisemodel="OpenBMB/MiniCPM-V", unsupported=_PICTURES),
    _known("OmniLMM-12B", "omnilmm", wisemodel="OpenBMB/OmniLMM-12B", unsupported=_PICTURES),
    _int4("sft"),
    _int4("dpo"),
    _known("MiniCPM-2B-128k"),
    _known("MiniCPM-1B-sft-bf16", "minicpm-1b", "minicpm-1b-sft"),
    _known("MiniCPM-V-2", unsupported=_PICTURES),
    _known("MiniCPM-2B-sft-bf16-llama-format", modelscope=None),
    _known("MiniCPM-2B-dpo-bf16-llama-format", modelscope=None),
)


@dataclass(frozen=True)
class Reference:
    """A model on a hub: which one, its repository there, and the revision (None: the hub's default branch)."""

    source: Source
    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        prefix = "" if self.source == "huggingface" else f"{self.source}:"
        return prefix + self.repo_id + (f"@{self.revision}" if self.revision else "")

    @property
    def known(self) -> KnownModel | None:
        """Its row of the table, if it is one of the release's models."""
        return next((model for model in KNOWN_MODELS if model.on(self.source) == self.repo_id), None)

    @property
    def elsewhere(self) -> Reference | None:
        """The same model on the other hub, if it is known to be there. Revisions have no counterpart there."""
        other: Source = "modelscope" if self.source == "huggingface" else "huggingface"
        repo_id = self.known.on(other) if self.known is not None and self.revision is None else None
        return Reference(other, repo_id) if repo_id is not None else None


def parse_name(name: str, *, source: Source | None = None, revision: str | None = None) -> Reference:
    """Read `minicpm-2b-dpo`, `org/name`, `org/name@revision`, `hf:...`, `ms:...` or the address of a hub's page.

    `source` and `revision` say what the name leaves open; saying something else than the name is a ValueError.
    Where neither says the hub, MINICPM_HUB does, else Hugging Face. Unknown short names raise HubError with
    the nearest ones.
    """
    if source is not None and source not in get_args(Source):
        raise ValueError(f"unknown source '{source}'; expected one of {', '.join(get_args(Source))}")
    text = name.strip()
    if not text:
        raise HubError("the model's name is empty; give an alias such as 'minicpm-2b-dpo', org/name, or a folder")
    named_source: Source | None = None
    if "://" in text:
        named_source, text = _from_address(text)
    elif ":" in text:
        prefix, _, text = text.partition(":")
        if prefix.lower() == "wisemodel":
            raise HubError(_wisemodel_advice(text))
        if prefix.lower() not in SOURCES:
            raise HubError(f"unknown hub '{prefix}' in '{name}'; expected hf: or ms: before the name")
        named_source = SOURCES[prefix.lower()]
    if source is not None and named_source is not None and named_source != source:
        raise ValueError(f"'{name}' names {named_source}, but the source asked for is {source}")
    text, _, named_revision = text.rstrip("/").partition("@")
    if revision is not None and named_revision and named_revision != revision:
        raise ValueError(f"'{name}' names revision {named_revision}, but the revision asked for is {revision}")
    wanted_revision = named_revision or revision or None
    if wanted_revision is not None:
        _check_revision(wanted_revision)
    return replace(_find(text, named_source or source), revision=wanted_revision)


def nearest_names(name: str) -> list[str]:
    """Up to three known names that resemble `name`, best first."""
    candidates: dict[str, str] = {EMBEDDED_NAME: EMBEDDED_NAME}
    for model in KNOWN_MODELS:
        for alias in model.aliases:
            candidates[alias] = model.aliases[0] if "/" not in name else model.huggingface
        candidates[model.huggingface.lower()] = model.huggingface
    found = difflib.get_close_matches(name.lower(), candidates, n=6, cutoff=0.6)
    return list(dict.fromkeys(candidates[match] if "/" in name else match for match in found))[:3]


def did_you_mean(name: str) -> str:
    """'; did you mean a or b?', or nothing where no known name is near."""
    near = [other for other in nearest_names(name) if other != name]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def is_name(text: str) -> bool:
    """Whether `text` can only be a name (or address), not a path: prefixed, an alias, or one owner and one name."""
    head = text.strip().rstrip("/")
    if "://" in head or head.partition(":")[0].lower() in (*SOURCES, "wisemodel"):
        return True
    return not head.startswith((".", "/", "~")) and head.count("/") <= 1 and "\\" not in head


def _find(text: str, source: Source | None) -> Reference:
    """The reference that an alias or org/name means; `source` is what the user said about the hub, if anything."""
    low = text.lower()
    if "/" not in text:
        for model in KNOWN_MODELS:
            if low in model.aliases:
                return model.reference(source)
        if low == EMBEDDED_NAME:
            raise HubError(f"{EMBEDDED_NAME} is built into the package and on no hub; name it without hub and revision")
        raise HubError(
            f"unknown model '{text}'{did_you_mean(text) or '; give org/name, a folder, or one of: ' + _main_aliases()}"
        )
    if not _REPO_ID.fullmatch(text) or ".." in text or "--" in text or len(text) > 96:
        raise HubError(f"'{text}' is neither a file nor a model's name; names look like openbmb/MiniCPM-2B-dpo-bf16")
    for model in KNOWN_MODELS:
        if low == model.huggingface.lower():
            return model.reference(source)
    for model in KNOWN_MODELS:
        if model.modelscope and low == model.modelscope.lower():  # a name that only ModelScope has
            return model.reference(source or "modelscope")
    return Reference(source or _preferred_source(), text)


def _preferred_source() -> Source:
    value = os.environ.get("MINICPM_HUB", "")
    if value and value not in SOURCES:
        raise ValueError(f"MINICPM_HUB is '{value}'; expected huggingface or modelscope")
    return SOURCES[value] if value else "huggingface"


def _main_aliases() -> str:
    return ", ".join([EMBEDDED_NAME, *(model.aliases[0] for model in KNOWN_MODELS)])


def _check_revision(revision: str) -> None:
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith(("/", ".lock")):
        raise HubError(f"'{revision}' is not a revision; expected a branch, a tag or a commit such as main")


def _from_address(address: str) -> tuple[Source, str]:
    """The hub and `org/name[@revision]` of a page's address."""
    parts = urlsplit(address)
    host = (parts.hostname or "").removeprefix("www.")
    path = [unquote(part) for part in parts.path.split("/") if part]
    if host.endswith("wisemodel.cn"):
        path = path[1:] if path[:1] == ["models"] else path
        raise HubError(_wisemodel_advice("/".join(path[:2])))
    if host in _NOT_HUBS:
        raise HubError(_NOT_HUBS[host])
    hosts: dict[str, Source] = {
        "huggingface.co": "huggingface",
        "hf.co": "huggingface",
        "modelscope.cn": "modelscope",
        "modelscope.ai": "modelscope",
    }
    for variable, source in (("HF_ENDPOINT", "huggingface"), ("MODELSCOPE_ENDPOINT", "modelscope")):
        if endpoint := urlsplit(os.environ.get(variable, "")).hostname:
            hosts.setdefault(endpoint.removeprefix("www."), source)  # type: ignore[arg-type]
    if parts.scheme not in ("http", "https") or host not in hosts:
        raise HubError(f"{address} is not a page of a hub known here: huggingface.co, modelscope.cn, wisemodel.cn")
    path = path[1:] if path[:1] == ["models"] else path
    if len(path) < 2:
        raise HubError(f"{address} names no model; expected .../org/name")
    revision = f"@{'/'.join(path[3:])}" if len(path) > 3 and path[2] == "tree" else ""
    return hosts[host], f"{path[0]}/{path[1].removesuffix('.git')}{revision}"


# Addresses in the release's README that are no downloads.
_NOT_HUBS = {
    "replicate.com": (
        "Replicate runs models on its own machines and gives no weights; "
        "the model of the release's link comes with: minicpm pull minicpm-2b-dpo"
    ),
    "luca.cn": "luca.cn is a website on which CPM-C, a model of 100B, could be tried; its weights were not published",
    "github.com": "GitHub has the release's code, not its weights; a model comes with: minicpm pull minicpm-2b-dpo",
}


def _wisemodel_advice(repo_id: str) -> str:
    """WiseModel has no documented interface for programs but git: say how, and where the same weights are."""
    same = [model for model in KNOWN_MODELS if model.wisemodel and model.wisemodel.lower() == repo_id.lower()]
    advice = (
        f"WiseModel serves files through git only: run 'git lfs install' and 'git clone "
        f"https://www.wisemodel.cn/{repo_id}.git', then pass the folder with -m {repo_id.partition('/')[2] or 'FOLDER'}"
    )
    if len(same) > 1:
        advice += f" (the release printed this one name for {' and '.join(m.aliases[0] for m in same)})"
    if same:
        advice += f"; the same weights come with: minicpm pull {' or '.join(model.aliases[0] for model in same)}"
    return advice
