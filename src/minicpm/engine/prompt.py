"""Prompts that hold embeddings, for instance of a picture, in place of token ids.

A span's positions have no token ids. Instead each has a content id: a negative number made from the span's key and the
position in the span. The cache and requests compare texts by these ids. So equal content has equal ids, and a content
id never equals a token id.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from minicpm.errors import GenerationError

Floats = npt.NDArray[np.float32]

# A content id is -1 - (digest * MOST_SPAN_POSITIONS + place).
MOST_SPAN_POSITIONS = 1 << 24
_DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class EmbeddingSpan:
    """Embeddings (n, hidden) float32 for n positions of a prompt, and a key of their content.

    The first layer gets them unchanged; `scale_emb` multiplies only token embeddings. Spans with the same key and
    length share cached keys and values. So `key` must identify the content, e.g. as a hash of the pixels and of their
    preprocessing. The numbers are copied. Raises ValueError for anything but finite float32 numbers and a key.
    """

    embeddings: Floats
    key: bytes

    def __post_init__(self) -> None:
        embeddings = self.embeddings
        if not isinstance(embeddings, np.ndarray) or embeddings.dtype != np.float32 or embeddings.ndim != 2:
            found = f"{embeddings.dtype} {embeddings.shape}" if isinstance(embeddings, np.ndarray) else repr(embeddings)
            raise ValueError(f"embeddings must be a float32 array (positions, hidden), got {found:.80}")
        if not 1 <= len(embeddings) <= MOST_SPAN_POSITIONS:
            raise ValueError(f"a span must have 1 to {MOST_SPAN_POSITIONS} positions, got {len(embeddings)}")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings must be finite, but these hold NaN or infinity")
        if not isinstance(self.key, bytes) or not self.key:
            raise ValueError(f"key must be one or more bytes that identify the content, got {self.key!r:.80}")
        own = embeddings.copy(order="C")
        own.setflags(write=False)
        object.__setattr__(self, "embeddings", own)

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def content_ids(self) -> list[int]:
        """A negative id for each position; equal for equal key, length and position."""
        # The length is hashed, too: spans of different lengths have different embeddings.
        named = len(self).to_bytes(8, "little") + self.key
        first = int.from_bytes(hashlib.blake2b(named, digest_size=_DIGEST_BYTES).digest()) * MOST_SPAN_POSITIONS
        return [-1 - (first + place) for place in range(len(self))]


Prompt: TypeAlias = str | Sequence[int | EmbeddingSpan]


class MixedIds(Sequence[int]):
    """Token ids and content ids of a prompt with spans, and the embeddings (n, hidden) of its n content ids in order.

    A slice keeps the embeddings of its own positions. A slice without content ids is a plain list.
    """

    def __init__(self, ids: list[int], embeddings: Floats):
        self._ids = ids
        self._places = [place for place, i in enumerate(ids) if i < 0]  # of the content ids
        self.embeddings = embeddings
        assert len(embeddings) == len(self._places)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Ids: ...
    def __getitem__(self, index: int | slice) -> int | Ids:
        if isinstance(index, int):
            return self._ids[index]
        start, stop, step = index.indices(len(self._ids))
        assert step == 1
        first, last = bisect_left(self._places, start), bisect_left(self._places, stop)
        ids = self._ids[start:stop]
        return MixedIds(ids, self.embeddings[first:last]) if first < last else ids

    def __add__(self, more: list[int]) -> MixedIds:
        """These ids, followed by token ids."""
        return MixedIds(self._ids + more, self.embeddings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MixedIds) and self._ids == other._ids

    __hash__ = None  # type: ignore[assignment]


Ids: TypeAlias = "list[int] | MixedIds"


def embeddings_of(ids: Sequence[int]) -> Floats | None:
    """The embeddings of the content ids; None if all are token ids."""
    return ids.embeddings if isinstance(ids, MixedIds) else None


def token_ids_of(ids: Iterable[int]) -> list[int]:
    """The token ids among these, without content ids."""
    return [i for i in ids if i >= 0]


def checked_ids(parts: Sequence[int | EmbeddingSpan], vocab_size: int, embedding_size: int | None) -> Ids:
    """The ids of a prompt's tokens and spans. Raises GenerationError if the model cannot read them.

    `embedding_size` is the width of embeddings that the backend takes; None if it takes none.
    """
    ids: list[int] = []
    spans: list[EmbeddingSpan] = []
    for part in parts:
        if isinstance(part, EmbeddingSpan):
            spans.append(part)
            ids += part.content_ids
            continue
        token_id = int(part)
        if not 0 <= token_id < vocab_size:
            raise GenerationError(f"token id {token_id} is outside the vocabulary of {vocab_size}")
        ids.append(token_id)
    if not ids:
        raise GenerationError("there are no token ids; give at least one")
    if not spans:
        return ids
    if embedding_size is None:
        raise GenerationError(
            "this backend takes only token ids; for embeddings use the backend native, torch or numpy"
        )
    for span in spans:
        if span.embeddings.shape[1] != embedding_size:
            raise GenerationError(
                f"the embeddings of a span have {span.embeddings.shape[1]} numbers per position, but this model's "
                f"hidden size is {embedding_size}"
            )
    return MixedIds(ids, np.concatenate([span.embeddings for span in spans]))
