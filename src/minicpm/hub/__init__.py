"""A model's name becomes a folder on this machine: found in the hubs' caches, or downloaded there and verified.

    path = hub.resolve(None)                      # the built-in MiniCPM-nano
    path = hub.resolve("minicpm-2b-dpo")          # alias, org/name[@revision], hf:..., ms:..., address or path
    path = hub.pull("minicpm-2b-dpo", source="modelscope")

Listing, credentials and cache layout are huggingface_hub's (ModelScope: its REST calls and its SDK's folders); the
bytes are ours (transfer.py). Never runs, loads or even reads what it downloads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from minicpm import __version__
from minicpm.errors import HubError, ModelError, one_line
from minicpm.hub import cache, embedded, huggingface, licences, modelscope, packed_files, previews, transfer
from minicpm.hub.cache import LocalModel, missing_parts
from minicpm.hub.names import EMBEDDED_NAME, KNOWN_MODELS, SOURCES, KnownModel, Reference, Source, is_name, parse_name
from minicpm.hub.previews import Preview
from minicpm.hub.remote import Listing, RemoteFile, in_fetching_order, needed_files
from minicpm.progress import Progress, Silent

__all__ = [
    "KNOWN_MODELS",
    "SOURCES",
    "KnownModel",
    "LocalModel",
    "Preview",
    "Reference",
    "Source",
    "find",
    "list_models",
    "locate",
    "parse_name",
    "preview",
    "pull",
    "remove",
    "require_removable",
    "resolve",
]


class Hub(Protocol):
    """A hub's side of the wire, spoken by the modules `huggingface` and `modelscope`."""

    def list_files(self, reference: Reference, tell: Callable[[str], None]) -> Listing: ...

    def download(self, reference: Reference, listing: Listing, file: RemoteFile) -> transfer.Download: ...


def say(text: str) -> None:
    """The default of `tell`: notices and waiting go to stderr."""
    print(text, file=sys.stderr, flush=True)


def resolve(
    model: str | Path | None,
    *,
    source: Source | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = say,
    accept: Callable[[Preview], None] | None = None,
) -> Path:
    """The folder (or file) of a model: a path as it is, a name from the caches, downloaded when it is not there.

    None is the model built into the package, whose name is minicpm-nano.
    A complete download is used without asking the hub; `pull` asks for news. `offline` None obeys HF_HUB_OFFLINE.
    `tell` gets the licence notice before a model's first use, and what a download waits for; `accept` as for `pull`.
    Raises ModelError for a path that does not exist and HubError for a model that cannot be had.
    """
    path = _without_hub(model)
    if path is not None:
        return path
    model = str(model)
    found = locate(model, source=source, revision=revision)
    if found is None:
        return pull(
            model, source=source, revision=revision, offline=offline, progress=progress, tell=tell, accept=accept
        )
    reference, folder = found
    licences.show_once(reference, tell)
    cache.mark_used(reference)
    return folder


def find(model: str | Path | None) -> Path | None:
    """The model's folder or file on this machine, without any network; None for a name that must be downloaded first.

    Raises ModelError for a path that does not exist.
    """
    path = _without_hub(model)
    if path is None and (found := locate(str(model))) is not None:
        return found[1]
    return path


def _without_hub(model: str | Path | None) -> Path | None:
    """The built-in model's folder, or a path that exists; None for a hub's name, ModelError for neither."""
    if model is None:
        return embedded.folder()
    path = Path(model).expanduser()
    if path.exists():
        return path
    if embedded.is_name(model):
        return embedded.folder()
    if isinstance(model, Path) or not is_name(model):
        raise ModelError(f"{model} does not exist; pass a model's folder or file, or a name such as minicpm-2b-dpo")
    return None


def list_models(*, everything: bool = False) -> list[LocalModel]:
    """The models on this machine: the built-in one, then the MiniCPM models in both hubs' caches, by name.

    There is one entry per revision, unfinished downloads included. Other families' models in these shared caches are
    left out unless they were used with this package, or `everything` is asked for.
    """
    packed = packed_files.list_files()
    models = [
        replace(model, packed_bytes=packed_files.bytes_of(model.path, packed))
        for model in cache.list_models(everything=everything)
    ]
    if not embedded.is_present():
        return models
    nbytes = sum(path.stat().st_size for path in embedded.FOLDER.rglob("*") if path.is_file())
    return [LocalModel(EMBEDDED_NAME, "embedded", embedded.FOLDER, nbytes, __version__, True, None), *models]


def locate(name: str, *, source: Source | None = None, revision: str | None = None) -> tuple[Reference, Path] | None:
    """The complete local folder of a name and what the name meant, without any network; None where there is none.

    A model of the release is found in either hub's cache unless the name, `source` or a revision decides.
    """
    reference = parse_name(name, source=source, revision=revision)
    others = [reference.elsewhere] if _leaves_hub_open(name, source) else []
    for candidate in filter(None, [reference, *others]):
        folder = cache.store(candidate).locate(candidate.revision)
        if folder is not None and missing_parts(folder) is None:
            return candidate, folder
    return None


def pull(
    name: str,
    *,
    source: Source | None = None,
    revision: str | None = None,
    everything: bool = False,
    verify: bool = False,
    offline: bool | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = say,
    accept: Callable[[Preview], None] | None = None,
) -> Path:
    """Bring a model's newest files to this machine and return its folder; what is here already is not fetched again.

    Fetches what loading takes (weights in one form, safetensors first; never code), or `everything`. `verify` reads
    the files that are here and fetches wrong ones again. Interrupted at any point, the next call goes on where this
    one stopped. `offline` only looks at what is here. Of the built-in model there is nothing to fetch. `accept` gets
    the model's list of files, config.json and index, and raises its own error to stop before anything else is fetched;
    with it, a model that `names.py` knows not to run here is a ModelError before the hub is asked. Raises HubError
    with what to do.
    """
    if embedded.is_name(name):
        tell(f"{EMBEDDED_NAME} is built into the package: there is nothing to download")
        return embedded.folder()
    reference = parse_name(name, source=source, revision=revision)
    if is_offline(offline):
        found = locate(name, source=source, revision=revision)
        if found is None:
            if accept is not None:
                _require_runnable(reference)
            raise HubError(_absent_offline(reference, is_asked=bool(offline)))
        return found[1]
    if accept is not None:
        _require_runnable(reference)
    licences.show_once(reference, tell)
    listing = _hub(reference.source).list_files(reference, tell)
    files = in_fetching_order(listing.files if everything else needed_files(listing))
    if accept is not None:
        accept(_read_preview(reference, listing, tuple(files), tell))
    place = cache.store(reference)
    progress = progress or Silent()
    with _locked(place.lock, f"another process is fetching {reference}", tell):
        missing = _missing(place, files, verify=verify, tell=tell)
        _fetch_all(reference, listing, files, missing, place, progress, tell)
        folder = place.publish(listing, files, reference.revision)
    cache.mark_used(reference)
    return folder


def preview(
    name: str,
    *,
    source: Source | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    tell: Callable[[str], None] = say,
) -> Preview:
    """What the hub says about a model: its files, config.json and index, of which nothing is kept on this machine.

    HubError where the model cannot be had or no network may be used, ModelError for a known one that does not run here.
    """
    reference = parse_name(name, source=source, revision=revision)
    _require_runnable(reference)
    if is_offline(offline):
        raise HubError(_absent_offline(reference, is_asked=bool(offline)))
    listing = _hub(reference.source).list_files(reference, tell)
    return _read_preview(reference, listing, needed_files(listing), tell)


def _require_runnable(reference: Reference) -> None:
    if reference.known is not None and reference.known.unsupported:
        raise ModelError(f"{reference} {reference.known.unsupported}")


def _read_preview(
    reference: Reference, listing: Listing, files: tuple[RemoteFile, ...], tell: Callable[[str], None]
) -> Preview:
    download = _hub(reference.source).download
    return previews.read(
        reference,
        listing,
        files,
        lambda file, place: transfer.fetch(download(reference, listing, file), place, Silent(), tell),
    )


def remove(name: str, *, source: Source | None = None, revision: str | None = None) -> int:
    """Delete a model from its hub's cache; returns the bytes freed. Files that another revision uses stay.

    Its packed weights go with it, unless a program that still runs has mapped them; those go when others are packed.

    Only names are taken, never paths; HubError where the model is not here, is being fetched, or is the built-in one.
    """
    require_removable(name)
    reference = parse_name(name, source=source, revision=revision)
    place = cache.store(reference)
    other = reference.elsewhere
    if not place.exists() and _leaves_hub_open(name, source) and other is not None and cache.store(other).exists():
        reference, place = other, cache.store(other)
    with _locked(place.lock, f"{reference} is being fetched by another process; stop that first", None):
        freed_bytes = cache.remove(reference)
        return freed_bytes + packed_files.remove_of(place.folder)


def require_removable(name: str) -> None:
    """HubError for the model that is a part of the package, and for a path."""
    if not is_name(name):
        raise HubError(f"{name} is not a name but a path; rm removes downloaded models, named as 'minicpm list' does")
    if embedded.is_name(name):
        raise HubError(f"{EMBEDDED_NAME} is built into the package and goes only with it; rm removes downloaded models")


def is_offline(offline: bool | None = None) -> bool:
    """Whether no network may be used: as asked, else as HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE say."""
    if offline is not None:
        return offline
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def _leaves_hub_open(name: str, source: Source | None) -> bool:
    """Whether neither the name (a prefix, an address) nor an option says which hub is meant."""
    return source is None and ":" not in name


def _hub(source: Source) -> Hub:
    return huggingface if source == "huggingface" else modelscope


def _missing(
    place: cache.Store, files: list[RemoteFile], *, verify: bool, tell: Callable[[str], None]
) -> list[RemoteFile]:
    """The files that are not here; with `verify` those too whose bytes are wrong, which are discarded."""
    missing = []
    for file in files:
        if not place.has(file):
            missing.append(file)
        elif verify:
            hasher = file.hasher()
            with place.content(file).open("rb") as content:
                while block := content.read(1 << 20):
                    hasher.update(block)
            if hasher.hexdigest() != file.digest:
                tell(f"{file.path}: the file on this machine is damaged; fetching it again")
                place.discard(file)
                missing.append(file)
    return missing


def _fetch_all(
    reference: Reference,
    listing: Listing,
    files: list[RemoteFile],
    missing: list[RemoteFile],
    place: cache.Store,
    progress: Progress,
    tell: Callable[[str], None],
) -> None:
    """Stage every missing file, one after the other."""
    hub = _hub(reference.source)
    distinct = list({file.digest: file for file in missing}.values())  # the same bytes under two names come once
    started = {file.digest: _partial_bytes(place.partial(file), file) for file in distinct}
    needed_bytes = sum(file.size - started[file.digest] for file in distinct)
    transfer.require_free_space(place.folder, needed_bytes, str(reference))
    if done := sum(started.values()):
        tell(f"{reference}: going on after {done / 1e6:.1f} MB that an interrupted download left")
    total = sum(file.size for file in files)
    progress.begin(reference.repo_id, total, total - sum(file.size for file in missing) + done)
    try:
        for file in distinct:
            partial = place.partial(file)
            partial.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as held:
                if isinstance(place, cache.HuggingFaceStore):
                    waiting = f"another program is fetching {file.path}"
                    held.enter_context(_locked(place.blob_lock(file), waiting, tell))
                if place.has(file):  # the other program brought it
                    progress.advance(file.size - started[file.digest])
                    continue
                transfer.fetch(hub.download(reference, listing, file), partial, progress, tell)
                place.stage(file)
    finally:
        progress.end()


def _partial_bytes(partial: Path, file: RemoteFile) -> int:
    """The bytes of a partial that a transfer goes on from; one that is too long counts nothing."""
    size = partial.stat().st_size if partial.is_file() else 0
    return size if size <= file.size else 0


@contextmanager
def _locked(path: Path, busy: str, tell: Callable[[str], None] | None) -> Iterator[None]:
    """Hold a lock file of huggingface_hub's kind. When it is held, `tell` and wait; without `tell`, HubError."""
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(path, timeout=0.1))
        except TimeoutError:
            if tell is None:
                raise HubError(busy) from None
            tell(f"{busy}; waiting for it")
            held.enter_context(WeakFileLock(path))
        yield


def _absent_offline(reference: Reference, *, is_asked: bool) -> str:
    why = "--offline was given" if is_asked else "HF_HUB_OFFLINE is set"
    folder = cache.store(reference).locate(reference.revision)
    state = (
        f"incomplete on this machine ({one_line(missing_parts(folder) or 'nothing')} is missing)"
        if folder
        else "not on this machine"
    )
    return f"{reference} is {state}, and nothing is downloaded because {why}; pull it once with a network"
