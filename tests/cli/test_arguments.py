"""Types of arguments."""

from __future__ import annotations

import argparse

import pytest

from minicpm.cli.arguments import size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("1000B", 1000), ("5kB", 5000), ("500MB", 500_000_000), ("1.5g", 1_500_000_000), ("2 GiB", 2 << 30)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, nbytes: int):
    assert size(text) == nbytes


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "0.1", "1e9", "5iB", "1 GB 2"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        size(text)
