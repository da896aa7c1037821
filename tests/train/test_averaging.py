"""Averaged weights by their formula."""

from __future__ import annotations

import pytest
import torch

from minicpm.train.averaging import WeightAverage


def layer_of(*values: float) -> torch.nn.Linear:
    layer = torch.nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    return layer


def test_the_average_follows_its_formula_and_forgets_the_start_quickly():
    layer = layer_of(8.0, -3.0)
    average = WeightAverage(layer, decay=0.5)
    expected = layer.weight.detach().clone()
    for step in range(1, 21):
        layer.weight.data = torch.tensor([[float(step), 1.0]])
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)
    assert expected[0, 1] == pytest.approx(1.0, abs=1e-4)


def test_the_model_gets_its_own_weights_back_even_after_an_error():
    layer = layer_of(1.0)
    average = WeightAverage(layer, decay=0.9)
    layer.weight.data = torch.tensor([[2.0]])
    with pytest.raises(KeyError), average.applied():
        assert layer.weight.item() == 1.0
        raise KeyError
    assert layer.weight.item() == 2.0 and average.tensors["weight"].item() == 1.0


def test_missing_averages_start_at_the_weights():
    layer = layer_of(3.0)
    average = WeightAverage(layer, decay=0.9)
    layer.weight.data = torch.tensor([[4.0]])
    average.load({})
    assert average.tensors["weight"].item() == 4.0
    average.load({"weight": torch.tensor([[5.0]])})
    assert average.tensors["weight"].item() == 5.0 and layer.weight.item() == 4.0


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_impossible_decays_are_refused(decay: float):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        WeightAverage(layer_of(1.0), decay)
