"""Programs that our files are given to, each in an environment of its own beside ours: .venv-NAME of the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# What `make real` fetches: a trained model of 135 M weights.
TRAINED_MODEL = ROOT / ".venv-real" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def python_of(name: str) -> Path:
    """The environment's interpreter, which may not be there."""
    return ROOT / f".venv-{name}" / "bin" / "python"


def needing(name: str, program: str, *, mark: str = "peers", target: str = "peers") -> list[pytest.MarkDecorator]:
    """The marks of a module whose tests run `program` in that environment, which `make TARGET` sets up."""
    return [getattr(pytest.mark, mark), skipped_without(name, program, target=target)]


def needing_trained_model() -> list[pytest.MarkDecorator]:
    """The marks of a module whose tests run a really trained model."""
    is_missing = not TRAINED_MODEL.exists()
    return [pytest.mark.real, pytest.mark.skipif(is_missing, reason="the model is not there (make real fetches it)")]


def skipped_without(name: str, program: str, *, target: str = "peers") -> pytest.MarkDecorator:
    reason = f"{program} is not there (make {target} sets .venv-{name} up)"
    return pytest.mark.skipif(not python_of(name).exists(), reason=reason)
