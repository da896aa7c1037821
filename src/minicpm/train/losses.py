"""The loss of a packed batch: cross-entropy of the trained tokens, in float32, summed so that batches can be added."""

from __future__ import annotations

import torch
from torch.nn import functional

from minicpm.models import MiniCPMForCausalLM
from minicpm.train.batches import IGNORED, Batch


def document_mask(segments: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T) booleans: who attends to whom. Causal inside a document, nothing across documents.

    Padding (segment 0) attends to padding, so that no row of the attention is empty and turns to NaN.
    """
    T = segments.shape[1]
    is_same = segments[:, :, None] == segments[:, None, :]
    is_past = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return (is_same & is_past)[:, None]


def summed_loss(model: MiniCPMForCausalLM, batch: Batch, device: torch.device) -> torch.Tensor:
    """Sum of -log p over the batch's trained tokens, a float32 scalar.

    Logits are computed at trained positions only: the head of a 2B model costs more memory than all else.
    """
    ids, targets, positions, segments = (
        torch.from_numpy(array).to(device) for array in (batch.ids, batch.targets, batch.positions, batch.segments)
    )
    is_target = targets != IGNORED
    outputs = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=document_mask(segments),
        logits_to_keep=is_target,
        use_cache=False,
    )
    return functional.cross_entropy(outputs.logits.float(), targets[is_target], reduction="sum")  # (trained, vocab)
