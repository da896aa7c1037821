"""MiniCPM on end-side devices: run, serve, quantize, train and measure models.

Importing this loads neither torch nor transformers; the names below are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minicpm.engine.constraint import Constraint as Constraint
    from minicpm.engine.llm import LLM as LLM
    from minicpm.engine.options import EngineOptions as EngineOptions
    from minicpm.sampling import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "Constraint", "EngineOptions", "SamplingParams", "__version__"]

_HOMES = {
    "Constraint": "minicpm.engine.constraint",
    "EngineOptions": "minicpm.engine.options",
    "LLM": "minicpm.engine.llm",
    "SamplingParams": "minicpm.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minicpm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
