"""Linear layers and embeddings over INT4 and INT8 weights, in plain torch: codes and scales are all that is held.

A product makes floating-point weights of some rows at a time, multiplies and forgets them, so that a model takes the
memory of its file. The numbers are quant/format.py's: a code times its group's scale, rounded to the dtype once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from minicpm.quant.format import IntWeight

# Values that a product makes of codes at a time: on a CPU what its cache holds (three times as fast as larger parts),
# elsewhere 64 MiB in float32.
_VALUES_AT_ONCE, _VALUES_AT_ONCE_ELSEWHERE = 1 << 18, 1 << 24


class _Quantized(nn.Module):
    """Codes and scales of an (N, K) weight in groups of G along K, the last one filled up with zeros.

    Codes lie in 32-bit words (N, groups W), each plus 2 ** (bits - 1). Word w of a group's W holds code i W + w at bit
    i * bits: codes at the same bit of neighbouring words meet neighbouring inputs.
    """

    codes: torch.Tensor
    scales: torch.Tensor  # (N, groups)

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bits: int, group_size: int, in_features: int):
        super().__init__()
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.bits, self.group_size, self.in_features = bits, group_size, in_features

    @property
    def out_features(self) -> int:
        return len(self.codes)

    def dequantize(self, rows: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(n, K) weights of some output features."""
        scales = self.scales[rows].float()[:, :, None]
        words = self.codes[rows].unflatten(1, (scales.shape[1], -1))  # (n, groups, W)
        codes = [(words >> bit & (1 << self.bits) - 1) - (1 << self.bits - 1) for bit in range(0, 32, self.bits)]
        return (torch.cat(codes, dim=-1) * scales).flatten(1)[:, : self.in_features].to(dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


class QuantizedLinear(_Quantized):
    """x W^T for x (..., K) in any floating-point dtype.

    `weights` is what makes them: `dequantize`, unless an engine knows a quicker way.
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bits: int, group_size: int, in_features: int):
        super().__init__(codes, scales, bits, group_size, in_features)
        self.weights: Callable[[slice, torch.dtype], torch.Tensor] = self.dequantize

    @classmethod
    def of(cls, weight: IntWeight, device: torch.device) -> QuantizedLinear:
        """The weight laid out on a device."""
        return cls(_codes(weight, device), _scales(weight, device), weight.bits, weight.group_size, weight.in_features)

    @classmethod
    def joined(cls, layers: Sequence[QuantizedLinear]) -> QuantizedLinear:
        """One layer with the outputs of several, which afterwards are views of its memory."""
        first = layers[0]
        codes, scales = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("codes", "scales"))
        counts = [layer.out_features for layer in layers]
        for layer, own_codes, own_scales in zip(layers, codes.split(counts), scales.split(counts)):
            layer.codes, layer.scales = own_codes, own_scales
        return cls(codes, scales, first.bits, first.group_size, first.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        products = [nn.functional.linear(x, self.weights(rows, x.dtype)) for rows in self._parts()]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def _parts(self) -> Iterator[slice]:
        is_on_cpu = self.codes.device.type == "cpu"
        count = max(1, (_VALUES_AT_ONCE if is_on_cpu else _VALUES_AT_ONCE_ELSEWHERE) // self.in_features)
        for start in range(0, self.out_features, count):
            yield slice(start, start + count)


class QuantizedEmbedding(_Quantized):
    """Rows of a weight, times `embed_scale`, in `dtype`; the memory is that of the head it is tied to, or its own."""

    def __init__(self, weight: QuantizedLinear, embed_scale: float, dtype: torch.dtype):
        super().__init__(weight.codes, weight.scales, weight.bits, weight.group_size, weight.in_features)
        self.embed_scale, self.dtype = embed_scale, dtype

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows = self.dequantize(input_ids.flatten(), self.dtype)
        return rows.unflatten(0, input_ids.shape) * self.embed_scale


def _codes(weight: IntWeight, device: torch.device) -> torch.Tensor:
    """Codes as a _Quantized holds them, laid out on the device."""
    bits, fields = weight.bits, 32 // weight.bits
    packed = torch.from_numpy(weight.packed).to(device)
    if bits == 4:
        packed = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
    filled = nn.functional.pad(
        packed[:, : weight.in_features], (0, -weight.in_features % weight.group_size), value=1 << bits - 1
    )
    words = filled.unflatten(1, (-1, fields, weight.group_size // fields)).unbind(2)
    codes = torch.zeros_like(words[0], dtype=torch.int32)
    for i, word in enumerate(words):
        codes |= word.int() << bits * i
    return codes.flatten(1)


def _scales(weight: IntWeight, device: torch.device) -> torch.Tensor:
    # A copy: the array may be the file's own pages, which are given back.
    return torch.tensor(weight.scales, device=device)
