"""Small files: untrusted ones are looked up and read with checks; our own are written completely or not at all.

Nothing outside a model folder is read, except through the symbolic links of a Hugging Face cache, whose snapshots
point into the `blobs` folder of the same model. minicpm.formats maps the large files of weights.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError
from minicpm.progress import Progress, Silent, task

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A comma takes one byte, but a parsed value up to a hundred: a file of commas would fill the memory.
MAX_JSON_ITEMS = 3_000_000

# The text that Git LFS puts in a large file's place; git-lfs(1) reads at most 1024 bytes of it.
POINTER_START, MAX_POINTER_BYTES = b"version https://git-lfs.github.com/spec/v", 1024

HAS_LOCKS = fcntl is not None
# For os.open. Windows has neither flag, but also no named pipes in folders that an open would wait for.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)


# --- Looking up ------------------------------------------------------------------------------------------------


def is_plain_name(name: object) -> bool:
    """Whether a name is a plain file name on every platform, so that it cannot leave its folder."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name not in (".", "..")
        and not any(character in name for character in "/\\\0:")
        and name.isprintable()
    )


def has_entry(folder: Path, name: str) -> bool:
    """Whether an entry of that name exists, even a broken link, for which `file_in` raises an error."""
    return os.path.lexists(folder / name)


def file_in(folder: Path, name: str) -> Path:
    """Path of the regular file `name`. Raises FormatError if it is missing, special, or outside the folder."""
    if not is_plain_name(name):
        raise FormatError(folder, f"{ascii(name)[:80]} is not a plain file name inside the model folder")
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        dangling = " (a symbolic link to nothing)" if path.is_symlink() else ""
        raise FormatError(path, f"no such file{dangling}; the model folder is incomplete") from None
    except (OSError, RuntimeError) as error:  # Python 3.11 raises RuntimeError for a loop of links.
        raise FormatError(path, "cannot be resolved; it is a loop of symbolic links") from error
    if not any(target.is_relative_to(root) for root in _readable_roots(folder.resolve())):
        raise FormatError(path, f"is a symbolic link out of the model folder, to {target}; copy the file instead")
    if not stat.S_ISREG(target.stat().st_mode):
        raise FormatError(path, "not a regular file")
    require_no_pointer(path)
    return path


def require_no_pointer(path: Path) -> None:
    """Raise FormatError if a regular file is Git LFS's pointer to the file itself."""
    if path.stat().st_size > MAX_POINTER_BYTES:
        return
    with path.open("rb") as file:
        if file.read(len(POINTER_START)) != POINTER_START:
            return
    raise FormatError(
        path,
        "is a pointer of Git LFS, not the file itself; run 'git lfs install' and 'git lfs pull' in the clone, "
        "or download the file",
    )


def _readable_roots(folder: Path) -> Iterator[Path]:
    yield folder
    snapshots = folder.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        model = snapshots.parent
        yield model / "blobs"
        # huggingface_hub 2 can share equal files among all models of a cache.
        if (model.parent / "blobs" / ".huggingface-shared-blobs").is_file():
            yield model.parent / "blobs"


# --- Reading ---------------------------------------------------------------------------------------------------


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The whole file. Raises FormatError, before anything is read, if it is larger than `max_bytes`."""
    size = path.stat().st_size
    if size > max_bytes:
        raise FormatError(path, f"{size:,} bytes, expected at most {max_bytes:,}")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)  # some files, such as those of /proc, report no size
    if len(data) > max_bytes:
        raise FormatError(path, f"more than {max_bytes:,} bytes")
    return data


_BLOCK_BYTES = 1 << 22


def sha256_of(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """The SHA-256 of every file, in hexadecimal digits."""
    progress, found = progress or Silent(), []
    with task(progress, "hashing", sum(path.stat().st_size for path in paths)):
        for path in paths:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    progress.advance(len(block))
            found.append(digest.hexdigest())
    return found


def read_text(path: Path, max_bytes: int) -> str:
    """A UTF-8 text with universal newlines. Raises FormatError if it is too large or not UTF-8."""
    try:
        return io.TextIOWrapper(io.BytesIO(read_bytes(path, max_bytes)), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise FormatError(path, f"not UTF-8 text: {error}") from error


def read_json_object(path: Path, max_bytes: int, *, unique_keys: bool = False) -> dict[str, Any]:
    """A JSON object. Raises FormatError if it is too large, damaged, not an object, or repeats a unique key."""
    return parse_json_object(path, read_bytes(path, max_bytes), unique_keys=unique_keys)


def parse_json_object(path: Path, data: bytes, *, unique_keys: bool = False) -> dict[str, Any]:
    """Like `read_json_object`, for the content `data` of `path`."""
    items = data.count(b",")
    if items > MAX_JSON_ITEMS:
        raise FormatError(path, f"about {items:,} JSON items, expected at most {MAX_JSON_ITEMS:,}")
    try:
        raw = json.loads(data, object_pairs_hook=_unique_object if unique_keys else None)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise FormatError(path, f"holds a JSON {type(raw).__name__}, expected an object")
    return raw


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key appears twice")
    return made


# --- Writing ---------------------------------------------------------------------------------------------------


def json_text(raw: Mapping[str, object]) -> str:
    """JSON text as transformers writes it: indented by two spaces, not limited to ASCII, with a final newline."""
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a UTF-8 text and sync it to disk. `path` has the old content or the new one, never a part of it.

    `mode` is the file's permissions before the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    with naming_full_disk(path):
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            new.replace(path)
            sync_folder(path.parent)
        except BaseException as error:
            new.unlink(missing_ok=True)
            if isinstance(error, OSError) and str(error.filename) == str(new):
                error.filename = str(path)  # the name that the caller gave
            raise


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries, such as a rename, to disk. Windows does that itself."""
    descriptor = open_folder(folder)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because the disk, or the user's quota, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Name `path` in errors of a full disk, for which the system names no file: they come from writes, not opens."""
    try:
        yield
    except OSError as error:
        if error.filename is None and (is_disk_full(error) or error.errno == errno.EFBIG):
            error.filename = str(path)
        raise


# --- Locking ---------------------------------------------------------------------------------------------------


def open_folder(folder: Path, flags: int = 0) -> int | None:
    """A descriptor of the folder, to sync or lock it; None on Windows, which cannot open a folder."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | flags) if hasattr(os, "O_DIRECTORY") else None


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file or folder until it is closed or the process ends.

    Raises BlockingIOError if another process holds the lock, another OSError if locking is impossible: some network
    file systems and Windows have no such locks.
    """
    if not HAS_LOCKS:
        raise OSError(errno.ENOTSUP, "this system has no locks that end with a process")
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
