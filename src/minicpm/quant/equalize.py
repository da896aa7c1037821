"""Even out a decoder block before it is rounded, by rescalings that leave what it computes as it is.

A group of 4-bit weights has one scale, so a column much smaller than its neighbours is rounded away, however large the
activations are that it meets; a key channel much larger than its query takes the steps of the 31 that share its
scale. Channels that differ from their neighbours by a factor are brought back by the nearest power of two, so that
not a bit of the unrounded model's results changes. It needs the weights alone, no data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minicpm.formats.config import DecoderConfig
from minicpm.quant.format import Floats
from minicpm.quant.rescaling import BlockScales

# Channels within this factor of the median are left alone: rounding bears them, and a model without outliers is
# rounded as it is, byte for byte.
LEAST_FACTOR = 2.0
LARGEST_EXPONENT = 10  # of the powers of two


@np.errstate(over="ignore", invalid="ignore")  # weights that are not finite are refused by name when they are rounded
def block_scales(read: Callable[[str], Floats], config: DecoderConfig, block: int) -> BlockScales:
    """The equalization scales of a block, given its float32 weights by published name; reads one matrix at a time."""
    attention, mlp = f"model.layers.{block}.self_attn", f"model.layers.{block}.mlp"
    norm = read(f"model.layers.{block}.input_layernorm.weight")
    H_kv, D = config.num_key_value_heads, config.head_dim
    inputs, rows = np.zeros(config.hidden_size, np.float32), {}
    for part in "qkv":
        weight = read(f"{attention}.{part}_proj.weight")
        inputs += _column_sizes(weight)
        rows[part] = _row_sizes(weight * norm)
    del weight
    # For each pair of channels: the mean size of its keys, against that of the queries of all heads that share it.
    keys = rows["k"].reshape(H_kv, 2, D // 2).mean(axis=1)
    queries = rows["q"].reshape(H_kv, -1, 2, D // 2).mean(axis=(1, 2))
    values = _column_sizes(read(f"{attention}.o_proj.weight")).reshape(H_kv, -1, D).mean(axis=1)
    mlp_inputs = _column_sizes(read(f"{mlp}.gate_proj.weight")) + _column_sizes(read(f"{mlp}.up_proj.weight"))
    return BlockScales(
        attention=_evening(inputs),
        keys=_evening(np.sqrt(_ratio(queries, keys))),
        values=_evening(values),
        mlp=_evening(mlp_inputs),
        inner=_evening(_column_sizes(read(f"{mlp}.down_proj.weight"))),
    )


def _evening(sizes: Floats) -> Floats:
    """Powers of two near sizes over their median along the last axis; 1 where they hardly differ from it."""
    median = np.median(sizes, axis=-1, keepdims=True)
    octaves = np.clip(np.log2(_ratio(sizes, median)), -LARGEST_EXPONENT, LARGEST_EXPONENT)
    exponents = np.where(np.abs(octaves) < np.log2(LEAST_FACTOR), 0, np.rint(octaves))
    powers: Floats = np.ldexp(np.float32(1), exponents.astype(np.int32))
    return powers


def _ratio(one: Floats, other: Floats) -> Floats:
    """one / other; 1 where either is 0 or not finite: there is nothing to bring into line."""
    is_known = (one > 0) & (other > 0) & np.isfinite(one) & np.isfinite(other)
    return np.divide(one, other, out=np.ones_like(one), where=is_known)


def _row_sizes(weight: Floats) -> Floats:
    """Mean magnitude of every row of (N, K); a few large weights hardly move it."""
    sizes: Floats = np.abs(weight).mean(axis=1)
    return sizes


def _column_sizes(weight: Floats) -> Floats:
    """Mean magnitude of every column of (N, K) with rows brought to one size, since every row has scales of its own."""
    magnitudes = np.abs(weight)
    magnitudes /= _nonzero(magnitudes.mean(axis=1))[:, None]
    sizes: Floats = magnitudes.mean(axis=0)
    return sizes


def _nonzero(sizes: Floats) -> Floats:
    return np.where(sizes > 0, sizes, np.float32(1))
