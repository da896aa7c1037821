"""Muon in float32 against torch's own, which iterates in bfloat16."""

from __future__ import annotations

import pytest
import torch

from minicpm.train.muon import Muon, orthogonalized

OPTIONS = ((3.4445, -4.7750, 2.0315), 5, 1e-7)


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]):
    update = matrix(*shape, seed=1)
    found = orthogonalized(update, *OPTIONS)
    assert found.shape == shape and found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.4 and values.max() < 1.6
    left, _, right = torch.linalg.svd(update, full_matrices=False)
    aligned = left.T @ found @ right.T
    torch.testing.assert_close(aligned, torch.diag(aligned.diagonal()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_steps_are_those_of_torch_up_to_bfloat16(shape: tuple[int, int]):
    ours, theirs = (torch.nn.Parameter(matrix(*shape, seed=2)) for _ in range(2))
    group = {"lr": 0.02, "weight_decay": 0.1}
    one = Muon([{"params": [ours], **group}], lr=0.02)
    other = torch.optim.Muon([{"params": [theirs], **group}], lr=0.02, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        before = theirs.detach().clone()
        ours.grad, theirs.grad = matrix(*shape, seed=10 + step), matrix(*shape, seed=10 + step)
        one.step()
        other.step()
        moved = (theirs - before).norm()
        assert (ours - theirs).norm() < 0.03 * (step + 1) * moved  # bfloat16 has 8 bits
    assert type(one).__name__ == type(other).__name__
    assert one.state_dict()["state"][0].keys() == other.state_dict()["state"][0].keys()
    torch.testing.assert_close(one.state[ours]["momentum_buffer"], other.state[theirs]["momentum_buffer"])
    other.load_state_dict(one.state_dict())  # a checkpoint of one continues with the other
