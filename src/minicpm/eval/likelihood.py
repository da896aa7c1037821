"""Logits and log-likelihoods of given texts: for every token but the first, in nats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import Row, StepBackend
from minicpm.quant.quality import log_softmax
from minicpm.tokenizer import Tokenizer

FORWARD_TOKENS = 512  # of one forward pass; MiniCPM-2B's logits of them take a quarter of a gigabyte
# A longer text is encoded in parts, because the tokenizer takes at most a million characters at once.
PART_CHARACTERS = 200_000


def logits_of(backend: StepBackend, rows: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
    """Per row of T ids, the logits (T - 1, vocab) of every token but the first. Short rows are computed together."""
    waiting: list[Sequence[int]] = []
    for ids in [*rows, None]:
        if waiting and (ids is None or sum(map(len, waiting)) + len(ids) > FORWARD_TOKENS):
            batch = [Row(backend.new_sequence(len(one)), one[:-1], "all") for one in waiting]
            yield from backend.forward(batch)
            waiting = []
        if ids is not None:
            waiting.append(ids)


def nats_of(backend: StepBackend, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """(T - 1,) negative log-likelihoods in nats of a row's tokens but the first. A long row is computed in parts."""
    sequence, nats = backend.new_sequence(len(ids)), []
    for start in range(0, len(ids) - 1, FORWARD_TOKENS):
        part = ids[start : min(start + FORWARD_TOKENS, len(ids) - 1)]
        (logits,) = backend.forward([Row(sequence, part, "all")])
        nats.append(-chosen(logits, ids[start + 1 : start + 1 + len(part)]))
    return np.concatenate(nats)


def chosen(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """(T,) log-probabilities of the target tokens, from logits (T, vocab)."""
    logarithms: npt.NDArray[np.float64] = log_softmax(logits)[np.arange(len(targets)), np.array(targets)]
    return logarithms


def encoded_text(tokenizer: Tokenizer, text: str, part_characters: int = PART_CHARACTERS) -> list[int]:
    """Ids of a text of any length, with `<s>` in front: the same as if encoded at once, since no token spans two lines.

    Each part after the first begins with a newline. Tokens that encoding puts in front of it are removed.
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
