"""How far the predictions of one model are from those of another, token by token: KL, perplexity, first choices.

It sees logits and the tokens that came; who computed them, and of what text, it does not ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minicpm.quant.format import Floats

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass
class Comparison:
    """Sums over the predicted tokens of any number of texts; kept in float64, so that equal logits differ by 0."""

    tokens: int = 0
    reference_nats: float = 0.0  # -log p_reference(token)
    nats: float = 0.0  # -log p(token)
    kl_nats: float = 0.0  # KL(p_reference || p)
    max_kl: float = 0.0
    agreed: int = 0

    def add(self, reference_logits: Floats, logits: Floats, targets: Ids) -> None:
        """Count T predictions: logits of both models (T, vocab), and the tokens (T,) that were to be predicted.

        Raises ValueError for shapes that differ and logits that are not finite: their KL is undefined.
        """
        if reference_logits.shape != logits.shape or logits.shape[:1] != targets.shape:
            raise ValueError(
                f"logits {reference_logits.shape} and {logits.shape} with {targets.shape} tokens; "
                "expected (T, vocab) twice and (T,)"
            )
        if not (np.isfinite(reference_logits).all() and np.isfinite(logits).all()):
            raise ValueError("logits are not finite; the model's output is not usable, look for an overflow in it")
        reference, found = log_softmax(reference_logits), log_softmax(logits)
        at = np.arange(len(targets))
        kl = np.maximum((np.exp(reference) * (reference - found)).sum(axis=1), 0)  # below 0 by rounding alone
        self.tokens += len(targets)
        self.reference_nats -= float(reference[at, targets].sum())
        self.nats -= float(found[at, targets].sum())
        self.kl_nats += float(kl.sum())
        self.max_kl = max(self.max_kl, float(kl.max(initial=0)))
        self.agreed += int((reference.argmax(axis=1) == found.argmax(axis=1)).sum())

    @property
    def kl(self) -> float:
        """Mean KL(p_reference || p) of a token, in nats."""
        return self.kl_nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def reference_perplexity(self) -> float:
        return math.exp(self.reference_nats / self.tokens)

    @property
    def top1_agreement(self) -> float:
        """Share of tokens where both models' first choice is the same."""
        return self.agreed / self.tokens


def log_softmax(logits: Floats) -> Doubles:
    """(..., vocab) logarithms of probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    probabilities: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return probabilities
