"""Parts of messages."""

from __future__ import annotations

import pytest

from minicpm.errors import QueueFull, counted


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("token",), "0 tokens"),
        (1, ("token",), "1 token"),
        (1200, ("token",), "1,200 tokens"),
        (1, ("try", "tries"), "1 try"),
        (2, ("try", "tries"), "2 tries"),
    ],
)
def test_a_number_and_its_noun_agree(number: int, words: tuple[str, ...], expected: str):
    assert counted(number, *words) == expected


def test_a_queue_of_one_is_singular():
    assert str(QueueFull(1, 2.0)) == "1 request is waiting already; try again in 2 s"
    assert str(QueueFull(3, 2.0)) == "3 requests are waiting already; try again in 2 s"
