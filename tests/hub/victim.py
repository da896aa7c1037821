"""What a process does that test_hub_killed.py kills. Its own small file: each victim imports it anew."""

from __future__ import annotations

import os

from minicpm import hub


def pull_quietly(name: str, source: hub.Source, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    hub.pull(name, source=source, tell=lambda text: None)
