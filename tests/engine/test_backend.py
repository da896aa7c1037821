"""Rows of a batch: which logits they want, whole and in chunks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minicpm.engine.backend import KVSequence, Row, wanted_places

rows = st.builds(
    lambda ids, logits: Row(KVSequence(100), ids, logits),
    ids=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    logits=st.sampled_from(["last", "all", "none"]),
)


@given(st.lists(rows, min_size=1, max_size=4))
def test_wanted_places_are_the_last_ones_of_every_row(batch: list[Row]):
    places, counts = wanted_places(batch)
    tokens = [(i, j) for i, row in enumerate(batch) for j in range(len(row.token_ids))]
    expected = {"last": lambda n: [n - 1], "all": lambda n: [*range(n)], "none": lambda n: []}
    wanted = [(i, j) for i, row in enumerate(batch) for j in expected[row.logits](len(row.token_ids))]
    assert [tokens[place] for place in places] == wanted
    assert counts == [sum(i == k for i, _ in wanted) for k in range(len(batch))]


@given(row=rows, most_tokens=st.integers(1, 50))
def test_chunks_hold_the_rows_tokens_and_want_its_logits(row: Row, most_tokens: int):
    chunks = [*row.chunks(most_tokens)]
    assert all(chunk.sequence is row.sequence and len(chunk.token_ids) <= most_tokens for chunk in chunks)
    assert [token for chunk in chunks for token in chunk.token_ids] == row.token_ids
    assert wanted_places(chunks)[0] == wanted_places([row])[0]
