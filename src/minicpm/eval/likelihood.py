"""What a backend foresees of texts: logits for every token but the first, and what those cost in nats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import Row, StepBackend
from minicpm.quant.quality import log_softmax
from minicpm.tokenizer import Tokenizer

FORWARD_TOKENS = 512  # of one forward pass: MiniCPM-2B's logits of so many take a quarter of a gigabyte
# A text that is longer is encoded in parts: the tokenizer takes a million characters at once.
PART_CHARACTERS = 200_000


def logits_of(backend: StepBackend, rows: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
    """Per row of T ids (T - 1, vocab): what was foreseen for each but the first; short rows are computed together."""
    waiting: list[Sequence[int]] = []
    for ids in [*rows, None]:
        if waiting and (ids is None or sum(map(len, waiting)) + len(ids) > FORWARD_TOKENS):
            batch = [Row(backend.new_sequence(len(one)), one[:-1], "all") for one in waiting]
            yield from backend.forward(batch)
            waiting = []
        if ids is not None:
            waiting.append(ids)


def nats_of(backend: StepBackend, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """(T - 1,) nats of every token of a row but the first; a long row goes through the model in parts."""
    sequence, nats = backend.new_sequence(len(ids)), []
    for start in range(0, len(ids) - 1, FORWARD_TOKENS):
        part = ids[start : min(start + FORWARD_TOKENS, len(ids) - 1)]
        (logits,) = backend.forward([Row(sequence, part, "all")])
        nats.append(-chosen(logits, ids[start + 1 : start + 1 + len(part)]))
    return np.concatenate(nats)


def chosen(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """(T,) logarithms of the probabilities of the tokens that came, from logits (T, vocab)."""
    logarithms: npt.NDArray[np.float64] = log_softmax(logits)[np.arange(len(targets)), np.array(targets)]
    return logarithms


def encoded_text(tokenizer: Tokenizer, text: str, part_characters: int = PART_CHARACTERS) -> list[int]:
    """Ids of a text of any length, `<s>` in front: what encoding it at once would give, as no token spans two lines.

    Parts begin with a line's end; what encoding puts in front of a part is taken away again.
    """
    added = len(tokenizer.encode("\n", add_bos=False)) - 1
    ids, start = tokenizer.encode(""), 0
    while start < len(text):
        stop = start + part_characters
        stop = text.find("\n", stop) if stop < len(text) else -1
        stop = len(text) if stop < 0 else stop
        found = tokenizer.encode(text[start:stop], add_bos=False)
        ids += found[added:] if start else found
        start = stop
    return ids
