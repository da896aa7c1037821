"""compressed-tensors folders: `quantization_config` and the stored tensors of packed INT4 and INT8 weights.

A weight `x.weight` (N, K) is stored as `x.weight_packed` int32 (N, ceil(K bits / 32)), codes plus 2**(bits-1), low
bits first; `x.weight_scale` (N, ceil(K / G)); `x.weight_shape` int64 [N, K]. Here are names, shapes and the
configuration; what codes mean is quant/format.py. Which weights are packed is read off the stored tensors, never off
the patterns in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, ModelError, brief
from minicpm.formats.config import DecoderConfig
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.recognition import FLOAT_ADVICE
from minicpm.formats.tensor import FLOAT_DTYPES, TensorInfo

PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"
METHOD, FORMAT = "compressed-tensors", "pack-quantized"
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, order=True)
class Packing:
    """Bits of a code and how many codes along K share a scale."""

    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.group_size not in GROUP_SIZES:
            raise ModelError(
                f"{brief(self.bits)}-bit weights in groups of {brief(self.group_size)} are not supported; "
                "expected 4 or 8 bits in groups of 32, 64 or 128"
            )

    def stored(self, name: str, shape: tuple[int, ...], scale_dtype: str = "float16") -> tuple[TensorInfo, ...]:
        """The three tensors that hold the (N, K) weight `name`."""
        N, K = shape
        return (
            TensorInfo(name + PACKED, "int32", (N, -(-K * self.bits // 32))),
            TensorInfo(name + SCALE, scale_dtype, (N, -(-K // self.group_size))),
            TensorInfo(name + SHAPE, "int64", (2,)),
        )


def is_linear(name: str) -> bool:
    """True for the published name of a matrix inside a decoder block."""
    return name.endswith("_proj.weight")


def write_quantization(linear: Packing, outer: Packing | None) -> dict[str, Any]:
    """config.json's quantization_config: block linears in `linear`, embedding and head in `outer`, if any."""
    groups = {"group_0": _group(["re:.*_proj$"] if outer else ["Linear"], linear)}
    if outer is not None:
        groups["group_1"] = _group(["re:.*embed_tokens$", "re:.*lm_head$"], outer)
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ["lm_head"] if outer is None else [],
        "config_groups": groups,
    }


def read_quantization(raw: dict[str, Any]) -> frozenset[Packing]:
    """The packings that a config.json names, none for a model that is not quantized; ModelError for other schemes."""
    quantization = raw.get("quantization_config")
    if not quantization:
        return frozenset()
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(quantization, dict) or method != METHOD:
        raise ModelError(
            f"its weights are quantized by {brief(method)}; this version reads {METHOD} INT4 and INT8 only, so "
            f"{FLOAT_ADVICE}"
        )
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelError("quantization_config has no config_groups")
    if quantization.get("kv_cache_scheme") is not None:
        raise ModelError("quantization_config has a kv_cache_scheme, which this version does not read")
    return frozenset(_read_group(name, group, quantization.get("format")) for name, group in groups.items())


def packed_parameters(
    path: Path, config: DecoderConfig, packings: frozenset[Packing], stored: Mapping[str, TensorInfo]
) -> dict[str, Packing]:
    """Published name -> packing of each weight stored packed; FormatError where its tensors contradict each other."""
    found = {}
    for name, shape in config.parameter_shapes().items():
        if name + PACKED not in stored:
            continue
        if not (is_linear(name) or name in (EMBEDDING, HEAD)):
            raise FormatError(path, f"{name} is stored packed, but it is no matrix of a linear layer")
        found[name] = _packing_of(path, name, shape, packings, stored)
    return found


def _packing_of(
    path: Path, name: str, shape: tuple[int, ...], packings: frozenset[Packing], stored: Mapping[str, TensorInfo]
) -> Packing:
    if not packings:
        raise FormatError(
            path,
            f"{name} is stored packed, but config.json has no quantization_config; copy the source's config.json again",
        )
    for packing in sorted(packings):
        wanted = packing.stored(name, shape)
        infos = [stored.get(info.name) for info in wanted]
        if all(info is not None and info.shape == want.shape for info, want in zip(infos, wanted)):
            dtypes = [info.dtype for info in infos if info is not None]
            if dtypes[0] == "int32" and dtypes[1] in FLOAT_DTYPES and dtypes[2] == "int64":
                return packing
    have = {info.name: list(info.shape) for info in stored.values() if info.name.startswith(name + "_")}
    known = ", ".join(f"{packing.bits} bits by {packing.group_size}" for packing in sorted(packings))
    raise FormatError(path, f"{name} is stored as {have}, which fits no packing of its config.json ({known})")


def _group(targets: list[str], packing: Packing) -> dict[str, Any]:
    weights = {
        "num_bits": packing.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": packing.group_size,
        "dynamic": False,
        "actorder": None,
    }
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def _read_group(name: str, group: object, default_format: object) -> Packing:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict):
        raise ModelError(f"quantization_config: {brief(name)} says nothing about weights")
    is_packed = (group.get("format") or default_format) == FORMAT
    is_plain = weights.get("type", "int") == "int" and weights.get("symmetric") is True
    is_grouped = weights.get("strategy") == "group" and not weights.get("dynamic") and not weights.get("actorder")
    if not (is_packed and is_plain and is_grouped) or group.get("input_activations") is not None:
        raise ModelError(
            f"quantization_config: {brief(name)} is not symmetric integers in groups, {FORMAT}, without actorder; "
            "other schemes of compressed-tensors are not supported"
        )
    bits, group_size = weights.get("num_bits"), weights.get("group_size")
    if not isinstance(bits, int) or not isinstance(group_size, int):
        raise ModelError(f"quantization_config: {brief(name)} has no num_bits or group_size")
    return Packing(bits, group_size)
