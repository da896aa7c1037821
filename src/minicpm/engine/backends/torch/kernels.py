"""The two operations of a decode step (decode.py) for a GPU, in Triton.

For a single row, one kernel per product reads every weight once and includes the norm before it and the operations
after it. Attention of any number of rows is one kernel, or two for long texts. Kernels read the addresses and lengths
of sequences from a table on the device, so a recorded step works for all sequences of any length. Triton's interpreter
(TRITON_INTERPRET=1) runs them on the CPU, where the tests prove them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import nn

from minicpm.engine.backends.torch import decode
from minicpm.engine.backends.torch.ragged import TorchSequence
from minicpm.models.quantized import QuantizedLinear

# Columns of the table of rows, int64: the token, its position, the capacity of the sequence's memory in tokens, the
# address of the rotations of all positions (positions, 2, D / 2) float32, and the address of that memory.
TOKEN, POSITION, CAPACITY, ROTATIONS, MEMORY, COLUMNS = (tl.constexpr(i) for i in range(6))
# Positions per program of attention. A second kernel joins the programs' results of longer texts.
SPLIT = 256
_BLOCK = 64
# With more rows than this, quantized weights are multiplied as for a prompt.
MOST_ROWS = 64
# Bytes of weights that a program reads at once, 128 per thread; fewer if there would be too few programs.
_READ_BYTES, _FEWEST_PROGRAMS = 16384, 256
_FLOAT_GROUP = 64
_ONES = 0x4B000000  # 2 ** 23
_EXPANDED_GROUPS = 32
# Words of a row that are multiplied at a time if there are several inputs.
_WORDS = 32


@triton.jit
def _field(word, ones, i: tl.constexpr, BITS: tl.constexpr):
    """The codes at bit BITS * i of 32-bit words, times 2 ** (BITS * i % 16), in float32.

    It takes two operations and no conversion: the bits become the lowest ones of `ones`, which is 2 ** 23 in float32;
    then 2 ** 23 and the codes' offset are subtracted. `ones` is an argument: a constant would need a third operation.
    """
    bit: tl.constexpr = BITS * i % 16
    if BITS * i >= 16:
        word = word >> 16
    magic = (word & ((1 << BITS) - 1 << bit)) | ones
    return magic.to(tl.float32, bitcast=True) - (8388608.0 + (1 << BITS - 1 + bit))


@triton.jit
def _groups_product(
    x,
    norm,
    codes,
    scales,
    n,  # (BLOCK_N,) output features
    is_row,
    row_stride,
    ones,
    FIRST: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    G: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Products of output features with x over GROUPS groups of K, and the sum of squares of x over these groups."""
    FIELDS: tl.constexpr = 1 if BITS == 16 else 32 // BITS
    W: tl.constexpr = G // FIELDS
    COUNT: tl.constexpr = (K + G - 1) // G
    g, w = FIRST + tl.arange(0, GROUPS), tl.arange(0, W)
    is_group = is_row[:, None] & (g < COUNT)[None, :]
    is_word = is_group[:, :, None]
    k = g[:, None] * G + w[None, :]
    if BITS == 16:  # rows of codes are padded to whole groups; rows of floats end at K
        is_word = is_word & (k < K)[None, :, :]
    place = n.to(tl.int64)[:, None, None] * row_stride + (g * W)[None, :, None] + w[None, None, :]
    word = tl.load(codes + place, mask=is_word, other=0)
    if BITS < 16:
        scale = tl.load(scales + n.to(tl.int64)[:, None] * COUNT + g[None, :], mask=is_group, other=0.0)
    squares = tl.zeros((GROUPS, W), tl.float32)
    for i in tl.static_range(FIELDS):
        place_k = k + i * W
        value = tl.load(x + place_k, mask=place_k < K, other=0.0).to(tl.float32)
        squares += value * value
        if HAS_NORM:
            value *= tl.load(norm + place_k, mask=place_k < K, other=0.0).to(tl.float32)
        if BITS == 16:
            part = word.to(tl.float32) * value[None]
        elif i == 0:
            part = _field(word, ones, i, BITS) * value[None]
        else:
            part += _field(word, ones, i, BITS) * (value * 2.0 ** -(BITS * i % 16))[None]
    sums = tl.sum(part, 2)
    if BITS < 16:
        sums *= scale.to(tl.float32)
    return tl.sum(sums, 1), tl.sum(tl.sum(squares, 1), 0)


@triton.jit
def _product_kernel(
    x,  # (K,)
    norm,  # (K,)
    codes,  # (N, groups W) words of codes, or (N, K)
    scales,  # (N, groups)
    residual,  # (N,)
    out,  # (N,), or (N / 2,) gated
    N,
    row_stride,
    eps,
    factor,
    ones,
    K: tl.constexpr,
    BITS: tl.constexpr,
    G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr,
    MORE_GROUPS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
):
    """Some output features of one row. All of K is read, in two powers of two of groups: GROUPS and MORE_GROUPS."""
    i = tl.arange(0, BLOCK_N)
    if IS_GATED:  # each gate is followed by its own up
        n = tl.program_id(0) * (BLOCK_N // 2) + i // 2
        is_row = n < N // 2
        n += i % 2 * (N // 2)
    else:
        n = tl.program_id(0) * BLOCK_N + i
        is_row = n < N
    product, squares = _groups_product(
        x, norm, codes, scales, n, is_row, row_stride, ones, 0, GROUPS, K, BITS, G, HAS_NORM
    )
    if MORE_GROUPS > 0:
        more, more_squares = _groups_product(
            x, norm, codes, scales, n, is_row, row_stride, ones, GROUPS, MORE_GROUPS, K, BITS, G, HAS_NORM
        )
        product += more
        squares += more_squares
    if HAS_NORM:
        product *= tl.rsqrt(squares / K + eps)
    if IS_GATED:
        gate, up = tl.split(tl.reshape(product, (BLOCK_N // 2, 2)))
        n = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        tl.store(out + n, gate * tl.sigmoid(gate) * up, mask=n < N // 2)
    else:
        product *= factor
        if HAS_RESIDUAL:
            product += tl.load(residual + n, mask=is_row, other=0.0).to(tl.float32)
        tl.store(out + n, product, mask=is_row)


@triton.jit
def _rows_kernel(
    x,  # (M, K)
    codes,  # (N, groups W)
    scales,  # (N, groups)
    out,  # (M, N)
    M,
    N,
    K,
    row_stride,
    ones,
    BITS: tl.constexpr,
    G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Some output features of several rows; weights are dequantized to the inputs' dtype, WORDS of a row at a time."""
    FIELDS: tl.constexpr = 32 // BITS
    W: tl.constexpr = G // FIELDS
    m, n = tl.arange(0, BLOCK_M), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    groups = (K + G - 1) // G
    rows = n.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, groups * W, WORDS):
        w = first + tl.arange(0, WORDS)
        is_word = (n < N)[:, None] & (w < groups * W)[None, :]
        word = tl.load(codes + rows * row_stride + w[None, :], mask=is_word, other=0)
        scale = tl.load(scales + rows * groups + (w // W)[None, :], mask=is_word, other=0.0).to(tl.float32)
        for i in tl.static_range(FIELDS):
            k = w // W * G + i * W + w % W
            inputs = tl.load(x + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
            weight = _field(word, ones, i, BITS) * 2.0 ** -(BITS * i % 16) * scale
            total = tl.dot(inputs, tl.trans(weight.to(inputs.dtype)), total, input_precision="ieee")
    tl.store(out + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def _weights_kernel(
    codes,  # (N, groups W)
    scales,  # (N, groups)
    out,  # (N, K)
    row_stride,
    ones,
    K: tl.constexpr,
    BITS: tl.constexpr,
    G: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Dequantize some groups of one row."""
    FIELDS: tl.constexpr = 32 // BITS
    W: tl.constexpr = G // FIELDS
    COUNT: tl.constexpr = (K + G - 1) // G
    n = tl.program_id(0).to(tl.int64)
    g, w = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS), tl.arange(0, W)
    place = codes + n * row_stride + g[:, None] * W + w[None, :]
    word = tl.load(place, mask=(g < COUNT)[:, None], other=0)
    scale = tl.load(scales + n * COUNT + g, mask=g < COUNT, other=0.0).to(tl.float32)
    for i in tl.static_range(FIELDS):
        k = g[:, None] * G + i * W + w[None, :]
        value = _field(word, ones, i, BITS) * 2.0 ** -(BITS * i % 16) * scale[:, None]
        tl.store(out + n * K + k, value, mask=k < K)


@triton.jit(do_not_specialize=["layer"])
def _attention_kernel(
    qkv,  # (M, (H + 2 H_kv) D)
    table,  # (M, COLUMNS)
    out,  # (M, H D), or (M, H, splits, D + 2) float32: weighted values, largest score, sum of weights
    scale,
    layer,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one row over SPLIT positions. The program with the new token's position writes its key and value."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(table + row * COLUMNS + POSITION)
    start = split * SPLIT
    if start > position:
        return
    HALF: tl.constexpr = D // 2
    GROUP: tl.constexpr = HEADS // KV_HEADS
    dtype: tl.constexpr = qkv.dtype.element_ty
    kv_head = head // GROUP
    d, half = tl.arange(0, D), tl.arange(0, HALF)
    rotations = tl.load(table + row * COLUMNS + ROTATIONS).to(tl.pointer_type(tl.float32)) + position * D
    cos, sin = tl.load(rotations + half), tl.load(rotations + HALF + half)
    capacity = tl.load(table + row * COLUMNS + CAPACITY)
    memory = tl.load(table + row * COLUMNS + MEMORY).to(tl.pointer_type(dtype))
    keys = memory + (2 * layer * KV_HEADS + kv_head) * capacity * D
    values = keys + KV_HEADS * capacity * D

    own = qkv + row * (HEADS + 2 * KV_HEADS) * D
    query_low = tl.load(own + head * D + half).to(tl.float32)
    query_high = tl.load(own + head * D + HALF + half).to(tl.float32)
    rotated_low = (query_low * cos - query_high * sin).to(dtype).to(tl.float32) * scale
    rotated_high = (query_high * cos + query_low * sin).to(dtype).to(tl.float32) * scale
    new_key = own + (HEADS + kv_head) * D
    key_low, key_high = tl.load(new_key + half).to(tl.float32), tl.load(new_key + HALF + half).to(tl.float32)
    new_low, new_high = (key_low * cos - key_high * sin).to(dtype), (key_high * cos + key_low * sin).to(dtype)
    new_value = tl.load(own + (HEADS + KV_HEADS + kv_head) * D + d)

    # Start with the new token, which only the last split includes: the others give it no weight.
    is_last = start + SPLIT > position
    score = tl.sum(rotated_low * new_low.to(tl.float32) + rotated_high * new_high.to(tl.float32), 0)
    largest = tl.where(is_last, score, -1e30)
    weights = tl.where(is_last, 1.0, 0.0)
    mixed = tl.where(is_last, new_value.to(tl.float32), 0.0)
    end = tl.minimum(position, start + SPLIT)
    for first in range(start, end, BLOCK):
        s = first + tl.arange(0, BLOCK)
        # The compiler does not know that an address from the table allows wide reads.
        held = tl.multiple_of(keys + s[:, None] * D + half[None, :], (1, 16))
        is_held = (s < end)[:, None]
        low = tl.load(held, mask=is_held, other=0.0).to(tl.float32)
        high = tl.load(held + HALF, mask=is_held, other=0.0).to(tl.float32)
        scores = tl.sum(low * rotated_low[None, :] + high * rotated_high[None, :], 1)
        scores = tl.where(s < end, scores, -1e30)
        larger = tl.maximum(largest, tl.max(scores, 0))
        weight = tl.exp(scores - larger)
        kept = tl.exp(largest - larger)
        held = tl.multiple_of(values + s[:, None] * D + d[None, :], (1, 16))
        held_values = tl.load(held, mask=is_held, other=0.0).to(tl.float32)
        mixed = mixed * kept + tl.sum(weight[:, None] * held_values, 0)
        weights = weights * kept + tl.sum(weight, 0)
        largest = larger

    if is_last & (head % GROUP == 0):
        tl.store(keys + position * D + half, new_low)
        tl.store(keys + position * D + HALF + half, new_high)
        tl.store(values + position * D + d, new_value)
    if SPLITS == 1:
        tl.store(out + (row * HEADS + head) * D + d, mixed / weights)
    else:
        part = out + ((row * HEADS + head) * SPLITS + split) * (D + 2)
        tl.store(part + d, mixed)
        tl.store(part + D, largest)
        tl.store(part + D + 1, weights)


@triton.jit
def _join_kernel(
    parts,  # (M, H, splits, D + 2) float32
    table,
    out,  # (M, H D)
    HEADS: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Join the results of the splits of one head of one row."""
    row, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(table + row * COLUMNS + POSITION)
    split, d = tl.arange(0, SPLITS), tl.arange(0, D)
    is_part = split * SPLIT <= position
    part = parts + ((row * HEADS + head) * SPLITS + split) * (D + 2)
    largest = tl.load(part + D, mask=is_part, other=-1e30)
    kept = tl.exp(largest - tl.max(largest, 0))
    weights = tl.sum(tl.load(part + D + 1, mask=is_part, other=0.0) * kept, 0)
    mixed = tl.load(part[:, None] + d[None, :], mask=is_part[:, None], other=0.0)
    tl.store(out + (row * HEADS + head) * D + d, tl.sum(mixed * kept[:, None], 0) / weights)


@dataclass(frozen=True)
class TableAttention:
    """`decode.Attention` over the rows of a table (M, COLUMNS), for texts of up to `splits` times SPLIT positions."""

    table: torch.Tensor
    heads: int
    kv_heads: int
    dim: int
    splits: int

    def __call__(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        M, H, D = len(qkv), self.heads, self.dim
        out = qkv.new_empty((M, H * D))
        found = out
        if self.splits > 1:
            found = qkv.new_empty((M, H, self.splits, D + 2), dtype=torch.float32)
        grid = (M, H, self.splits)
        _attention_kernel[grid](
            qkv, self.table, found, D**-0.5, layer, H, self.kv_heads, D, self.splits, SPLIT, _BLOCK, num_warps=4
        )
        if self.splits > 1:
            _join_kernel[(M, H)](found, self.table, out, H, D, self.splits, SPLIT, num_warps=2)
        return out


def project(
    x: torch.Tensor,
    layer: nn.Module,
    *,
    norm: nn.Module | None = None,
    is_gated: bool = False,
    factor: float | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`decode.Project`: one kernel for a single row. For several rows, only a quantized product is a kernel."""
    if len(x) > 1:
        is_quantized = isinstance(layer, QuantizedLinear) and len(x) <= MOST_ROWS
        product = partial(_product_of_rows, layer) if is_quantized else layer
        return decode.project(x, product, norm=norm, is_gated=is_gated, factor=factor, residual=residual)
    return _project_one(x, layer, norm, is_gated, factor, residual)


def _project_one(
    x: torch.Tensor,
    layer: nn.Module,
    norm: nn.Module | None,
    is_gated: bool,
    factor: float | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    weight = layer.codes if isinstance(layer, QuantizedLinear) else layer.weight
    bits, G = (layer.bits, layer.group_size) if isinstance(layer, QuantizedLinear) else (16, _FLOAT_GROUP)
    N, K = layer.out_features, layer.in_features
    is_wide = factor is not None and residual is None
    out = x.new_empty((1, N // 2 if is_gated else N), dtype=torch.float32 if is_wide else x.dtype)
    block, *groups = _tile(N, K, bits, G, x.itemsize)
    _product_kernel[(triton.cdiv(N, block),)](
        x,
        x if norm is None else norm.weight,
        weight,
        layer.scales if isinstance(layer, QuantizedLinear) else x,
        x if residual is None else residual,
        out,
        N,
        weight.stride(0),
        0.0 if norm is None else norm.variance_epsilon,
        1.0 if factor is None else factor,
        _ONES,
        K,
        bits,
        G,
        block,
        *groups,
        norm is not None,
        residual is not None,
        is_gated,
        num_warps=4,
    )
    return out


def _tile(N: int, K: int, bits: int, group_size: int, itemsize: int) -> tuple[int, int, int]:
    """The output features of a program, and the groups of its two reads: powers of two that together cover K.

    `itemsize` is that of unquantized weights.
    """
    count = -(-K // group_size)
    groups = 1 << count.bit_length() - 1
    more = triton.next_power_of_2(count - groups) if count > groups else 0
    row_bytes = groups * group_size * (itemsize if bits == 16 else bits / 8)
    block = max(2, int(_READ_BYTES / row_bytes))
    while block > 2 and N // block < _FEWEST_PROGRAMS:
        block //= 2
    return block, groups, more


def _product_of_rows(layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    """A quantized layer's outputs for up to MOST_ROWS rows (M, K)."""
    M, N, K = len(x), layer.out_features, layer.in_features
    out = x.new_empty((M, N))
    block = 16 if N <= 4096 else 32
    _rows_kernel[(triton.cdiv(N, block),)](
        x,
        layer.codes,
        layer.scales,
        out,
        M,
        N,
        K,
        layer.codes.stride(0),
        _ONES,
        layer.bits,
        layer.group_size,
        max(16, triton.next_power_of_2(M)),
        block,
        _WORDS,
        num_warps=4,
    )
    return out


def weights_of(layer: QuantizedLinear, rows: slice, dtype: torch.dtype) -> torch.Tensor:
    """`QuantizedLinear.dequantize` in one kernel, for prompts."""
    codes, scales = layer.codes[rows], layer.scales[rows]
    out = torch.empty((len(codes), layer.in_features), dtype=dtype, device=codes.device)
    groups = min(_EXPANDED_GROUPS, triton.next_power_of_2(scales.shape[1]))
    grid = (len(codes), triton.cdiv(scales.shape[1], groups))
    _weights_kernel[grid](
        codes, scales, out, codes.stride(0), _ONES, layer.in_features, layer.bits, layer.group_size, groups, num_warps=4
    )
    return out


def table_row(token_id: int, sequence: TorchSequence, rotations: torch.Tensor) -> tuple[int, ...]:
    """A row of the kernels' table, in the order of the columns."""
    return token_id, sequence.length, sequence.capacity, rotations.data_ptr(), sequence.memory.data_ptr()
