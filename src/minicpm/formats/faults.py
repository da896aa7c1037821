"""What is wrong with a model's files, told as a user meets it: what he sees, why, and what cures it.

The known faults of GGUF files are looked for in gguf_faults.py, those of folders in folder_faults.py; neither runs the
model. A cure is planned while looking, and written by `Examination.write_repaired`, never in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from minicpm.formats.config import logit_scale, residual_scale

# The constants of every MiniCPM of 2024, which its runtimes had built in.
SCALE_EMB, SCALE_DEPTH, DIM_MODEL_BASE, ROPE_THETA = 12, 1.4, 256, 10000.0


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    name: str  # the same for the same fault of any file, e.g. "missing-mup"
    found: str  # what is wrong, and where
    symptom: str  # what a user sees
    cure: str  # what a repaired copy has instead, or what to do where none can be made
    is_repairable: bool = True


@dataclass
class Examination(ABC):
    """A model's files, what is wrong with them, and the copy that would not have it."""

    path: Path
    kind: str  # "gguf", "hf", "mlx", "gptq" ...
    faults: list[Fault] = field(default_factory=list)

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
