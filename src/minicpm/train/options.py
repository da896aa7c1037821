"""What a user decides about a run: plain values, checked where they are made. No torch, so that --help stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minicpm.formats.tensor import FLOAT_DTYPES

OptimizerName = Literal["adamw", "muon"]
OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "muon")
ScheduleName = Literal["wsd", "cosine", "constant"]
SCHEDULES: tuple[ScheduleName, ...] = ("wsd", "cosine", "constant")
TrainOn = Literal["assistant", "all"]
TRAIN_ON: tuple[TrainOn, ...] = ("assistant", "all")
Precision = Literal["auto", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class OptimizerOptions:
    """What to optimize with. `lr` is the base rate; with `is_mup` matrices get lr / (hidden_size / dim_model_base).

    Weight decay is AdamW's (times the group's rate) and applies to matrices and the embedding, not to norms.
    """

    name: OptimizerName = "adamw"
    lr: float = 0.01
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    is_mup: bool = True
    scales_embedding: bool = False

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        if not self.lr > 0 or self.weight_decay < 0:
            raise ValueError(f"lr must be above 0 and weight decay not below, got {self.lr} and {self.weight_decay}")


@dataclass(frozen=True)
class RunOptions:
    """Everything that decides about a run; run.json keeps it, and a resumed run must agree with it.

    `data` and `evaluation` are FILE, FILE:15 or FILE:40% (see Share). `steps` 0 means `epochs` of the data. On a
    branch, `steps` are counted from where it branches.
    """

    data: tuple[str, ...]
    evaluation: tuple[str, ...] = ()
    train_on: TrainOn = "assistant"
    length: int = 512  # tokens a row
    rows: int = 16  # rows a batch
    micro_rows: int = 8
    steps: int = 0
    epochs: float = 1.0
    schedule: ScheduleName = "wsd"
    warmup_steps: int = 100
    decay_steps: int = 0
    optimizer: OptimizerOptions = OptimizerOptions()
    clip_norm: float = 1.0
    ema_decay: float = 0.0  # of averaged weights, which evaluations measure and the final model holds; 0: none
    precision: Precision = "auto"
    dtype: str = "auto"  # of the final weights; auto: bfloat16 after pretraining, else the start's own
    save_every: int = 100
    eval_every: int = 100
    eval_batches: int = 8
    seed: int = 0
    device: str = "auto"
    threads: int = 0  # 0: torch's own choice

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("a run needs data; name at least one file")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.dtype not in ("auto", *FLOAT_DTYPES):
            raise ValueError(f"dtype must be auto, {', '.join(FLOAT_DTYPES)}, got {self.dtype!r}")
        for name in ("length", "rows", "micro_rows", "eval_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "warmup_steps", "decay_steps", "save_every", "eval_every", "threads", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}")
        if not self.steps and not self.epochs > 0:
            raise ValueError("give the number of steps, or epochs above 0")
