"""Optimizers over muP parameter groups that are read from the model's configuration.

muP (arXiv 2404.06395, Table 7): the learning rate of every matrix is the base rate / (hidden_size / dim_model_base).
The embedding table, a matrix by shape only (its input is one-hot and does not grow with the width), and the norms
train at the base rate, as in the recipe of docs/training.md; `scales_embedding` divides the embedding's rate too, which
is Table 7 read to the letter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from minicpm.errors import TrainingError
from minicpm.formats import llama
from minicpm.models import MiniCPMForCausalLM
from minicpm.train.options import OptimizerOptions

INIT_STD = 0.1  # Table 7, with the base width of dim_model_base


def parameter_groups(model: MiniCPMForCausalLM, options: OptimizerOptions) -> dict[str, dict[str, Any]]:
    """The groups "matrices", "embedding" and "vectors", each with its params, peak_lr and weight_decay."""
    width_factor = model.config.logit_scale if options.is_mup else 1.0  # dim_model_base / hidden_size
    groups: dict[str, dict[str, Any]] = {
        "matrices": {"peak_lr": options.lr * width_factor, "weight_decay": options.weight_decay},
        "embedding": {
            "peak_lr": options.lr * (width_factor if options.scales_embedding else 1.0),
            "weight_decay": options.weight_decay,
        },
        "vectors": {"peak_lr": options.lr, "weight_decay": 0.0},
    }
    for group in groups.values():
        group["params"] = []
        group["lr"] = group["peak_lr"]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "embedding" if name == llama.EMBEDDING else "matrices" if parameter.ndim == 2 else "vectors"
            groups[kind]["params"].append(parameter)
    return groups


def make_optimizers(model: MiniCPMForCausalLM, options: OptimizerOptions) -> list[torch.optim.Optimizer]:
    """AdamW over all groups; or Muon over the matrices and AdamW over the rest."""
    groups = parameter_groups(model, options)
    by_adamw = [group for kind, group in groups.items() if options.name == "adamw" or kind != "matrices"]
    adamw = torch.optim.AdamW(
        [group for group in by_adamw if group["params"]],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        fused=True,
    )
    if options.name == "adamw":
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise TrainingError(f"Muon needs torch 2.9 or newer, this is {torch.__version__}; use --optimizer adamw")
    # match_rms_adamw scales the update to the size of AdamW's, so that one learning rate serves both.
    muon = make_muon(groups["matrices"], options.lr, next(model.parameters()).device)
    return [muon, adamw]


def make_muon(group: dict[str, Any], lr: float, device: torch.device) -> torch.optim.Optimizer:
    """torch's Muon, or where bfloat16 is emulated the same in float32."""
    from minicpm.train.muon import Muon, has_fast_bfloat16  # torch before 2.9 has no Muon to derive it from

    if has_fast_bfloat16(device):
        return torch.optim.Muon([group], lr=lr, adjust_lr_fn="match_rms_adamw")
    return Muon([group], lr=lr)


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Every group's rate becomes its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


@torch.no_grad()  # type: ignore[untyped-decorator]
def initialize(model: MiniCPMForCausalLM, seed: int, init_std: float = INIT_STD) -> None:
    """muP's start: every 2-D tensor N(0, init_std / sqrt(hidden_size / dim_model_base)), norms 1.

    Each tensor has random numbers of its own, so that neither their order nor the device matters.
    """
    std = init_std * model.config.logit_scale**0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        else:
            parameter.fill_(1.0)
