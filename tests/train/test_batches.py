"""Packing and order: every token once, documents apart, the place in the stream restored."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from minicpm.errors import DataError
from minicpm.train.batches import IGNORED, Mixture, Share
from minicpm.train.rendering import Renderer
from minicpm.train.store import TokenStore, token_store


@pytest.fixture
def stores(stories: Path, questions: Path, renderer: Renderer, tmp_path: Path) -> list[TokenStore]:
    return [token_store(path, tmp_path / "stores", renderer) for path in (stories, questions)]


def mixture(stores: list[TokenStore], length: int = 48, seed: int = 3) -> Mixture:
    return Mixture(stores, [Share(store.source, times=1.0) for store in stores], rows=4, length=length, seed=seed)


def test_an_epoch_predicts_every_token_of_every_text_once(stores: list[TokenStore]):
    stream = mixture(stores[:1], length=20)  # shorter than most texts: they are cut and go on
    seen: Counter[int] = Counter()
    while stream._places[0].epoch == 0:
        batch = stream.next_batch()
        seen.update(batch.targets[batch.targets != IGNORED].tolist())
    # The look-ahead has begun the second epoch; what waits is counted as if it were still to come.
    whole = Counter(stores[0].ids[stores[0].trained].tolist())
    drawn_twice = sum(stores[0].trained) + sum(p[3] - p[2] for p in stream._waiting)
    assert sum(seen.values()) <= drawn_twice
    assert set(seen) == set(whole)


def test_cut_texts_lose_no_token_and_repeat_none(stores: list[TokenStore]):
    stream = mixture(stores[:1], length=20)
    pieces: dict[int, list[tuple[int, int]]] = {}
    while stream._places[0].epoch == 0:
        for _, document, start, stop in stream._row_pieces():
            pieces.setdefault(document, []).append((start, stop))
    for document, found in pieces.items():
        assert found[0][0] == 0
        for (_, stop), (start, _) in pairwise(found):
            assert start in (stop - 1, 0), document  # the last token is repeated as context; 0 is the next epoch


def test_targets_are_the_next_token_of_the_same_document(stores: list[TokenStore]):
    batch = mixture(stores).next_batch()
    rows, columns = np.nonzero(batch.targets != IGNORED)
    assert len(rows) > 50
    assert (batch.targets[rows, columns] == batch.ids[rows, columns + 1]).all()
    assert (batch.segments[rows, columns] == batch.segments[rows, columns + 1]).all()
    assert (batch.positions[rows, columns] + 1 == batch.positions[rows, columns + 1]).all()
    assert batch.tokens / batch.ids.size > 0.9  # packing leaves little room empty


def test_the_stream_goes_on_where_its_state_was_taken(stores: list[TokenStore]):
    one, other = mixture(stores), mixture(stores)
    for _ in range(7):
        one.next_batch()
    other.restore(json.loads(json.dumps(one.state())))
    for _ in range(9):
        assert np.array_equal(one.next_batch().ids, other.next_batch().ids)


def test_seeds_and_epochs_have_orders_of_their_own(stores: list[TokenStore]):
    one, other = mixture(stores, seed=1), mixture(stores, seed=2)
    assert not np.array_equal(one.next_batch().ids, other.next_batch().ids)
    assert not np.array_equal(one._order(0, 0), one._order(0, 1))


@pytest.mark.parametrize("shares, expected", [(("3", "1"), None), (("70%", "30%"), 0.7)])
def test_shares_are_kept(shares: tuple[str, str], expected: float | None, stores: list[TokenStore]):
    parsed = [Share.parse(f"{store.source}:{share}") for store, share in zip(stores, shares)]
    stream = Mixture(stores, parsed, rows=4, length=64)
    for _ in range(60):
        stream.next_batch()
    first, second = (place.tokens for place in stream._places)
    if expected is None:
        sizes = [stream._epoch_tokens(i) for i in range(2)]
        expected = 3 * sizes[0] / (3 * sizes[0] + sizes[1])
    assert first / (first + second) == pytest.approx(expected, abs=0.02)


def test_a_store_is_made_once_and_remade_when_its_source_changes(stories: Path, renderer: Renderer, tmp_path: Path):
    told: list[str] = []
    folder = tmp_path / "stores"
    first = token_store(stories, folder, renderer, told.append)
    again = token_store(stories, folder, renderer, told.append)
    assert first.digest == again.digest and len(told) == 1
    stories.write_text(stories.read_text() + '{"text": "One more."}\n')
    assert len(token_store(stories, folder, renderer, told.append)) == len(first) + 1


def test_data_that_changed_are_not_resumed(stores: list[TokenStore]):
    with pytest.raises(DataError, match="changed since the checkpoint"):
        mixture(stores[:1]).restore(mixture(stores).state())


def test_rows_too_short_for_any_answer_are_an_error(stores: list[TokenStore]):
    with pytest.raises(DataError, match="no document has a trained token"):
        mixture(stores[1:], length=4)
