"""Other losses in the same loop: squared error, distillation of a few parameters, and pairs of answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch.nn import functional

from minicpm.models import MiniCPMForCausalLM
from minicpm.train.batches import IGNORED, Batch, Mixture, Share
from minicpm.train.checkpoint import CheckpointFolder
from minicpm.train.loop import Evaluation, Loop, LoopOptions
from minicpm.train.losses import CrossEntropy, Loss, Sums, learned_logits
from minicpm.train.metrics import Metrics, read_metrics
from minicpm.train.schedules import Schedule
from minicpm.train.store import token_store
from train.test_loop import tiny_model

Floats = np.ndarray[Any, np.dtype[np.float32]]
CPU = torch.device("cpu")


class Resumable(Protocol):
    def next_batch(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def run_to(
    step: int,
    folder: Path,
    source: Resumable,
    model: MiniCPMForCausalLM,
    loss: Loss,
    evaluation: Evaluation | None = None,
    micro_rows: int = 2,
) -> list[dict[str, Any]]:
    """Train up to `step`, continuing from the newest checkpoint, and return the metrics so far."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loop = Loop(
        model,
        [torch.optim.AdamW([{"params": learned, "peak_lr": 0.01}])],
        Schedule("constant", step),
        source,
        loss=loss,
        peak_lr=0.01,
        options=LoopOptions(micro_rows=micro_rows, save_every=2, eval_every=3),
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        metrics=Metrics(folder / "metrics.jsonl"),
        evaluation=evaluation,
    )
    progress = loop.checkpoints.load_newest(model, loop.optimizers, lambda found: source.restore(found.data))
    if progress is not None:
        loop.start_at(progress)
    loop.run()
    return read_metrics(folder / "metrics.jsonl")


def without_speed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "tokens_per_s"} for record in records]


@pytest.fixture
def mixture(stories: Path, questions: Path, renderer: Any, tmp_path: Path) -> Callable[[], Mixture]:
    """mixture(): the same stream of batches of four rows, from its start."""
    stores = [token_store(path, tmp_path / "stores", renderer) for path in (stories, questions)]
    return lambda: Mixture(stores, [Share(s.source, times=1.0) for s in stores], rows=4, length=48)


# --- distillation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distillation:
    """KL divergence of the model from a frozen teacher at every learned token."""

    teacher: MiniCPMForCausalLM

    def weight(self, batch: Batch) -> float:
        return batch.trained_tokens

    def __call__(self, model: MiniCPMForCausalLM, batch: Batch, device: torch.device) -> Sums:
        with torch.no_grad():
            wanted, _ = learned_logits(self.teacher, batch, device)
        found, _ = learned_logits(model, batch, device)
        divergence = functional.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)
        agreed = (found.argmax(-1) == wanted.argmax(-1)).sum()
        return Sums(divergence, {"agreement": agreed})


def scales_only(model: MiniCPMForCausalLM) -> MiniCPMForCausalLM:
    """The model with nothing to learn but its norms."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    return model


def damaged() -> MiniCPMForCausalLM:
    """A student that differs from the teacher in the scales it may learn."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
    return scales_only(model)


def test_distillation_into_a_few_parameters_resumes_to_the_last_bit(mixture: Callable[[], Mixture], tmp_path: Path):
    loss = Distillation(tiny_model())
    evaluation = Evaluation([mixture().next_batch()])
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole, broken = damaged(), damaged()
    records = run_to(6, tmp_path / "whole", mixture(), whole, loss, evaluation)
    run_to(4, tmp_path / "broken", mixture(), broken, loss, evaluation)
    resumed = damaged()
    assert not torch.equal(resumed.model.norm.weight, broken.model.norm.weight)
    again = run_to(6, tmp_path / "broken", mixture(), resumed, loss, evaluation)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    # The broken run ended at step 4, so it evaluated there once more.
    assert [r for r in without_speed(again) if r["step"] != 4] == [r for r in without_speed(records) if r["step"] != 4]

    start = damaged()
    assert all(
        torch.equal(a, b) for (name, a), b in zip(start.named_parameters(), whole.parameters()) if "norm" not in name
    )
    steps = [record for record in records if "loss" in record]
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert all(0 <= record["agreement"] <= 1 for record in steps)
    evaluated = [record for record in records if "eval_loss" in record]
    assert [record["step"] for record in evaluated] == [3, 6]
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"]
    assert 0 < evaluated[-1]["eval_agreement"] <= 1


def test_the_evaluation_has_the_mean_of_the_loss_that_is_trained(mixture: Callable[[], Mixture], tmp_path: Path):
    """Batches of unequal weight, computed in parts, count by their learned tokens and by nothing else."""
    source, model, loss = mixture(), damaged(), Distillation(tiny_model())
    batches = [source.next_batch(), source.next_batch().rows(0, 1)]
    assert batches[0].trained_tokens < batches[0].tokens and len({b.trained_tokens for b in batches}) == 2
    loop = Loop(
        model, [], Schedule("constant", 1), source, loss=loss, peak_lr=0.01, options=LoopOptions(micro_rows=3),
        checkpoints=CheckpointFolder(tmp_path), metrics=Metrics(tmp_path / "metrics.jsonl"),
        evaluation=Evaluation(batches),
    )  # fmt: skip
    means = loop.evaluate()
    with torch.no_grad():
        whole = [loss(model, batch, CPU) for batch in batches]
    weight = sum(batch.trained_tokens for batch in batches)
    assert means.loss == pytest.approx(sum(sums.loss.item() for sums in whole) / weight, rel=1e-5)
    assert means.metrics == pytest.approx(
        {"agreement": sum(sums.metrics["agreement"].item() for sums in whole) / weight}
    )


# --- pairs of answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairBatch(Batch):
    """Rows whose segments 2k-1 and 2k are a chosen and a rejected answer, with a reference's opinion of each pair."""

    reference: Floats  # (B, 2): log p(chosen) - log p(rejected)


class Pairs:
    """A stream of two pairs a row: after a token, the chosen answer counts on and the rejected one repeats it."""

    def __init__(self) -> None:
        self.step = 0

    def next_batch(self) -> PairBatch:
        random = np.random.default_rng(self.step)
        self.step += 1
        first = random.integers(10, 30, (4, 2, 1))
        chosen, rejected = first + np.arange(6), np.repeat(first, 6, axis=2)
        ids = np.stack([chosen, rejected], axis=2).reshape(4, 24)
        targets = np.full_like(ids, IGNORED)
        targets[:, :-1] = ids[:, 1:]
        targets[:, 5::6] = IGNORED  # the last token of each answer has no successor
        positions = np.tile(np.arange(6), (4, 4))
        segments = np.repeat(np.arange(1, 5), 6)[None].repeat(4, axis=0)
        return PairBatch(ids, targets, positions, segments, random.normal(0, 0.1, (4, 2)).astype(np.float32))

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


@dataclass(frozen=True)
class Preference:
    """DPO: the chosen answer is to gain on the rejected one, measured against a reference."""

    beta: float = 0.5

    def weight(self, batch: Batch) -> float:
        return float((batch.segments.max(axis=1) // 2).sum())

    def __call__(self, model: MiniCPMForCausalLM, batch: Batch, device: torch.device) -> Sums:
        assert isinstance(batch, PairBatch)
        logits, targets = learned_logits(model, batch, device)
        learned = -functional.cross_entropy(logits, targets, reduction="none")
        row, _ = np.nonzero(batch.targets != IGNORED)
        segment = batch.segments[batch.targets != IGNORED]
        answer = torch.from_numpy(row * 4 + segment - 1).to(device)
        summed = torch.zeros(len(batch.ids) * 4, device=device).index_add(0, answer, learned).view(-1, 2, 2)
        margin = summed[..., 0] - summed[..., 1] - torch.from_numpy(batch.reference).to(device)
        return Sums(-functional.logsigmoid(self.beta * margin).sum(), {"accuracy": (margin > 0).sum()})


def test_pairs_of_answers_are_trained_by_the_same_loop_and_resumed(tmp_path: Path):
    evaluation = Evaluation([Pairs().next_batch()])
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole, resumed = tiny_model(), tiny_model()
    records = run_to(12, tmp_path / "whole", Pairs(), whole, Preference(), evaluation)
    run_to(5, tmp_path / "broken", Pairs(), tiny_model(), Preference())
    run_to(12, tmp_path / "broken", Pairs(), resumed, Preference())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    steps = [record for record in records if "loss" in record]
    assert steps[-1]["loss"] < 0.3 * steps[0]["loss"]
    assert steps[-1]["accuracy"] == 1 == records[-1]["eval_accuracy"] > steps[0]["accuracy"]


@pytest.mark.parametrize("micro_rows", [1, 3])
def test_pairs_computed_in_parts_have_the_gradient_of_the_whole(micro_rows: int, tmp_path: Path):
    found = []
    for rows in (4, micro_rows):
        model = tiny_model()
        loop = Loop(
            model, [], Schedule("constant", 1), Pairs(), loss=Preference(), peak_lr=0.01,
            options=LoopOptions(micro_rows=rows, clip_norm=1e9), checkpoints=CheckpointFolder(tmp_path),
            metrics=Metrics(tmp_path / "metrics.jsonl"),
        )  # fmt: skip
        means, _ = loop.train_on(Pairs().next_batch())
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((means.loss, means.metrics, gradient))
    (loss, metrics, gradient), (part_loss, part_metrics, part_gradient) = found
    assert part_loss == pytest.approx(loss, rel=1e-6) and part_metrics == pytest.approx(metrics)
    assert torch.allclose(part_gradient, gradient, atol=1e-6)


# --- squared error ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SquaredError:
    """Squared distance of logits from fixed ones; the batch's weight is the only divisor."""

    scale: float

    def weight(self, batch: Batch) -> float:
        return self.scale * batch.trained_tokens

    def __call__(self, model: MiniCPMForCausalLM, batch: Batch, device: torch.device) -> Sums:
        logits, targets = learned_logits(model, batch, device)
        return Sums(self.scale * (logits - functional.one_hot(targets, logits.shape[1])).square().sum())


def test_the_mean_does_not_depend_on_the_unit_of_the_weight(mixture: Callable[[], Mixture], tmp_path: Path):
    found = []
    for scale in (1.0, 2.0**-12):  # below one all in all
        (folder := tmp_path / str(scale)).mkdir()
        found.append(run_to(2, folder, mixture(), tiny_model(), SquaredError(scale)))
    assert without_speed(found[0]) == without_speed(found[1])
    assert "eval_loss" not in found[0][-1] and found[0][1]["loss"] < found[0][0]["loss"]


def test_cross_entropy_is_the_default(mixture: Callable[[], Mixture], tmp_path: Path):
    batch, model = mixture().next_batch(), tiny_model()
    loop = Loop(
        model, [], Schedule("constant", 1), mixture(), peak_lr=0.01, options=LoopOptions(),
        checkpoints=CheckpointFolder(tmp_path), metrics=Metrics(tmp_path / "metrics.jsonl"),
    )  # fmt: skip
    expected = CrossEntropy()(model, batch, CPU).loss.item() / batch.trained_tokens
    assert loop.train_on(batch)[0].loss == pytest.approx(expected, rel=1e-6)
