"""The types of this room: a `Fault` (what is wrong, its symptom, its cure), a `Correction` and an `Examination`.

gguf.py and gguf_tokenizer.py find the known faults of GGUF files, folder.py and folder_tokenizer.py those of folders;
none of them runs the model. measured.py runs it and returns a `Correction`. Repairs are planned while the files are
examined. `Examination.write_repaired` writes them into a copy, never in place.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minicpm.formats.config import DecoderConfig, logit_scale, residual_scale

# The constants of every MiniCPM of 2024, which its runtimes had built in.
SCALE_EMB, SCALE_DEPTH, DIM_MODEL_BASE, ROPE_THETA = 12, 1.4, 256, 10000.0

# Markers that other families put around a message, and the English README's translations of <用户> (2024). MiniCPM was
# trained with none of them.
_FOREIGN_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?User>|<Assistant>")
TEMPLATE_SYMPTOM = (
    "chat programs put {found} around a question, which the model never saw: it rambles, answers beside the point, or "
    "does not stop"
)
SCALES_SYMPTOM = "garbage from the first word on: without its constants MiniCPM is another function"
SCALES_CURE = (
    f"the constants of MiniCPM-1B and 2B of 2024 (scale_emb {SCALE_EMB}, scale_depth {SCALE_DEPTH}, "
    f"dim_model_base {DIM_MODEL_BASE}); a model trained with others "
)
ROPE_CURE = f"{ROPE_THETA:g}, the base of every MiniCPM-1B and 2B of 2024 but the 128k one"
UNREADABLE_SYMPTOM = "programs refuse it; nothing was read of what it holds, so other faults may be hidden"
TEMPLATE_CURE = "MiniCPM's own template (<用户>question<AI>)"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    name: str  # the same for the same fault of any file, e.g. "missing-mup"
    found: str  # what is wrong, and where
    symptom: str  # what a user sees
    cure: str  # what a repaired copy has instead, or what to do where none can be made
    is_repairable: bool = True


@dataclass(frozen=True)
class Correction:
    """The right configuration of a model, and whether the rows of q and k must be reordered.

    Two orders exist: halves of a head, as published, and pairs, as llama.cpp rotates them.
    """

    config: DecoderConfig
    reorders_rows: bool


@dataclass
class Examination(ABC):
    """A model's files, their faults, and the plan of a repaired copy."""

    path: Path
    kind: str  # "gguf", "hf", "mlx", "gptq" ...
    faults: list[Fault] = field(default_factory=list)

    @property
    @abstractmethod
    def can_reorder_rows(self) -> bool:
        """Whether a copy can have rows of q and k in another order."""

    @abstractmethod
    def correct(self, correction: Correction) -> None:
        """Plan the correction of measured faults. The caller adds the faults themselves."""

    @abstractmethod
    def write_repaired(self, destination: Path, *, overwrite: bool = False) -> None:
        """Write a copy without the faults that can be repaired, under a hidden name first."""

    @abstractmethod
    def close(self) -> None: ...


def unreadable(problem: str) -> Fault:
    """The fault of a model that cannot be opened; `problem` is the sentence of the error."""
    return Fault(
        "unreadable",
        problem,
        UNREADABLE_SYMPTOM,
        "whole files: download or copy them again, or do what the sentence says",
        is_repairable=False,
    )


def constants_of_2024(num_hidden_layers: int, hidden_size: int) -> dict[str, float]:
    """The three constants of a MiniCPM of 2024, by their names in a GGUF file."""
    return {
        "embedding_scale": float(SCALE_EMB),
        "residual_scale": residual_scale(SCALE_DEPTH, num_hidden_layers),
        "logit_scale": 1 / logit_scale(hidden_size, DIM_MODEL_BASE),
    }


def foreign_markers(template: str, is_token: Callable[[str], bool]) -> list[str]:
    """Markers of a chat template that are not tokens of the model's vocabulary, in the order of the template."""
    return [found for found in dict.fromkeys(_FOREIGN_MARKER.findall(template)) if not is_token(found)]
