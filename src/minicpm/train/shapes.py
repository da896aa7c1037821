"""The shape of a new model: a config.json for a wanted number of parameters. No torch, so that --help stays quick."""

from __future__ import annotations

import math

from minicpm.errors import ModelError
from minicpm.formats.config import DecoderConfig

HEAD_DIM = 64  # of MiniCPM-2B
FEED_FORWARD_RATIO = 2.5  # of MiniCPM-2B: 5,760 to 2,304
FEED_FORWARD_STEP = 128
SCALE_EMB, SCALE_DEPTH = 12.0, 1.4  # of MiniCPM-2B (arXiv 2404.06395, Table 7)
INITIALIZER = 0.1
# Hidden size to layers: 26 in MiniCPM-nano, 58 in MiniCPM-2B. Toys need more choice, their widths being few.
WIDTH_PER_LAYER, WIDTH_PER_LAYER_OF_TOYS = range(20, 65), range(8, 65)
MAX_HIDDEN_SIZE = 4096


def shape_for(parameters: int, vocab_size: int, context: int) -> DecoderConfig:
    """The shape in the family's proportions whose number of parameters is nearest to `parameters`.

    Raises ModelError where the embedding of such a vocabulary leaves no room for layers.
    """
    shapes = [
        _shape(hidden_size, layers, vocab_size, context)
        for hidden_size in range(HEAD_DIM, MAX_HIDDEN_SIZE + 1, HEAD_DIM)
        for layers in range(2, 65)
        if hidden_size // layers in (WIDTH_PER_LAYER if hidden_size >= 256 else WIDTH_PER_LAYER_OF_TOYS)
    ]
    best = min(shapes, key=lambda shape: abs(shape.num_parameters() - parameters))
    found = best.num_parameters()
    if not 0.8 * parameters <= found <= 1.2 * parameters:
        raise ModelError(
            f"with a vocabulary of {vocab_size:,} pieces the nearest model to {parameters:,} parameters has {found:,}; "
            "change the number of parameters or the vocabulary"
        )
    return best


def _shape(hidden_size: int, layers: int, vocab_size: int, context: int) -> DecoderConfig:
    heads = hidden_size // HEAD_DIM
    base = 64 if hidden_size < 1024 else 256  # of MiniCPM-nano and MiniCPM-2B
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=max(1, round(FEED_FORWARD_RATIO * hidden_size / FEED_FORWARD_STEP)) * FEED_FORWARD_STEP,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        # Shared keys and values, as in MiniCPM-1B (a third of the heads), keep the cache small.
        num_key_value_heads=max(
            count for count in range(1, heads + 1) if heads % count == 0 and 3 * count <= heads + 2
        ),
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        initializer_range=round(INITIALIZER / math.sqrt(hidden_size / base), 4),
        scale_emb=SCALE_EMB,
        scale_depth=SCALE_DEPTH,
        dim_model_base=base,
        dtype="bfloat16",
    )
