"""What a hub says a repository holds, distrusted: names, sizes and hashes are checked before anything uses them."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minicpm.errors import HubError, brief

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_FILES = 100_000
MAX_FILE_BYTES = 10**15  # above any file that exists: a larger number is a lie

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

# What a model folder needs beside its weights. No code: nothing here runs the hub's .py files.
_COMPANIONS = (
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "*License*",
)
_WEIGHT_FORMS = ("*.safetensors", "*.bin", "*.gguf")  # in the order of preference
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "consolidated*.safetensors")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `digest` is hex: sha256 of the bytes (64 digits) or git's blob sha1 (40)."""

    path: str
    size: int
    digest: str

    def hasher(self) -> _Hash:
        """A fresh hash object whose hexdigest over the file's bytes must equal `digest`."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    repo_id: str
    commit: str
    files: tuple[RemoteFile, ...]


def checked_file(where: str, path: object, size: object, digest: object) -> RemoteFile:
    """A listing's entry as a RemoteFile; HubError when a field could lead a writer astray.

    `where` names the repository in messages. Refused: paths that are absolute, climb, or hide a second meaning
    (backslash, control characters, empty parts, the caches' own notes), sizes that are no sensible count, digests that
    are not hex.
    """
    if not isinstance(path, str) or not _is_safe_path(path):
        raise HubError(
            f"{where} lists a file named {brief(path)}, which would leave the model's folder; nothing was fetched"
        )
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_FILE_BYTES:
        raise HubError(f"{where} says that {path} has {brief(size)} bytes, which cannot be; nothing was fetched")
    if not isinstance(digest, str) or not (_SHA1.fullmatch(digest) or _SHA256.fullmatch(digest)):
        raise HubError(f"{where} gives no usable hash for {path} ({brief(digest)}), so it cannot be verified")
    return RemoteFile(path, size, digest)


def checked_listing(repo_id: str, where: str, commit: object, files: Iterable[RemoteFile]) -> Listing:
    """The entries as a Listing; HubError for too many of them, doubles, a file that is also a folder, or no commit."""
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise HubError(f"{where} answered with commit {brief(commit)}; expected 40 hex digits")
    found: dict[str, RemoteFile] = {}
    for file in files:
        if file.path in found:
            raise HubError(f"{where} lists {file.path} twice; nothing was fetched")
        found[file.path] = file
        if len(found) > MAX_FILES:
            raise HubError(f"{where} lists more than {MAX_FILES} files; that is no model")
    for path in found:
        parents = path.split("/")[:-1]
        if any("/".join(parents[: n + 1]) in found for n in range(len(parents))):
            raise HubError(f"{where} lists {path} inside another file; nothing was fetched")
    return Listing(repo_id, commit, tuple(found.values()))


def needed_files(listing: Listing) -> tuple[RemoteFile, ...]:
    """The files that loading a model takes: its weights in one form, configuration, tokenizer and licence.

    safetensors before .bin before .gguf; only the repository's own folder, never code. HubError where the choice is
    the user's: several .gguf files, or no weights at all.
    """
    top = [file for file in listing.files if "/" not in file.path]
    for form in _WEIGHT_FORMS:
        weights = [file for file in top if _matches(file.path, (form,)) and not _matches(file.path, _NOT_WEIGHTS)]
        if weights:
            break
    else:
        raise HubError(
            f"{listing.repo_id} holds no weights (.safetensors, .bin or .gguf) in its top folder; "
            "--all fetches everything it holds"
        )
    if form == "*.gguf" and len(weights) > 1:
        names = ", ".join(file.path for file in weights)
        raise HubError(f"{listing.repo_id} offers several .gguf files ({names}); --all fetches all of them")
    companions = [
        file
        for file in top
        if _matches(file.path, _COMPANIONS) and not (file.path.endswith(".index.json") and not _indexes(file, form))
    ]
    return tuple(companions + weights)


def in_fetching_order(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Small files first, so that what is wrong with a model shows before its gigabytes come."""
    return sorted(files, key=lambda file: (is_weights(file), file.path))


def is_weights(file: RemoteFile) -> bool:
    """Whether a file holds weights, by its name."""
    return _matches(file.path.rpartition("/")[2], _WEIGHT_FORMS)


# Notes that programs keep in a model's folder: ours, and those of ModelScope's SDK, which unpickles them.
_RESERVED = (".minicpm*", ".msc", ".mdl", ".mv")


def _is_safe_path(path: str) -> bool:
    parts = path.split("/")
    return (
        0 < len(path) <= 1024
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
        and not _matches(parts[-1], _RESERVED)
        and "\\" not in path
        and path.isprintable()
        and not re.match(r"[A-Za-z]:", path)
    )


def _indexes(index: RemoteFile, form: str) -> bool:
    """Whether `model.safetensors.index.json` belongs to the weights of `form`."""
    return index.path.removesuffix(".index.json").endswith(form.removeprefix("*"))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
