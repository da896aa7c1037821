"""The INT4/INT8 specification: codes, scales, packing, presets (docs/numerics.md, section 2).

weight[n, k] = codes[n, k] * scales[n, k // G], with int4 codes -8..7 and int8 codes -127..127. It knows arrays and the
stored tensors of one weight. Other modules, e.g. rtn.py, choose the codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from minicpm.errors import FormatError
from minicpm.formats.compressed_tensors import PACKED, SCALE, SHAPE, Packing
from minicpm.formats.config import DecoderConfig
from minicpm.formats.tensor import TensorView, round_to_bfloat16

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float16] | Floats

# Positive, and exact in both float16 and bfloat16. A group that needs a smaller scale is all zeros to every reader.
SMALLEST_SCALE = np.float32(2.0**-24)
LARGEST_SCALE = np.float32(65280)  # the largest bfloat16 below float16's 65504


@dataclass(frozen=True)
class Preset:
    """The packings of a model: `linear` for the blocks' matrices, `outer` for embedding and head (None: 16 bits)."""

    name: str
    linear: Packing
    outer: Packing | None
    cost: str = ""  # what it costs a trained model, where that is more than users expect


# benchmarks/results/quality_real.json; a larger model loses less.
_SMALL_COST = (
    "int4-small costs a trained model much: SmolLM2-135M has more than twice the perplexity and half of its first "
    "choices change (int4: +35 % and a third); docs/quantization.md has the figures"
)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("int4", Packing(4, 64), Packing(8, 64)),
        Preset("int4-small", Packing(4, 128), Packing(4, 128), cost=_SMALL_COST),
        Preset("int4-hf", Packing(4, 128), None),
        Preset("int8", Packing(8, 32), Packing(8, 32)),
    )
}


@dataclass(frozen=True)
class IntWeight(ABC):
    """A quantized (N, K) weight as stored. Rows of `packed` are whole 32-bit words, so they may hold codes beyond K."""

    packed: npt.NDArray[np.uint8]  # (N, row bytes)
    scales: Scales  # (N, ceil(K / G))
    in_features: int  # K
    group_size: int  # G

    bits: ClassVar[int]
    low: ClassVar[int]
    high: ClassVar[int]

    def __post_init__(self) -> None:
        N, K, G = len(self.packed), self.in_features, self.group_size
        if self.packed.shape != (N, 4 * -(-K * self.bits // 32)):
            raise ValueError(f"packed {self.packed.shape} does not hold {K} codes of {self.bits} bits a row")
        if self.scales.shape != (N, -(-K // G)):
            raise ValueError(f"scales {self.scales.shape} do not match {N} rows of {K} in groups of {G}")

    @property
    def out_features(self) -> int:
        return len(self.packed)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes

    def rows(self, chosen: slice | npt.NDArray[np.int64]) -> IntWeight:
        """The weight of some output features: a view for a slice, a copy for indices."""
        return type(self)(self.packed[chosen], self.scales[chosen], self.in_features, self.group_size)

    @abstractmethod
    def codes(self) -> Codes:
        """(N, K) int8."""

    def grouped_codes(self) -> Codes:
        """(N, K / G, G) int8, K padded with code 0 to a multiple of G."""
        N, K, G = self.out_features, self.in_features, self.group_size
        codes = np.pad(self.codes(), ((0, 0), (0, -K % G)))
        return codes.reshape(N, -(-K // G), G)

    def dequantize(self) -> Floats:
        """(N, K) float32: codes times scales. Exact, because a 16-bit scale has at most 11 significant bits."""
        values = self.grouped_codes() * self.scales.astype(np.float32)[:, :, None]
        return np.ascontiguousarray(values.reshape(self.out_features, -1)[:, : self.in_features])


class Int4Weight(IntWeight):
    """Two codes per byte, the low nibble first, each plus 8: packed (N, 4 ceil(K / 8)) uint8."""

    bits, low, high = 4, -8, 7

    def codes(self) -> Codes:
        nibbles = np.empty((self.out_features, self.packed.shape[1], 2), np.uint8)
        np.bitwise_and(self.packed, 15, out=nibbles[:, :, 0])
        np.right_shift(self.packed, 4, out=nibbles[:, :, 1])
        return nibbles.reshape(self.out_features, -1)[:, : self.in_features].view(np.int8) - np.int8(8)

    @classmethod
    def pack(cls, codes: Codes, scales: Scales, group_size: int) -> Int4Weight:
        """From codes (N, K) int8 in -8..7 and scales (N, ceil(K / G))."""
        shifted = _shifted(codes, cls.low, cls.high, 8, 8)
        return cls(shifted[:, 0::2] | shifted[:, 1::2] << np.uint8(4), scales, codes.shape[1], group_size)


class Int8Weight(IntWeight):
    """One code per byte, plus 128: packed (N, 4 ceil(K / 4)) uint8."""

    bits, low, high = 8, -127, 127

    def codes(self) -> Codes:
        return (self.packed[:, : self.in_features] ^ np.uint8(0x80)).view(np.int8)

    @classmethod
    def pack(cls, codes: Codes, scales: Scales, group_size: int) -> Int8Weight:
        """From codes (N, K) int8 in -127..127 and scales (N, ceil(K / G))."""
        return cls(_shifted(codes, cls.low, cls.high, 128, 4), scales, codes.shape[1], group_size)


WEIGHT_TYPES: dict[int, type[Int4Weight] | type[Int8Weight]] = {4: Int4Weight, 8: Int8Weight}


def round_scales(scales: Floats) -> npt.NDArray[np.float16]:
    """The nearest values that float16 and bfloat16 both hold exactly, at least SMALLEST_SCALE; any shape."""
    bounded = np.clip(scales, SMALLEST_SCALE, LARGEST_SCALE)
    return (round_to_bfloat16(bounded).astype(np.uint32) << 16).view(np.float32).astype(np.float16)


class StoredWeights(Protocol):
    """What `read_weight` needs of an opened model. formats/checkpoint.py implements it; tests may, too."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def packings(self) -> Mapping[str, Packing]:
        """Packing of each packed weight, by published name."""

    @property
    def has_signed_scales(self) -> bool:
        """Whether scales may be negative."""

    def read(self, name: str) -> TensorView:
        """A stored tensor by its name; of a packed weight there are name + _packed, _scale and _shape."""

    def damaged(self, problem: str) -> FormatError:
        """An error that names the model and the problem."""


def read_weight(model: StoredWeights, name: str) -> IntWeight | TensorView:
    """The weight of a published name, as a view of the stored bytes: an IntWeight, or a TensorView if not quantized.

    Raises FormatError for values that the arithmetic excludes: negative or non-finite scales, the int8 code -128.
    """
    packing = model.packings.get(name)
    if packing is None:
        return model.read(name)
    N, K = model.config.parameter_shapes()[name]
    if model.read(name + SHAPE).storage().tolist() != [N, K]:
        raise model.damaged(f"{name}{SHAPE} contradicts the configuration's [{N}, {K}]")
    view = model.read(name + SCALE)
    scales: Scales = view.float32()
    if view.dtype == "float16":
        scales = np.frombuffer(view.buffer, np.float16).reshape(view.shape)
    if not (np.isfinite(scales).all() and (model.has_signed_scales or (scales >= 0).all())):
        raise model.damaged(f"{name}{SCALE} holds a scale that is negative or not finite")
    packed = np.frombuffer(model.read(name + PACKED).buffer, np.uint8).reshape(N, -1)
    if packing.bits == 8 and not packed[:, :K].all():
        raise model.damaged(f"{name}{PACKED} holds the code -128; int8 codes are -127..127")
    return WEIGHT_TYPES[packing.bits](packed, scales, K, packing.group_size)


def _shifted(codes: Codes, low: int, high: int, offset: int, per_word: int) -> npt.NDArray[np.uint8]:
    """Codes (N, K) made unsigned, K padded with stored zeros to whole 32-bit words."""
    if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise ValueError(f"codes from {codes.min()} to {codes.max()} are outside {low}..{high}")
    unsigned = (codes.astype(np.int16) + offset).astype(np.uint8)
    return np.pad(unsigned, ((0, 0), (0, -codes.shape[1] % per_word)))
