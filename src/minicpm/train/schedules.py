"""The learning rate over the steps, as a factor of its peak: a function of the step, so nothing has to be saved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minicpm.errors import counted
from minicpm.train.options import SCHEDULES, ScheduleName

COSINE_FLOOR = 0.1  # arXiv 2404.06395, section 4.1: cosine to a tenth of the peak
# The paper decays by half every 5,000 steps of a decay of about 25,000: five halvings, whatever its length.
DECAY_HALVINGS = 5.0


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then `wsd` (stable, then exponential decay over the last `decay_steps`), `cosine` or `constant`.

    A branch is a run whose first step is not 0: give it the same warm-up and its own last step and decay. Steps are
    counted from the start of its parent, so a branch behind the warm-up has none.
    """

    name: ScheduleName = "wsd"
    last_step: int = 1000  # the step at which the schedule ends
    warmup_steps: int = 0
    decay_steps: int = 0
    decay_halvings: float = DECAY_HALVINGS

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.name!r}")
        if self.last_step < 1 or self.warmup_steps < 0 or self.decay_steps < 0 or not self.decay_halvings > 0:
            raise ValueError("a schedule needs at least one step, and no negative warm-up or decay")
        if self.decay_steps and self.name != "wsd":
            raise ValueError(f"decay steps belong to the wsd schedule, not to {self.name}")
        if self.decay_steps > self.last_step:
            steps = counted(self.last_step, "step")
            raise ValueError(f"decay_steps {self.decay_steps:,} is more than the {steps} of the schedule")

    def factor(self, step: int) -> float:
        """Factor of the peak learning rate at `step`, counted from 0; above 0 from the first step on."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "cosine":
            progress = min(1.0, (step - self.warmup_steps) / max(1, self.last_step - self.warmup_steps))
            return COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(math.pi * progress)) / 2
        decayed = step - (self.last_step - self.decay_steps)
        if self.name == "wsd" and self.decay_steps and decayed > 0:
            return float(0.5 ** (self.decay_halvings * min(1.0, decayed / self.decay_steps)))
        return 1.0
