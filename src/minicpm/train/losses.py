"""Losses that the loop minimizes: the protocol `Loss` over packed batches, and the cross-entropy of the learned tokens.

A loss returns sums, and the loop divides them by the weight of the whole batch. So the gradient is that of the batch's
mean even if the batch is computed in parts.
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
    """A loss and its metrics summed over some rows of a batch. The loop divides them by the whole batch's weight."""

    loss: torch.Tensor  # a float32 scalar with a gradient
    metrics: Mapping[str, torch.Tensor] = field(
        default_factory=dict
    )  # scalars; by the names they have in metrics.jsonl


class Loss(Protocol):
    """A loss that the loop can minimize and evaluate. It keeps no state between steps: checkpoints do not save it.

    Distillation: the loss holds a frozen teacher, or a subclass of `Batch` has the teacher's logits. It sums the
    divergence over `learned_logits`, and its weight is the number of learned tokens. To learn scales only, give the
    optimizers only the scales and turn requires_grad off for all other parameters.

    DPO: a pair of answers is two documents of one row, segment 2k-1 the chosen and 2k the rejected one. Parts consist
    of whole rows, so a pair is never divided. Only the answers' tokens are learned. The loss sums log-probabilities by
    segment; the reference's come from a frozen model that it holds, or from a subclass of `Batch`. Its weight is the
    number of pairs, and its metrics count the pairs in which the chosen answer wins.
    """

    def weight(self, batch: Batch) -> float:
        """The divisor of the sums, known before the computation. Parts of weight 0 are skipped."""

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
    """Float32 logits (learned, vocab) at the positions of learned tokens, row by row, and those tokens (learned,).

    Other positions get no logits: those of a 2B model would need more memory than everything else.
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
    """The attention mask (B, 1, T, T), boolean: causal inside a document, nothing across documents.

    Padding (segment 0) attends to padding, so that no row of the mask is empty, which would give NaN.
    """
    T = segments.shape[1]
    is_same = segments[:, :, None] == segments[:, None, :]
    is_past = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return (is_same & is_past)[:, None]
