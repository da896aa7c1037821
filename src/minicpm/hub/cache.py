"""Models on this disk: each hub's own cache layout, what is complete in it, and removing it again.

No network, and nothing heavier than the standard library: `minicpm list` must be quick.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import quote

from minicpm.errors import FormatError, HubError
from minicpm.files import read_json_object, read_text, sync_folder, write_text
from minicpm.hub.names import Reference, Source
from minicpm.hub.remote import Listing, RemoteFile

PARTIAL_SUFFIX = ".minicpm.incomplete"  # ends as the library's own partials do, so that its tools see and clean it
_MANIFEST = ".minicpm.json"
_MAX_JSON_BYTES, _MAX_TEXT_BYTES = 64 << 20, 1 << 12


class Store(Protocol):
    """One repository in a hub's cache. Files are staged one by one; `publish` makes them a model at one stroke."""

    @property
    def folder(self) -> Path:
        """What the repository occupies in the cache."""

    @property
    def lock(self) -> Path:
        """Held by whoever changes this repository."""

    def exists(self) -> bool:
        """Whether anything of the repository is here, be it the beginning of a download."""

    def has(self, file: RemoteFile) -> bool:
        """Whether the verified bytes are here."""

    def partial(self, file: RemoteFile) -> Path:
        """Where the file grows; always the same name for the same bytes."""

    def stage(self, file: RemoteFile) -> None:
        """The partial is complete and verified."""

    def discard(self, file: RemoteFile) -> None:
        """Forget bytes that `has` believes in, since they turned out wrong."""

    def content(self, file: RemoteFile) -> Path:
        """Where the bytes lie that `has` speaks of."""

    def publish(self, listing: Listing, files: Iterable[RemoteFile], revision: str | None) -> Path:
        """All files are staged: the folder that a loader reads."""

    def locate(self, revision: str | None) -> Path | None:
        """The published folder of a revision, complete or not, as the disk has it."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine. `nbytes` counts its files on disk, partial ones too, but no packed weights."""

    name: str
    source: Source | Literal["embedded"]  # embedded: a part of the package
    path: Path
    nbytes: int
    revision: str
    is_complete: bool
    last_used: datetime | None
    packed_bytes: int = 0  # packed_files.py


# Where things are


def huggingface_root() -> Path:
    """The folder that huggingface_hub caches in, by the library's own rules, without the cost of importing it."""
    home = os.environ.get("HF_HOME") or f"{_xdg_cache()}/huggingface"
    root = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return _expanded(root)


def modelscope_root() -> Path:
    """The folder that ModelScope's SDK caches models in."""
    return _expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope/hub") / "models"


def home() -> Path:
    """This package's own notes: which licences were shown, when a model was used, packed weights. $MINICPM_HOME."""
    return _expanded(os.environ.get("MINICPM_HOME") or f"{_xdg_cache()}/minicpm")


def store(reference: Reference) -> HuggingFaceStore | ModelScopeStore:
    """The reference's place in its hub's cache."""
    if reference.source == "huggingface":
        return HuggingFaceStore(reference.repo_id)
    return ModelScopeStore(reference.repo_id)


# Hugging Face: models--org--name/{blobs,refs,snapshots}, blobs named by hash


@dataclass(frozen=True)
class HuggingFaceStore:
    """A repository in huggingface_hub's layout: what is put here, transformers and `hf` find, and the other way."""

    repo_id: str
    root: Path = field(default_factory=huggingface_root)

    @property
    def folder(self) -> Path:
        return self.root / ("models--" + self.repo_id.replace("/", "--"))

    @property
    def lock(self) -> Path:
        return self.root / ".locks" / self.folder.name / "minicpm.lock"

    def exists(self) -> bool:
        return self.folder.is_dir()

    def blob_lock(self, file: RemoteFile) -> Path:
        """The lock that huggingface_hub holds while it writes this blob."""
        return self.root / ".locks" / self.folder.name / f"{file.digest}.lock"

    def content(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.digest

    def has(self, file: RemoteFile) -> bool:
        return _size(self.content(file)) == file.size

    def partial(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / (file.digest + PARTIAL_SUFFIX)

    def stage(self, file: RemoteFile) -> None:
        self.partial(file).replace(self.content(file))
        sync_folder(self.content(file).parent)

    def discard(self, file: RemoteFile) -> None:
        self.content(file).unlink(missing_ok=True)

    def publish(self, listing: Listing, files: Iterable[RemoteFile], revision: str | None) -> Path:
        snapshot = self.folder / "snapshots" / listing.commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in files:
            pointer = snapshot / file.path
            pointer.parent.mkdir(parents=True, exist_ok=True)
            self._point(pointer, self.content(file))
        # The reference comes last: until then the name means the complete older snapshot, if there is one.
        if revision != listing.commit:
            reference = self.folder / "refs" / (revision or "main")
            if _read_text(reference) != listing.commit:
                write_text(reference, listing.commit)
        return snapshot

    def locate(self, revision: str | None) -> Path | None:
        commit = _read_text(self.folder / "refs" / (revision or "main")) or revision
        snapshot = self.folder / "snapshots" / commit if commit and "/" not in commit else None
        return snapshot if snapshot is not None and snapshot.is_dir() else None

    @staticmethod
    def _point(pointer: Path, blob: Path) -> None:
        target = os.path.relpath(blob, pointer.parent)
        if pointer.is_symlink() and str(pointer.readlink()) == target:
            return
        new = pointer.with_name(".minicpm.tmp")
        new.unlink(missing_ok=True)
        try:
            new.symlink_to(target)
        except OSError:
            shutil.copyfile(blob, new)  # a disk without symbolic links: the library keeps plain files there, too
        new.replace(pointer)


# ModelScope: models/org/name, plain files


@dataclass(frozen=True)
class ModelScopeStore:
    """A repository in the layout of ModelScope's SDK, with a manifest of our own that remembers what was verified.

    There is one folder for all revisions, so files wait beside it until all are there: an update that is interrupted
    leaves the older model whole.
    """

    repo_id: str
    root: Path = field(default_factory=modelscope_root)

    @property
    def folder(self) -> Path:
        return self.root / self.repo_id.replace(".", "___")

    @property
    def _waiting(self) -> Path:
        return self.root / "._____temp" / "minicpm" / self.repo_id.replace(".", "___")

    @property
    def lock(self) -> Path:
        return self.root / "._____temp" / "minicpm" / (self.repo_id.replace("/", "--") + ".lock")

    def exists(self) -> bool:
        return self.folder.is_dir() or self._waiting.is_dir()

    def content(self, file: RemoteFile) -> Path:
        staged = self._waiting / file.digest
        return staged if staged.exists() else self.folder / file.path

    def has(self, file: RemoteFile) -> bool:
        """Verified files are known by size and time of change; a file from elsewhere is read and hashed once."""
        path = self.content(file)
        if _size(path) != file.size:
            return False
        if path.parent == self._waiting or self._manifest().get(file.path) == _mark(path, file.digest):
            return True
        hasher = file.hasher()
        with path.open("rb") as content:
            while block := content.read(1 << 20):
                hasher.update(block)
        if hasher.hexdigest() != file.digest:
            return False
        self._remember([file])
        return True

    def partial(self, file: RemoteFile) -> Path:
        return self._waiting / (file.digest + PARTIAL_SUFFIX)

    def stage(self, file: RemoteFile) -> None:
        self.partial(file).replace(self._waiting / file.digest)
        sync_folder(self._waiting)

    def discard(self, file: RemoteFile) -> None:
        self.content(file).unlink(missing_ok=True)

    def publish(self, listing: Listing, files: Iterable[RemoteFile], revision: str | None) -> Path:
        files = list(files)
        for file in files:
            staged, final = self._waiting / file.digest, self.folder / file.path
            if staged.exists():
                final.parent.mkdir(parents=True, exist_ok=True)
                if sum(other.digest == file.digest for other in files) > 1:
                    shutil.copyfile(staged, new := final.with_name(final.name + PARTIAL_SUFFIX))
                    new.replace(final)
                else:
                    staged.replace(final)
        self._remember(files, revision or "master")
        shutil.rmtree(self._waiting, ignore_errors=True)
        return self.folder

    def locate(self, revision: str | None) -> Path | None:
        if not self.folder.is_dir():
            return None
        known = _read_json(self.folder / _MANIFEST).get("revision")
        return self.folder if revision is None or revision == known else None

    def _manifest(self) -> dict[str, object]:
        files = _read_json(self.folder / _MANIFEST).get("files")
        return files if isinstance(files, dict) else {}

    def _remember(self, files: list[RemoteFile], revision: str | None = None) -> None:
        manifest = _read_json(self.folder / _MANIFEST)
        known = {path: mark for path, mark in self._manifest().items() if (self.folder / path).is_file()}
        known |= {file.path: _mark(self.folder / file.path, file.digest) for file in files}
        manifest = {"revision": revision or manifest.get("revision"), "files": known}
        write_text(self.folder / _MANIFEST, json.dumps(manifest, indent=1))


# What is here


def missing_parts(folder: Path) -> str | None:
    """What a loader would miss in a published folder, or None when it is complete.

    Judged by the folder alone, so that it holds for other tools' downloads, too: every shard of an index, or one
    file of weights, and the configuration; no link that leads nowhere.
    """
    names = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    for path in names.values():
        if path.is_symlink() and not path.exists():
            return f"{path.name} (its link leads nowhere)"
    if any(name.endswith(".gguf") for name in names):
        return None
    if "config.json" not in names:
        return "config.json"
    indexes = [name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))]
    problem: str | None = "the weights"
    for index in indexes:
        shards = _read_json(names[index]).get("weight_map")
        wanted = set(map(str, shards.values())) if isinstance(shards, dict) else {index}
        if not wanted - set(names):
            return None
        problem = min(wanted - set(names))
    if indexes:
        return problem
    return None if any(name.endswith((".safetensors", ".bin")) for name in names) else problem


def list_models(*, everything: bool = False) -> list[LocalModel]:
    """The MiniCPM models in both hubs' caches, by name; one entry per revision, unfinished downloads included.

    Other families' models in these shared caches are left out unless they were used with this package, or
    `everything` is asked for.
    """
    models = [*_huggingface_models(everything), *_modelscope_models(everything)]
    return sorted(models, key=lambda model: (model.name, model.source, model.revision))


def remove(reference: Reference) -> int:
    """Delete a model from its cache and return the bytes that this freed; with a revision, only that one.

    Blobs that another revision uses stay. HubError where the model is not here or its folder leaves the cache.
    """
    place = store(reference)
    folder = place.folder
    waiting = place._waiting if isinstance(place, ModelScopeStore) else None
    if not place.exists():
        raise HubError(f"{reference} is not on this machine; 'minicpm list' shows what is")
    if folder.is_symlink() or not folder.resolve().is_relative_to(place.root.resolve()):
        raise HubError(f"{folder} leads out of the cache to {folder.resolve()}; remove it by hand")
    before = _disk_bytes(folder)
    if reference.revision is not None and isinstance(place, HuggingFaceStore):
        _remove_revision(place, reference)
    else:
        if reference.revision is not None and place.locate(reference.revision) is None:
            raise HubError(f"{reference} is not on this machine; 'minicpm list' shows what is")
        for part in ("refs", "snapshots"):  # first what makes it a model: an interrupted removal leaves no false one
            shutil.rmtree(folder / part, ignore_errors=True)
        if waiting is not None:
            before += _disk_bytes(waiting)
            shutil.rmtree(waiting, ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(folder)
        _used_marker(reference.source, reference.repo_id).unlink(missing_ok=True)
    return before - _disk_bytes(folder)


def mark_used(reference: Reference) -> None:
    """Note that the model is used now."""
    touch_note(_used_marker(reference.source, reference.repo_id))


def touch_note(path: Path) -> None:
    """Make an empty file in the home, or give it the time of now. A home that cannot be written only costs the note."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _huggingface_models(everything: bool) -> Iterator[LocalModel]:
    for folder in sorted(huggingface_root().glob("models--*")):
        repo_id = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
        used = _last_used("huggingface", repo_id)
        is_ours = used or repo_id.lower().startswith("openbmb/") or any(map(_is_family, snapshots))
        if not (everything or is_ours):
            continue
        names = {_read_text(path): path.name for path in sorted(folder.glob("refs/*")) if path.is_file()}
        for snapshot in snapshots:
            revision = names.get(snapshot.name, snapshot.name[:12])
            is_complete = missing_parts(snapshot) is None
            yield LocalModel(repo_id, "huggingface", snapshot, _size_of(snapshot), revision, is_complete, used)
        if not snapshots:
            yield LocalModel(repo_id, "huggingface", folder, _disk_bytes(folder), "-", False, used)


def _modelscope_models(everything: bool) -> Iterator[LocalModel]:
    root = modelscope_root()
    waiting = {path.relative_to(root / "._____temp" / "minicpm") for path in root.glob("._____temp/minicpm/*/*/")}
    folders = {path.relative_to(root) for path in root.glob("[!.]*/*/")} | waiting
    for relative in sorted(folders):
        folder = root / relative
        repo_id = f"{relative.parts[0]}/{relative.parts[1].replace('___', '.')}"
        used = _last_used("modelscope", repo_id)
        is_ours = used or relative in waiting or repo_id.lower().startswith("openbmb/") or _is_family(folder)
        if not (everything or is_ours):
            continue
        place = ModelScopeStore(repo_id, root)
        if place.folder != folder or not place.exists():
            continue
        revision = _read_json(folder / _MANIFEST).get("revision") or "-"
        nbytes = _disk_bytes(folder) + _disk_bytes(place._waiting)
        is_complete = missing_parts(folder) is None
        yield LocalModel(repo_id, "modelscope", folder, nbytes, str(revision), is_complete, used)


def _is_family(folder: Path) -> bool:
    config = _read_json(folder / "config.json")
    kind = json.dumps([config.get("model_type"), config.get("architectures")]).lower()
    return "minicpm" in kind or "omnilmm" in kind


def _remove_revision(place: HuggingFaceStore, reference: Reference) -> None:
    snapshot = place.locate(reference.revision) or _by_prefix(place, reference.revision or "")
    if snapshot is None:
        raise HubError(f"{reference} is not on this machine; 'minicpm list' shows what is")
    for ref in place.folder.glob("refs/**/*"):
        if ref.is_file() and _read_text(ref) == snapshot.name:
            ref.unlink()
    shutil.rmtree(snapshot)
    in_use = {path.readlink().name for path in place.folder.glob("snapshots/*/**/*") if path.is_symlink()}
    for blob in place.folder.glob("blobs/*"):
        if blob.name not in in_use:
            blob.unlink()
    if not any(place.folder.glob("snapshots/*")):
        shutil.rmtree(place.folder)


def _by_prefix(place: HuggingFaceStore, prefix: str) -> Path | None:
    """The one snapshot whose commit begins so: `list` prints commits short."""
    found = [path for path in place.folder.glob("snapshots/*") if len(prefix) >= 7 and path.name.startswith(prefix)]
    return found[0] if len(found) == 1 else None


def _used_marker(source: Source, repo_id: str) -> Path:
    return home() / "used" / quote(f"{source}:{repo_id}", safe="")


def _last_used(source: Source, repo_id: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(_used_marker(source, repo_id).stat().st_mtime, UTC)
    except OSError:
        return None


def _xdg_cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or "~/.cache"


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser().absolute()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _size_of(snapshot: Path) -> int:
    """Bytes of a snapshot's files, links followed."""
    return sum(path.stat().st_size for path in snapshot.rglob("*") if path.is_file())


def _disk_bytes(folder: Path) -> int:
    """Bytes of the model's files that really lie in a folder, links not followed."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.name != _MANIFEST)


def _mark(path: Path, digest: str) -> list[object]:
    """What says that a file is still the one that was verified."""
    status = path.stat()
    return [digest, status.st_size, status.st_mtime_ns]


def _read_text(path: Path) -> str | None:
    """A line that a program wrote down, a commit for one; None where there is none."""
    try:
        return read_text(path, _MAX_TEXT_BYTES).strip()
    except (OSError, FormatError):
        return None


def _read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; empty where there is none or it is something else."""
    try:
        return read_json_object(path, _MAX_JSON_BYTES)
    except (OSError, FormatError):
        return {}
