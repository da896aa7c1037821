"""What is wrong with a model's files, told as a user meets it: what he sees, why, and what cures it.

The known faults of GGUF files are found by gguf.py and gguf_tokenizer.py, those of folders by folder.py and
folder_tokenizer.py; none of them runs the model. What only running it shows (measured.py) comes as a `Correction`.
Cures are planned while the files are examined and written by `Examination.write_repaired`, never in place.
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

# What other families put around a message, and what the English README of 2024 wrote for <用户>: MiniCPM learned none.
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
    """What a model's numbers should be instead: another configuration, and whether q and k have their rows in the other
    order of the two that there are (halves of a head, as published; or pairs, as llama.cpp rotates them)."""

    config: DecoderConfig
    reorders_rows: bool


@dataclass
class Examination(ABC):
    """A model's files, what is wrong with them, and the copy that would not have it."""

    path: Path
    kind: str  # "gguf", "hf", "mlx", "gptq" ...
    faults: list[Fault] = field(default_factory=list)

    @property
    @abstractmethod
    def can_reorder_rows(self) -> bool:
        """Whether a copy can have rows of q and k in another order."""

    @abstractmethod
    def correct(self, correction: Correction) -> None:
        """Plan what was found by running the model; the faults are added by whoever found them."""

    @abstractmethod
    def write_repaired(self, destination: Path, *, overwrite: bool = False) -> None:
        """Write a copy without the faults that can be repaired, under a hidden name first."""

    @abstractmethod
    def close(self) -> None: ...


def constants_of_2024(num_hidden_layers: int, hidden_size: int) -> dict[str, float]:
    """What a GGUF file calls the three constants, and what they are in a MiniCPM of 2024."""
    return {
        "embedding_scale": float(SCALE_EMB),
        "residual_scale": residual_scale(SCALE_DEPTH, num_hidden_layers),
        "logit_scale": 1 / logit_scale(hidden_size, DIM_MODEL_BASE),
    }


def foreign_markers(template: str, is_token: Callable[[str], bool]) -> list[str]:
    """Markers of a chat template that are no tokens of the model's vocabulary, in the order of the template."""
    return [found for found in dict.fromkeys(_FOREIGN_MARKER.findall(template)) if not is_token(found)]
