"""Programs that our files are given to, each in an environment of its own beside ours: .venv-NAME of the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python_of(name: str) -> Path:
    """The environment's interpreter, which may not be there."""
    return ROOT / f".venv-{name}" / "bin" / "python"


def needing(name: str, program: str, *, mark: str = "peers", target: str = "peers") -> list[pytest.MarkDecorator]:
    """The marks of a module whose tests run `program` in that environment, which `make TARGET` sets up."""
    reason = f"{program} is not there (make {target} sets .venv-{name} up)"
    return [getattr(pytest.mark, mark), pytest.mark.skipif(not python_of(name).exists(), reason=reason)]
