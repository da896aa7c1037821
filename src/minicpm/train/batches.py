"""Packed batches from a mixture of token stores. A seed fixes the order; a small JSON object holds the position in it.

Rows are filled by best fit from a short look-ahead. A text that does not fit is cut and continued in a later row. Its
last token is repeated there as context, so every token is predicted exactly once. A long conversation loses its end.
Documents of one row do not attend to each other: they have segment numbers, and their positions start at 0. This module
does not use torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from minicpm.errors import DataError
from minicpm.train.store import TokenStore

IGNORED = -100  # torch's and transformers' label of a token that is not trained
LOOK_AHEAD = 32
SHORTEST_CUT = 16  # less room than this at a row's end is not filled by cutting a text

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """A training file and its share: `times` per epoch, or `percent` of all tokens. Exactly one is set."""

    path: Path
    times: float | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Share:
        """FILE, FILE:15 (each document 15 times per epoch) or FILE:40% (two fifths of the tokens)."""
        match = re.fullmatch(r"(.+):([\d.]+)(%?)", text)
        if match is None:
            return cls(Path(text).expanduser(), times=1.0)
        try:
            number = float(match[2])
        except ValueError:
            number = 0.0
        if not number > 0:
            raise ValueError(f"{text!r}: the number after the file must be above 0, such as :15 or :40%")
        path = Path(match[1]).expanduser()
        return cls(path, percent=number) if match[3] else cls(path, times=number)


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens. targets[b, t] is the token after ids[b, t], or IGNORED if it is not trained.

    A subclass may add arrays (B, ...) that its loss needs.
    """

    ids: Integers  # (B, T)
    targets: Integers  # (B, T)
    positions: Integers  # (B, T), from 0 in every document
    segments: Integers  # (B, T), documents from 1 on, 0 is padding

    @property
    def tokens(self) -> int:
        return int((self.segments > 0).sum())

    @property
    def trained_tokens(self) -> int:
        return int((self.targets != IGNORED).sum())

    def rows(self, start: int, stop: int) -> Self:
        return type(self)(**{array.name: getattr(self, array.name)[start:stop] for array in fields(self)})


class Batches(Protocol):
    """An endless stream of batches with a position."""

    def next_batch(self) -> Batch:
        """The next batch. The same position always gives the same batch."""

    def state(self) -> dict[str, Any]:
        """The position in the stream, as JSON values."""


@dataclass
class _Place:
    """The position in one source."""

    epoch: int = 0
    index: int = 0
    tokens: int = 0


class Mixture:
    """An endless stream of batches. `state()` returns its position, `restore(state)` returns to it."""

    def __init__(
        self, stores: Sequence[TokenStore], shares: Sequence[Share], *, rows: int, length: int, seed: int = 0
    ) -> None:
        """Batches of `rows` rows of `length` tokens.

        Raises ValueError for shares that mix times and percent, DataError if a file has no trained token within a row.
        """
        if rows < 1 or length < 2:
            raise ValueError(f"a batch needs at least 1 row of 2 tokens, got {rows} of {length}")
        if not stores or len(stores) != len(shares):
            raise ValueError("a mixture needs at least one file, and a share for each")
        if len({share.percent is None for share in shares}) > 1:
            raise ValueError("give every file a number of times (FILE:15) or every file a percentage (FILE:40%)")
        self.rows, self.length, self.seed = rows, length, seed
        self._stores = tuple(stores)
        self._usable = [np.flatnonzero(_has_target(store, length)) for store in stores]
        for store, usable in zip(stores, self._usable):
            if not len(usable):
                raise DataError(f"{store.source}: no document has a trained token among its first {length}")
        self._drawn_tokens = [self._epoch_tokens(i) for i in range(len(stores))]
        self._weights = [
            share.percent if share.percent is not None else (share.times or 0.0) * tokens
            for share, tokens in zip(shares, self._drawn_tokens)
        ]
        self.epoch_tokens = sum(
            round((share.times or 1.0) * tokens) for share, tokens in zip(shares, self._drawn_tokens)
        )
        self._places = [_Place() for _ in stores]
        self._waiting: list[list[int]] = []  # [source, document, start, stop], the oldest first
        self._orders: dict[int, tuple[int, Integers]] = {}

    @property
    def unusable_documents(self) -> int:
        """The number of documents whose first trained token is beyond a row. They are never drawn."""
        return sum(len(store) - len(usable) for store, usable in zip(self._stores, self._usable))

    @property
    def cut_documents(self) -> int:
        """The number of conversations longer than a row, which lose their end."""
        return sum(
            int(((store.lengths > self.length) & ~store.is_text)[usable].sum())
            for store, usable in zip(self._stores, self._usable)
        )

    def next_batch(self) -> Batch:
        """The next `rows` rows."""
        shape = (self.rows, self.length)
        ids, positions, segments = (np.zeros(shape, np.int64) for _ in range(3))
        targets = np.full(shape, IGNORED, np.int64)
        for row in range(self.rows):
            at = 0
            for segment, (source, document, start, stop) in enumerate(self._row_pieces(), start=1):
                store, offset, n = self._stores[source], self._stores[source].start(document), stop - start
                piece = store.ids[offset + start : offset + stop].astype(np.int64)
                is_trained = store.trained[offset + start : offset + stop]
                ids[row, at : at + n] = piece
                targets[row, at : at + n - 1] = np.where(is_trained[1:], piece[1:], IGNORED)
                positions[row, at : at + n] = np.arange(n)
                segments[row, at : at + n] = segment
                at += n
        return Batch(ids, targets, positions, segments)

    def state(self) -> dict[str, Any]:
        """The position in the stream, as JSON values."""
        return {
            "sources": [
                {"digest": store.digest, "epoch": place.epoch, "index": place.index, "tokens": place.tokens}
                for store, place in zip(self._stores, self._places)
            ],
            "waiting": [list(piece) for piece in self._waiting],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the `state()` of a mixture of the same files. Raises DataError if they have changed."""
        if [source["digest"] for source in state["sources"]] != [store.digest for store in self._stores]:
            raise DataError("the training files, the tokenizer or the chat template changed since the checkpoint")
        self._places = [_Place(source["epoch"], source["index"], source["tokens"]) for source in state["sources"]]
        self._waiting = [list(piece) for piece in state["waiting"]]

    def continue_from(self, state: dict[str, Any]) -> None:
        """Continue in every file that the other run also read, so that a branch sees new documents first."""
        known = {source["digest"]: source for source in state["sources"]}
        for i, (store, place) in enumerate(zip(self._stores, self._places)):
            if store.digest in known:
                place.epoch = known[store.digest]["epoch"]
                place.index = min(known[store.digest]["index"], len(self._usable[i]))

    def _row_pieces(self) -> list[list[int]]:
        """Pieces for one row: first the oldest waiting one, then always the longest that fits."""
        self._look_ahead()
        chosen: list[list[int]] = []
        room = self.length
        piece: list[int] | None = self._waiting.pop(0)
        while piece is not None:
            source, document, start, stop = piece
            if stop - start > room:
                self._waiting.insert(0, [source, document, start + room - 1, stop])
                piece = [source, document, start, start + room]
            chosen.append(piece)
            room -= piece[3] - piece[2]
            self._look_ahead()
            piece = self._next_piece(room)
        return chosen

    def _next_piece(self, room: int) -> list[int] | None:
        fitting = [(-(p[3] - p[2]), i) for i, p in enumerate(self._waiting) if p[3] - p[2] <= room]
        if fitting:
            return self._waiting.pop(min(fitting)[1])
        if room >= SHORTEST_CUT:
            for i, (source, document, _, _) in enumerate(self._waiting):
                if self._stores[source].is_text[document]:
                    return self._waiting.pop(i)
        return None

    def _look_ahead(self) -> None:
        while len(self._waiting) < LOOK_AHEAD:
            behind = [place.tokens / weight for place, weight in zip(self._places, self._weights)]
            self._waiting.append(self._draw(behind.index(min(behind))))

    def _draw(self, source: int) -> list[int]:
        place, usable = self._places[source], self._usable[source]
        if place.index >= len(usable):
            place.epoch, place.index = place.epoch + 1, 0
        document = int(usable[self._order(source, place.epoch)[place.index]])
        place.index += 1
        length = int(self._stores[source].ends[document]) - self._stores[source].start(document)
        if not self._stores[source].is_text[document]:
            length = min(length, self.length)
        place.tokens += length
        return [source, document, 0, length]

    def _order(self, source: int, epoch: int) -> Integers:
        """The documents of an epoch, shuffled by a counter-based generator whose only state is the epoch's number."""
        if source not in self._orders or self._orders[source][0] != epoch:
            key = np.random.SeedSequence([self.seed, source, epoch])
            order = np.random.Generator(np.random.Philox(key)).permutation(len(self._usable[source]))
            self._orders[source] = (epoch, order)
        return self._orders[source][1]

    def _epoch_tokens(self, source: int) -> int:
        store = self._stores[source]
        lengths = np.where(store.is_text, store.lengths, np.minimum(store.lengths, self.length))
        return int(lengths[self._usable[source]].sum())


def _has_target(store: TokenStore, length: int) -> npt.NDArray[np.bool_]:
    """(documents,): whether a row of `length` tokens has a trained token of the document."""
    return (store.first_trained() < length) & (store.lengths > 1)
