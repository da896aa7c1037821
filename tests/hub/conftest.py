"""Every hub test has its own loopback hub and its own caches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import FakeHub, isolate
from minicpm.hub import transfer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that all addresses lead to; patience is short, and no test outlives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(transfer, "RETRY_DELAYS_S", (0.01,) * 5)
    with FakeHub() as hub:
        isolate(monkeypatch, tmp_path, hub)
        yield hub


@pytest.fixture
def said() -> list[str]:
    """Give `said.append` as `tell`."""
    return []
