"""Models on this disk: each hub's cache layout, the check for complete models, and their removal.

It uses no network and only the standard library, because `minicpm list` must be quick.
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

PARTIAL_SUFFIX = ".minicpm.incomplete"  # has huggingface_hub's own suffix, so that its tools see and clean it
_MANIFEST = ".minicpm.json"
_MAX_JSON_BYTES, _MAX_TEXT_BYTES = 64 << 20, 1 << 12


class Store(Protocol):
    """One repository in a hub's cache. Files are staged one by one; `publish` makes them a model in one step."""

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""

    @property
    def lock(self) -> Path:
        """The lock file that a process holds while it changes this repository."""

    def exists(self) -> bool:
        """Whether any file of the repository is here, even a partial download."""

    def has(self, file: RemoteFile) -> bool:
        """Whether the verified content of the file is here."""

    def partial(self, file: RemoteFile) -> Path:
        """The path of the partial download; always the same for the same content."""

    def stage(self, file: RemoteFile) -> None:
        """Keep the partial download, which is complete and verified."""

    def discard(self, file: RemoteFile) -> None:
        """Delete content that `has` accepts but that turned out to be wrong."""

    def content(self, file: RemoteFile) -> Path:
        """The path of the content that `has` checks."""

    def publish(self, listing: Listing, files: Iterable[RemoteFile], revision: str | None) -> Path:
        """Make the staged files a model; return the folder that a loader reads."""

    def locate(self, revision: str | None) -> Path | None:
        """The published folder of a revision on this disk, complete or not; None if there is none."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine. `nbytes` counts its files on disk, including partial ones, without packed weights."""

    name: str
    source: Source | Literal["embedded"]  # embedded: part of this package
    path: Path
    nbytes: int
    revision: str
    is_complete: bool
    last_used: datetime | None
    packed_bytes: int = 0  # packed_files.py


# --- Places ------------------------------------------------------------------------------------------------------


def huggingface_root() -> Path:
    """huggingface_hub's cache folder, by the library's own rules but without importing it."""
    home = os.environ.get("HF_HOME") or f"{_xdg_cache()}/huggingface"
    root = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return _expanded(root)


def modelscope_root() -> Path:
    """The model cache of ModelScope's SDK."""
    return _expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope/hub") / "models"


def home() -> Path:
    """The folder of this package's own data, $MINICPM_HOME: shown licences, times of use, packed weights."""
    return _expanded(os.environ.get("MINICPM_HOME") or f"{_xdg_cache()}/minicpm")


def store(reference: Reference) -> HuggingFaceStore | ModelScopeStore:
    """The reference's place in its hub's cache."""
    if reference.source == "huggingface":
        return HuggingFaceStore(reference.repo_id)
    return ModelScopeStore(reference.repo_id)


# --- Hugging Face: models--org--name/{blobs,refs,snapshots}, blobs named by hash ---------------------------------


@dataclass(frozen=True)
class HuggingFaceStore:
    """A repository in huggingface_hub's layout, shared with transformers and `hf`."""

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
        # The reference is written last: until then the name refers to the complete older snapshot, if there is one.
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
            shutil.copyfile(blob, new)  # a disk without symbolic links; the library also stores plain files there
        new.replace(pointer)


# --- ModelScope: models/org/name, plain files --------------------------------------------------------------------


@dataclass(frozen=True)
class ModelScopeStore:
    """A repository in the layout of ModelScope's SDK, with our own manifest of verified files.

    All revisions share one folder, so files are staged beside it until all are complete. An interrupted update leaves
    the older model intact.
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
        """Recognise a verified file by its size and modification time; hash a file from another program once."""
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


# --- Models on this machine --------------------------------------------------------------------------------------


def missing_parts(folder: Path) -> str | None:
    """The first missing part of a published folder; None if it is complete.

    It checks only the folder, so that it works for other tools' downloads, too. A complete folder has config.json,
    every shard of an index or one weight file, and no broken link.
    """
    names = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    for path in names.values():
        if path.is_symlink() and not path.exists():
            return f"{path.name} (its link is broken)"
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
    """The MiniCPM models in both hubs' caches, by name; one entry per revision, including partial downloads.

    Other families' models in these shared caches are left out, unless they were used with this package or
    `everything` is set.
    """
    models = [*_huggingface_models(everything), *_modelscope_models(everything)]
    return sorted(models, key=lambda model: (model.name, model.source, model.revision))


def remove(reference: Reference) -> int:
    """Delete a model, or only the given revision, from its cache; return the freed bytes.

    Blobs that another revision uses are kept. Raises HubError if the model is not here or its folder is outside the
    cache.
    """
    place = store(reference)
    folder = place.folder
    waiting = place._waiting if isinstance(place, ModelScopeStore) else None
    if not place.exists():
        raise HubError(f"{reference} is not on this machine; 'minicpm list' shows what is")
    if folder.is_symlink() or not folder.resolve().is_relative_to(place.root.resolve()):
        raise HubError(f"{folder} links out of the cache to {folder.resolve()}; remove it by hand")
    before = _disk_bytes(folder)
    if reference.revision is not None and isinstance(place, HuggingFaceStore):
        _remove_revision(place, reference)
    else:
        if reference.revision is not None and place.locate(reference.revision) is None:
            raise HubError(f"{reference} is not on this machine; 'minicpm list' shows what is")
        for part in ("refs", "snapshots"):  # first, so that an interrupted removal leaves no incomplete model
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
    """Create an empty file in the home, or set its time to now. An error is ignored: only the note is lost."""
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
    """The only snapshot whose commit begins with `prefix`: `list` prints shortened commits."""
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
    """Bytes of the model's files in a folder itself, links not followed."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.name != _MANIFEST)


def _mark(path: Path, digest: str) -> list[object]:
    """The manifest entry of a verified file, which changes if the file does."""
    status = path.stat()
    return [digest, status.st_size, status.st_mtime_ns]


def _read_text(path: Path) -> str | None:
    """A one-line file, such as a reference's commit; None if it cannot be read."""
    try:
        return read_text(path, _MAX_TEXT_BYTES).strip()
    except (OSError, FormatError):
        return None


def _read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; {} if the file is missing or is not one."""
    try:
        return read_json_object(path, _MAX_JSON_BYTES)
    except (OSError, FormatError):
        return {}
