"""One step of the loop: golden losses, packing, accumulation, and the name of a non-finite tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from minicpm.errors import TrainingError
from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM, load_model
from minicpm.train.batches import IGNORED, Batch, Mixture, Share
from minicpm.train.checkpoint import CheckpointFolder
from minicpm.train.loop import Evaluation, Loop, LoopOptions
from minicpm.train.losses import CrossEntropy, document_mask
from minicpm.train.metrics import Metrics, read_metrics
from minicpm.train.optimizers import initialize, make_optimizers
from minicpm.train.options import OptimizerOptions
from minicpm.train.rendering import Renderer
from minicpm.train.schedules import Schedule
from minicpm.train.store import token_store
from train.conftest import SHAPE

CPU = torch.device("cpu")


def tiny_model() -> MiniCPMForCausalLM:
    config = MiniCPMConfig(**{key: value for key, value in SHAPE.items() if key not in ("model_type", "architectures")})
    config._attn_implementation = "sdpa"
    model = MiniCPMForCausalLM(config)
    initialize(model, seed=1)
    return model


def loop_of(
    model: MiniCPMForCausalLM,
    optimizers: Any,
    folder: Path,
    mixture: Any = None,
    evaluation: Evaluation | None = None,
    **options: Any,
) -> Loop:
    return Loop(
        model,
        optimizers,
        Schedule("constant", 3),
        mixture,
        peak_lr=0.01,
        options=LoopOptions(**options),
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        metrics=Metrics(folder / "metrics.jsonl"),
        evaluation=evaluation,
    )


def batch_of(ids: np.ndarray, labels: np.ndarray) -> Batch:
    """Unpacked rows with labels that are not shifted, as transformers takes them."""
    targets = np.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
    return Batch(ids, targets, positions, np.ones_like(ids))


@pytest.fixture
def packed(stories: Path, questions: Path, renderer: Renderer, tmp_path: Path) -> Batch:
    stores = [token_store(path, tmp_path / "stores", renderer) for path in (stories, questions)]
    return Mixture(stores, [Share(s.source, times=1.0) for s in stores], rows=6, length=64).next_batch()


@pytest.mark.parametrize("micro_rows", [2, 1])
def test_six_steps_have_the_reference_s_adamw_losses(micro_rows: int, golden: Path, toy: Path, tmp_path: Path):
    data = load_file(toy / "golden.safetensors")
    model = load_model(toy, attn_implementation="sdpa")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    loop = loop_of(model, [adamw], tmp_path, micro_rows=micro_rows, clip_norm=1e9)
    batch = batch_of(data["input_ids"].astype(np.int64), data["labels"].astype(np.int64))
    losses = [loop.train_on(batch)[0].loss for _ in range(6)]
    assert losses == pytest.approx(data["train.adamw_lr1e-3_losses"].tolist(), abs=2e-4)


def test_packed_documents_lose_what_they_lose_alone(packed: Batch):
    model = tiny_model()
    assert packed.segments.max() >= 2
    together = CrossEntropy()(model, packed, CPU).loss.item()
    alone = 0.0
    for row in range(len(packed.ids)):
        for segment in range(1, packed.segments[row].max() + 1):
            chosen = packed.segments[row] == segment
            one = Batch(
                *(a[row, chosen][None] for a in (packed.ids, packed.targets, packed.positions, packed.segments))
            )
            if one.trained_tokens:
                alone += CrossEntropy()(model, one, CPU).loss.item()
    assert together == pytest.approx(alone, rel=1e-6)


def test_documents_of_a_row_and_padding_do_not_see_each_other():
    mask = document_mask(torch.tensor([[1, 1, 2, 0]]))
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_accumulated_gradients_are_those_of_the_whole_batch(packed: Batch, tmp_path: Path):
    gradients = []
    for micro_rows in (6, 4, 1):
        model = tiny_model()
        loop = loop_of(model, [], tmp_path, micro_rows=micro_rows, clip_norm=1e9)
        means, norm = loop.train_on(packed)
        gradients.append((means.loss, norm, torch.cat([p.grad.flatten() for p in model.parameters()])))
    for loss, norm, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-6)
        assert norm == pytest.approx(gradients[0][1], rel=1e-5)
        assert torch.allclose(gradient, gradients[0][2], atol=1e-6)


def test_gradients_are_clipped_to_the_norm(packed: Batch, tmp_path: Path):
    model = tiny_model()
    _, norm = loop_of(model, [], tmp_path, clip_norm=0.01).train_on(packed)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert norm > 0.1 and clipped == pytest.approx(0.01, rel=1e-3)


def test_bf16_autocast_is_near_float32_and_keeps_float32_weights(packed: Batch, tmp_path: Path):
    model = tiny_model()
    exact = loop_of(model, [], tmp_path).train_on(packed)[0].loss
    near = loop_of(model, [], tmp_path, is_bf16=True).train_on(packed)[0].loss
    assert near != exact and near == pytest.approx(exact, rel=0.01)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_model_learns_a_batch_by_heart(name: Any, packed: Batch, tmp_path: Path):
    model = tiny_model()
    loop = loop_of(model, make_optimizers(model, OptimizerOptions(name=name, lr=0.02)), tmp_path)
    losses = [loop.train_on(packed)[0].loss for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]


def break_weight(model: MiniCPMForCausalLM) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")


def break_output(model: MiniCPMForCausalLM) -> None:
    model.model.layers[1].self_attn.v_proj.weight.data.mul_(3e38)


@pytest.mark.parametrize(
    "damage, named",
    [
        (break_weight, "in the weight model.layers.1.mlp.up_proj.weight"),
        (break_output, "in the output of model.layers.1.self_attn.v_proj"),
    ],
)
def test_a_number_that_is_none_is_named_by_its_layer(
    damage: Callable[[MiniCPMForCausalLM], None], named: str, packed: Batch, tmp_path: Path
):
    model = tiny_model()
    damage(model)
    with pytest.raises(TrainingError, match=named):
        loop_of(model, [], tmp_path).train_on(packed)


def test_a_step_that_is_not_finite_changes_no_weight(packed: Batch, tmp_path: Path):
    model = tiny_model()
    optimizers = make_optimizers(model, OptimizerOptions())
    loop = loop_of(model, optimizers, tmp_path, micro_rows=2)
    before = [p.clone() for p in model.parameters()]
    model.model.layers[0].mlp.register_full_backward_hook(lambda *_: (torch.tensor(float("nan")).expand(2, 64, 32),))
    with pytest.raises(TrainingError, match="in the gradient of"):
        loop.train_on(packed)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def unlearned(batch: Batch) -> Batch:
    """The same rows with nothing to learn."""
    return replace(batch, targets=np.full_like(batch.targets, IGNORED))


@pytest.mark.parametrize("micro_rows", [1, 4])
def test_an_evaluation_is_the_mean_over_learned_tokens_of_all_batches(packed: Batch, tmp_path: Path, micro_rows: int):
    model = tiny_model()
    assert packed.trained_tokens < packed.tokens
    batches = [packed.rows(0, 1), unlearned(packed.rows(0, 3)), packed.rows(1, 6)]
    with torch.no_grad():
        expected = CrossEntropy()(model, packed, CPU).loss.item() / packed.trained_tokens
    loop = loop_of(model, [], tmp_path, evaluation=Evaluation(batches), micro_rows=micro_rows)
    assert loop.evaluate().loss == pytest.approx(expected, rel=1e-6)


def test_an_evaluation_changes_nothing_and_hands_the_model_back_to_training(packed: Batch, tmp_path: Path):
    model = tiny_model().train()
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    before = [p.clone() for p in model.parameters()]
    loop_of(model, [], tmp_path, evaluation=Evaluation([packed])).evaluate()
    assert modes and not any(modes) and model.training
    assert all(p.grad is None and torch.equal(a, p) for a, p in zip(before, model.parameters()))


def test_a_run_evaluates_at_every_so_many_steps_and_at_its_end(packed: Batch, tmp_path: Path):
    model = tiny_model()
    optimizers = make_optimizers(model, OptimizerOptions(lr=0.01))
    mixture = SimpleNamespace(next_batch=lambda: packed, state=dict)
    loop = loop_of(model, optimizers, tmp_path, mixture, Evaluation([packed]), eval_every=2, save_every=0)
    loop.run()
    records = read_metrics(tmp_path / "metrics.jsonl")
    evaluated = [record["step"] for record in records if "eval_loss" in record]
    assert evaluated == [2, 3]


def test_tokens_and_learned_tokens_are_counted_apart(packed: Batch, tmp_path: Path):
    model = tiny_model()
    mixture = SimpleNamespace(next_batch=lambda: packed, state=dict)
    loop = loop_of(model, make_optimizers(model, OptimizerOptions(lr=0.01)), tmp_path, mixture)
    loop.run()
    assert (loop.tokens, loop.trained_tokens) == (3 * packed.tokens, 3 * packed.trained_tokens)
    assert packed.trained_tokens < packed.tokens


def test_the_rate_of_a_step_is_the_schedules(packed: Batch, tmp_path: Path):
    model = tiny_model()
    (optimizer,) = make_optimizers(model, OptimizerOptions(lr=0.01))
    rates: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: rates.append([group["lr"] for group in optimizer.param_groups]))
    loop = loop_of(model, [optimizer], tmp_path, SimpleNamespace(next_batch=lambda: packed, state=dict))
    loop.schedule = Schedule("constant", 3, warmup_steps=2)
    loop.run()
    shares = [loop.schedule.factor(step) for step in range(3)]
    assert len({*shares}) > 1
    for share, now in zip(shares, rates):
        assert now == pytest.approx([rate / shares[0] * share for rate in rates[0]])
    told = [record["lr"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert told == pytest.approx([0.01 * share for share in shares])


@pytest.mark.parametrize(("save_every", "expected"), [(0, [3]), (1, [1, 2, 3]), (2, [2, 3])])
def test_a_run_saves_at_every_so_many_steps_and_at_its_end(
    packed: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: int, expected: list[int]
):
    saved: list[int] = []
    model = tiny_model()
    mixture = SimpleNamespace(next_batch=lambda: packed, state=dict)
    optimizers = make_optimizers(model, OptimizerOptions(lr=0.01))
    loop = loop_of(model, optimizers, tmp_path, mixture, save_every=save_every)
    monkeypatch.setattr(loop, "save", lambda: saved.append(loop.step))
    loop.run()
    assert saved == expected
