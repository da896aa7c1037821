"""A training file as token ids on disk: written once, then mapped, so that a file of any size needs no memory.

A store is a folder of four plain little-endian arrays and a record of their source. It is written under a hidden name
and renamed when it is complete. A store that matches its source is reused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minicpm.errors import DataError
from minicpm.export.destination import new_folder
from minicpm.files import sha256_of
from minicpm.train.records import Problem, read_records, require_no_problems
from minicpm.train.rendering import Document, Renderer

LAYOUT = 1
# File -> dtype: the ids of all documents; whether each id is trained; each document's end; whether it may be cut.
ARRAYS = {"ids": np.dtype("<u4"), "trained": np.dtype("?"), "ends": np.dtype("<i8"), "is_text": np.dtype("?")}
FLUSH_TOKENS = 1 << 20


@dataclass(frozen=True)
class TokenStore:
    """Documents of one file; document i is ids[ends[i - 1] : ends[i]]."""

    path: Path
    source: Path
    digest: str  # of source, tokenizer, template and train_on; equal digests mean equal tokens
    ids: npt.NDArray[np.uint32]
    trained: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.int64]
    is_text: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.ends, prepend=0)

    def start(self, document: int) -> int:
        return int(self.ends[document - 1]) if document else 0

    def first_trained(self) -> npt.NDArray[np.int64]:
        """(documents,): the index of each document's first trained token."""
        starts = self.ends - self.lengths
        places = np.flatnonzero(self.trained)
        return places[np.searchsorted(places, starts)] - starts


def token_store(
    source: str | Path, folder: Path, renderer: Renderer, tell: Callable[[str], None] = lambda _: None
) -> TokenStore:
    """The store of a training file under `folder`; it is written if it does not exist.

    Raises DataError with the lines of bad records (then nothing is kept), or for a file without documents.
    """
    source = Path(source)
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    digest = _digest(source, renderer)
    path = folder / f"{source.name.split('.')[0]}-{digest[:12]}"
    if not (path / "store.json").is_file():
        tell(f"reading {source}")
        with new_folder(path) as partial:
            ignored = _write(source, partial, renderer, digest)
        for name, count in ignored.items():
            records = "record has" if count == 1 else "records have"
            tell(f"{source}: {count:,} {records} the field {name}, which is not used")
    return _opened(path, source, digest)


def _digest(source: Path, renderer: Renderer) -> str:
    """A hash of everything that determines the tokens. The tokenizer's pieces stand for the tokenizer."""
    tokenizer = renderer.tokenizer
    pieces = [tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)]
    about = [LAYOUT, renderer.template.text, renderer.train_on, tokenizer.adds_bos, tokenizer.eos_token_id, pieces]
    made = hashlib.sha256(json.dumps(about).encode())
    made.update(bytes.fromhex(sha256_of([source])[0]))
    return made.hexdigest()


def _write(source: Path, folder: Path, renderer: Renderer, digest: str) -> Counter[str]:
    """Write the arrays and their record; returns how many records have each field that was not used."""
    ignored: Counter[str] = Counter()
    files = {name: (folder / f"{name}.bin").open("xb") for name in ARRAYS}
    ids: list[int] = []
    trained: list[bool] = []
    tokens = documents = 0

    def flush() -> None:
        files["ids"].write(np.array(ids, ARRAYS["ids"]).tobytes())
        files["trained"].write(np.array(trained, ARRAYS["trained"]).tobytes())
        ids.clear()
        trained.clear()

    try:
        problems: list[Problem] = []
        for place, record in read_records(source):
            document = _rendered(place, record, renderer)
            if isinstance(document, Problem):
                problems.append(document)
                continue
            assert not isinstance(record, Problem)  # rendering would have returned it
            ignored.update(record.ignored)
            ids += document.ids
            trained += document.is_trained
            tokens, documents = tokens + len(document.ids), documents + 1
            files["ends"].write(np.array([tokens], ARRAYS["ends"]).tobytes())
            files["is_text"].write(np.array([document.is_text]).tobytes())
            if len(ids) >= FLUSH_TOKENS:
                flush()
        require_no_problems(source, problems)
        if not documents:
            raise DataError(f"{source}: holds no records, so there is nothing to train on")
        flush()
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    note = {"layout": LAYOUT, "source": str(source), "digest": digest, "documents": documents, "tokens": tokens}
    (folder / "store.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return ignored


def _rendered(place: str, record: Any, renderer: Renderer) -> Document | Problem:
    if isinstance(record, Problem):
        return record
    try:
        return renderer.render(record)
    except ValueError as error:
        return Problem(place, str(error))


def _opened(path: Path, source: Path, digest: str) -> TokenStore:
    try:
        note = json.loads((path / "store.json").read_text(encoding="utf-8"))
        sizes = {"ids": note["tokens"], "trained": note["tokens"], "ends": note["documents"]}
        whole = note["digest"] == digest and all(
            (path / f"{name}.bin").stat().st_size == sizes.get(name, note["documents"]) * dtype.itemsize
            for name, dtype in ARRAYS.items()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a complete token store ({error}); remove it, and it is made again") from error
    if not whole:
        raise DataError(f"{path}: not a complete token store; remove it, and it is made again")
    arrays: dict[str, Any] = {name: np.memmap(path / f"{name}.bin", dtype, mode="r") for name, dtype in ARRAYS.items()}
    return TokenStore(path, source, digest, arrays["ids"], arrays["trained"], arrays["ends"], arrays["is_text"])
