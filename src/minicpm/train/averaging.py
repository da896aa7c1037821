"""An exponential moving average of the weights: what a decay of the learning rate would reach, at a constant rate.

average <- d * average + (1 - d) * weights after every step. The d of step t is min(decay, (1 + t) / (10 + t)),
so that random first weights are soon forgotten; it depends on the step alone, so a resumed run needs only the tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

WARMUP = 10.0  # steps; as of tf.train.ExponentialMovingAverage's num_updates


class WeightAverage:
    """The averaged weights of a model, float32, on its device."""

    def __init__(self, model: torch.nn.Module, decay: float):
        """Start from the present weights. `decay` is at least 0 and below 1."""
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of averaged weights must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The averaged weights by parameter name."""
        return self._averages

    def update(self, step: int) -> None:
        """Take in the weights of step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (WARMUP + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), 1 - decay)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from saved averages; from the model's present weights if there are none."""
        for name, average in self._averages.items():
            average.copy_(tensors.get(name, self._parameters[name].detach()))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the averaged weights inside this block, with its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._averages[name] = self._averages[name], parameter.data
