"""Every name in a room's __all__ exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"


def offered(path: Path) -> list[str]:
    """The names in a module's __all__; [] where it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


ROOMS = [path for path in sorted((SOURCE / "minicpm").rglob("*.py")) if offered(path)]


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_offered_name_is_there(path: Path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
    names = {*module.__all__}
    assert names and all(hasattr(module, name) for name in names)
