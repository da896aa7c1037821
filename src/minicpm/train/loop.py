"""The training loop of every kind of training: takes batches, updates weights, writes metrics and checkpoints.

The loop sees token ids only, no texts or data files. Its loss is an argument (losses.py).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from minicpm.errors import TrainingError
from minicpm.models import MiniCPMForCausalLM
from minicpm.train.averaging import WeightAverage
from minicpm.train.batches import Batch, Batches
from minicpm.train.checkpoint import CheckpointFolder, Progress
from minicpm.train.losses import CROSS_ENTROPY, Loss, Sums
from minicpm.train.metrics import Metrics, draw_losses, read_metrics
from minicpm.train.optimizers import set_learning_rate
from minicpm.train.schedules import Schedule


@dataclass(frozen=True)
class LoopOptions:
    """Options of the loop. `micro_rows` rows are computed at once; their gradients are accumulated over the batch."""

    micro_rows: int = 8
    clip_norm: float = 1.0
    is_bf16: bool = False  # autocast; weights, gradients and moments stay float32
    save_every: int = 100  # steps; 0 saves at the end only
    eval_every: int = 0  # steps; 0 never
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.micro_rows < 1 or self.save_every < 0 or self.eval_every < 0 or not self.clip_norm > 0:
            raise ValueError("micro_rows and clip_norm must be above 0, save_every and eval_every at least 0")


@dataclass(frozen=True)
class Means:
    """The mean loss and metrics of one or several batches."""

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRecord:
    """One step. `loss` is the mean over the batch before the step, by default over its trained tokens."""

    step: int
    loss: float
    lr: float  # the base rate; muP scales it for matrices
    grad_norm: float  # before clipping
    tokens: int  # seen since the start of the run
    trained_tokens: int
    tokens_per_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the loss, over the same batch

    def to_dict(self) -> dict[str, float]:
        """The record as a line of metrics.jsonl."""
        return {name: value for name, value in asdict(self).items() if name != "metrics"} | dict(self.metrics)


@dataclass(frozen=True)
class Evaluation:
    """Batches that are never trained on; the same ones at every evaluation."""

    batches: Sequence[Batch]


class Loop:
    """Trains a model with its optimizers and data up to the schedule's last step."""

    def __init__(
        self,
        model: MiniCPMForCausalLM,
        optimizers: Sequence[torch.optim.Optimizer],
        schedule: Schedule,
        mixture: Batches,
        *,
        loss: Loss = CROSS_ENTROPY,
        peak_lr: float,
        options: LoopOptions,
        checkpoints: CheckpointFolder,
        metrics: Metrics,
        evaluation: Evaluation | None = None,
        average: WeightAverage | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        watch: Callable[[StepRecord], None] = lambda _: None,
        tell: Callable[[str], None] = lambda _: None,
    ):
        self.model, self.optimizers, self.schedule, self.mixture = model, optimizers, schedule, mixture
        self.options, self.checkpoints, self.metrics, self.evaluation = options, checkpoints, metrics, evaluation
        self.step = self.tokens = self.trained_tokens = 0
        self.average, self._should_stop = average, should_stop
        self._loss, self._peak_lr, self._watch, self._tell = loss, peak_lr, watch, tell

    def start_at(self, progress: Progress) -> None:
        """Continue counting from a checkpoint's progress."""
        self.step, self.tokens, self.trained_tokens = progress.step, progress.tokens, progress.trained_tokens

    def run(self) -> None:
        """Train to the schedule's last step, with saves and evaluations. Raises TrainingError for NaN or infinity.

        `should_stop` is asked after every step; then a checkpoint is written and the run ends early.
        """
        self.model.train()
        while self.step < self.schedule.last_step:
            record = self._step()
            self.metrics.append(record.to_dict())
            self._watch(record)
            is_last = self.step == self.schedule.last_step
            if self.evaluation and self.options.eval_every and (is_last or self.step % self.options.eval_every == 0):
                self.metrics.append({"step": self.step, **self._evaluated()})
            stops = self._should_stop()
            if is_last or stops or (self.options.save_every and self.step % self.options.save_every == 0):
                self.save()
            if stops:
                return

    def save(self) -> None:
        """Write a checkpoint of this step, and a plot of the losses so far."""
        progress = Progress(self.step, self.tokens, self.trained_tokens, self.mixture.state())
        if self.checkpoints.save(progress, self.model, self.optimizers, self.average):
            draw_losses(read_metrics(self.metrics.path), self.metrics.path.with_name("loss.svg"))

    def evaluate(self) -> Means:
        """The means over all evaluation batches, each counted by its weight."""
        assert self.evaluation is not None
        weight = sum(self._loss.weight(batch) for batch in self.evaluation.batches)
        loss, metrics = 0.0, Counter[str]()
        self.model.eval()
        with torch.no_grad():
            for batch in self.evaluation.batches:
                for part in self._parts(batch):
                    sums = self._sums(part)
                    loss += sums.loss.item()
                    metrics.update({name: value.item() for name, value in sums.metrics.items()})
        self.model.train()
        return Means(loss / weight, {name: value / weight for name, value in metrics.items()})

    def _evaluated(self) -> dict[str, float]:
        """The record of an evaluation; with averaged weights, also their loss and metrics, as `ema_eval_...`."""

        def named(prefix: str, means: Means) -> dict[str, float]:
            return {f"{prefix}{name}": value for name, value in {"loss": means.loss, **means.metrics}.items()}

        record = named("eval_", self.evaluate())
        if self.average is not None:
            with self.average.applied():
                record |= named("ema_eval_", self.evaluate())
        return record

    def _step(self) -> StepRecord:
        started_s = time.monotonic()
        factor = self.schedule.factor(self.step)
        set_learning_rate(self.optimizers, factor)
        batch = self.mixture.next_batch()
        means, grad_norm = self.train_on(batch)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        self.tokens += batch.tokens
        self.trained_tokens += batch.trained_tokens
        tokens_per_s = batch.tokens / (time.monotonic() - started_s)
        lr = self._peak_lr * factor
        return StepRecord(
            self.step,
            means.loss,
            lr,
            grad_norm,
            self.tokens,
            self.trained_tokens,
            round(tokens_per_s, 1),
            means.metrics,
        )

    def train_on(self, batch: Batch) -> tuple[Means, float]:
        """One optimizer step on a batch. Returns the means before the step, and the gradient's norm before clipping.

        The gradient is that of the mean over the whole batch, however many parts the batch is computed in.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        weight = self._loss.weight(batch) or 1
        loss, metrics = 0.0, Counter[str]()
        for part in self._parts(batch):
            sums = self._sums(part)
            mean = sums.loss / weight
            mean.backward()
            loss += mean.item()
            metrics.update({name: value.item() / weight for name, value in sums.metrics.items()})
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(self._diagnosis(batch, loss, norm))
        for optimizer in self.optimizers:
            optimizer.step()
        return Means(loss, dict(metrics)), norm

    def _parts(self, batch: Batch) -> list[Batch]:
        starts = range(0, len(batch.ids), self.options.micro_rows)
        parts = [batch.rows(start, start + self.options.micro_rows) for start in starts]
        return [part for part in parts if self._loss.weight(part)]

    def _sums(self, part: Batch) -> Sums:
        device = torch.device(self.options.device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.is_bf16):
            return self._loss(self.model, part, device)

    def _diagnosis(self, batch: Batch, loss: float, norm: float) -> str:
        """An error message with the place of the first non-finite number: a weight, a layer's output or a gradient."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        where = _broken_weight(self.model) or self._broken_output(batch) or self._broken_gradient(batch)
        kept = next(iter(self.checkpoints.steps()), None)
        advice = "start again" if kept is None else f"continue from the checkpoint of step {kept} (--resume)"
        return (
            f"step {self.step + 1}: the loss is {loss} and the gradient's norm {norm}; the first number that is not "
            f"finite is {where}. {advice[0].upper() + advice[1:]} with a lower learning rate, or check the data"
        )

    def _broken_output(self, batch: Batch) -> str | None:
        """The innermost module with the first output that is not finite."""
        found: list[str] = []

        def hook(name: str) -> Callable[[object, object, object], None]:
            def look(_module: object, _inputs: object, output: object) -> None:
                tensor = output[0] if isinstance(output, tuple) else output
                if not found and isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
                    found.append(name)

            return look

        with contextlib.ExitStack() as hooks, torch.no_grad():
            for name, module in self.model.named_modules():
                if name:
                    handle = module.register_forward_hook(hook(name))
                    hooks.callback(handle.remove)
            for part in self._parts(batch):
                self._sums(part)
                if found:
                    return f"in the output of {found[0]}"
        return None

    def _broken_gradient(self, batch: Batch) -> str:
        for part in self._parts(batch):
            self._sums(part).loss.backward()
        # The backward pass runs from the head to the embedding, so it reached the last parameter first.
        for name, parameter in reversed(list(self.model.named_parameters())):
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return f"in the gradient of {name}"
        return "in the sum of the gradients, which overflows"


def _broken_weight(model: MiniCPMForCausalLM) -> str | None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"in the weight {name}"
    return None
