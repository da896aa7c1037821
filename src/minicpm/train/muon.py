"""torch's Muon with the orthogonalization in float32, for processors without bfloat16 arithmetic.

torch.optim.Muon (2.9 to 2.13) iterates in bfloat16 on every device. Processors that only emulate bfloat16 spend more
time there than in the rest of a training step. Everything else is torch's, the state included, so checkpoints of one
continue with the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Coefficients = tuple[float, float, float]


def orthogonalized(update: torch.Tensor, coefficients: Coefficients, steps: int, eps: float) -> torch.Tensor:
    """Newton-Schulz iteration of Muon (kellerjordan.github.io/posts/muon) in the dtype of `update`.

    update (N, K) becomes about U V^T of its singular value decomposition; singular values end near 1, in 0.5 to 1.5.
    """
    a, b, c = coefficients
    is_tall = update.shape[0] > update.shape[1]
    x = update.T if is_tall else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon(torch.optim.Muon):  # type: ignore[misc]
    """torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`, in float32."""

    def __init__(self, groups: list[dict[str, object]], lr: float):
        super().__init__(groups, lr=lr, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> None:
        """One step over all matrices that have a gradient."""
        assert closure is None, "the loop computes gradients itself"
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                parameter.mul_(1 - lr * group["weight_decay"])
                # 0.2 sqrt(max(N, K)): the root mean square of AdamW's updates (arXiv 2502.16982, section 2.2)
                parameter.add_(update, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type != "cuda" or bool(torch.cuda.is_bf16_supported(including_emulation=False))
