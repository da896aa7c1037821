"""What the loop minimizes: a `Loss` over packed batches, and the cross-entropy of the learned tokens.

A loss sums; the loop divides by the weight of the whole batch. So a batch may be computed in parts of some rows, and
its gradient is that of its mean all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional

from minicpm.models import MiniCPMForCausalLM
from minicpm.train.batches import IGNORED, Batch


@dataclass(frozen=True)
class Sums:
    """What a loss finds in some rows of a batch. All are sums, divided later by the weight of the whole batch."""

    loss: torch.Tensor  # a float32 scalar with a gradient
    metrics: Mapping[str, torch.Tensor] = field(
        default_factory=dict
    )  # scalars; by the names they have in metrics.jsonl


class Loss(Protocol):
    """A loss that the loop can minimize and evaluate. It keeps nothing from step to step: no checkpoint holds it.

    Distillation: the loss holds a frozen teacher, or a subclass of `Batch` brings the teacher's logits. It sums the
    divergence over `learned_logits`, and its weight is the number of learned tokens. If only scales are to be learned,
    the optimizers hold the scales alone and all other parameters have requires_grad off.

    DPO: a pair of answers is two documents of one row, segment 2k-1 the chosen and 2k the rejected one; parts are made
    of whole rows, so a pair is never divided. Only the answers' tokens are learned. The loss adds log-probabilities up
    by segment; those of the reference come from a frozen model that it holds, or from a subclass of `Batch`. Its
    weight is the number of pairs, and its metrics count the pairs in which the chosen answer wins.
    """

    def weight(self, batch: Batch) -> float:
        """What the sums are divided by, known before anything is computed; rows of weight 0 are skipped."""

    def __call__(self, model: MiniCPMForCausalLM, batch: Batch, device: torch.device) -> Sums:
        """The sums over the batch's rows."""


@dataclass(frozen=True)
class CrossEntropy:
    """-log p of each learned token, in float32."""

    def weight(self, batch: Batch) -> float:
        return batch.trained_tokens

    def __call__(self, model: MiniCPMForCausalLM, batch: Batch, device: torch.device) -> Sums:
        logits, targets = learned_logits(model, batch, device)
        return Sums(functional.cross_entropy(logits, targets, reduction="sum"))


CROSS_ENTROPY = CrossEntropy()


def learned_logits(model: MiniCPMForCausalLM, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (learned, vocab) in float32 where a token is learned, row by row, and those tokens (learned,).

    Logits are computed at no other position: the head of a 2B model costs more memory than all else.
    """
    ids, targets, positions, segments = (
        torch.from_numpy(array).to(device) for array in (batch.ids, batch.targets, batch.positions, batch.segments)
    )
    is_learned = targets != IGNORED
    outputs = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=document_mask(segments),
        logits_to_keep=is_learned,
        use_cache=False,
    )
    return outputs.logits.float(), targets[is_learned]


def document_mask(segments: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T) booleans: who attends to whom. Causal inside a document, nothing across documents.

    Padding (segment 0) attends to padding, so that no row of the attention is empty and turns to NaN.
    """
    T = segments.shape[1]
    is_same = segments[:, :, None] == segments[:, None, :]
    is_past = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return (is_same & is_past)[:, None]
