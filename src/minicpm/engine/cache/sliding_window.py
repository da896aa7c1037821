"""Sliding windows with attention sinks: limits the tokens that a token attends to.

After Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453), in whole blocks
of the cache. The sinks get positions directly before the window, so no distance exceeds the length of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import BLOCK_TOKENS

# Rotation tables are exact up to this position (engine/backends/numpy_attention.py).
MOST_POSITIONS = 1 << 20


@dataclass(frozen=True)
class SlidingWindow:
    """A token attends to the first `sinks` tokens, to at least the `tokens` before it, and to itself.

    Both are multiples of 16. The window begins with a block of 16 tokens, so it is up to 15 tokens longer.
    """

    tokens: int
    sinks: int = BLOCK_TOKENS
    slack_tokens: int = 64  # a text can be truncated by at most so many tokens
    step_tokens: int = 512  # most new tokens of a text in one step

    def __post_init__(self) -> None:
        for name, value in (("sliding_window", self.tokens), ("attention_sinks", self.sinks)):
            if value < BLOCK_TOKENS or value % BLOCK_TOKENS:
                raise ValueError(f"{name} must be a multiple of {BLOCK_TOKENS}, at least {BLOCK_TOKENS}, got {value!r}")

    @property
    def sink_blocks(self) -> int:
        return self.sinks // BLOCK_TOKENS

    @property
    def blocks(self) -> int:
        """Blocks of the window before a token's own block."""
        return self.tokens // BLOCK_TOKENS

    @property
    def reach(self) -> int:
        """Positions that a model must support: no attended token is further away."""
        return self.sinks + self.tokens + BLOCK_TOKENS

    @property
    def held_blocks(self) -> int:
        """Most blocks that a text of any length uses, including those for a step and for truncation."""
        return self.sink_blocks + self.blocks + (self.slack_tokens + self.step_tokens) // BLOCK_TOKENS + 2

    @property
    def held_tokens(self) -> int:
        return self.held_blocks * BLOCK_TOKENS

    def first_block(self, position: int) -> int:
        """The first block of the window of the token at this position, but not before the sinks' end."""
        return max(self.sink_blocks, position // BLOCK_TOKENS - self.blocks)

    def attended_tokens(self, position: int) -> int:
        """The number of earlier tokens that the token at this position attends to."""
        gap = self.first_block(position) - self.sink_blocks
        return position - BLOCK_TOKENS * gap

    def sink_positions(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The positions of tokens relative to the sinks, without the gap between sinks and window."""
        first: npt.NDArray[np.int64] = np.maximum(self.sink_blocks, positions // BLOCK_TOKENS - self.blocks)
        return positions - BLOCK_TOKENS * (first - self.sink_blocks)
