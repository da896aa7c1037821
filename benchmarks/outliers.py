"""Models to measure quantization with: a float model that rounds to a quantized one, and outlier-scaled copies.

Large models have channels hundreds of times larger than their neighbours, which makes their weights hard to round;
small ones have none. An outlier-scaled copy has such channels and computes the same as its source, so every difference
after quantization is rounding error.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minicpm.errors import ModelError
from minicpm.export.destination import check_places
from minicpm.export.hf_folder import companion_files, plan_floats, write_folder
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.tensor import TensorInfo
from minicpm.quant.format import Floats, IntWeight, read_weight
from minicpm.quant.rescaling import BlockScales, block_of

OUTLIER_SHARE = 0.005  # of the channels of every place, at least one


def write_unrounded(source: str | Path, destination: str | Path, seed: int, overwrite: bool = False) -> None:
    """A float32 model that rounds to the quantized one in `source`: every weight moved at random inside its own step.

    With weight = (code + u) scale, u even in -1/2 .. 1/2, the rounding error of the source is what it would be for
    the model that it was made of, whose weights are lost. u depends on the seed and the weight's name alone.
    """

    def moved(name: str, weight: Floats | IntWeight) -> Floats:
        if not isinstance(weight, IntWeight):
            return weight
        random = np.random.default_rng((seed, zlib.crc32(name.encode())))
        codes = weight.codes() + (random.random((weight.out_features, weight.in_features), np.float32) - 0.5)
        scales = np.repeat(weight.scales.astype(np.float32), weight.group_size, axis=1)[:, : weight.in_features]
        return (codes * scales).astype(np.float32)

    with open_checkpoint(source, allow_quantized=True) as checkpoint:
        if not checkpoint.packings:
            raise ModelError(f"{source}: its weights are not quantized; it is a float model already")
        _write(checkpoint, Path(destination), moved, overwrite)


def write_outlier_copy(
    source: str | Path, destination: str | Path, factor: float, seed: int, overwrite: bool = False
) -> None:
    """A float32 copy of the float model `source` that computes the same, with some channels `factor` times larger."""
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        blocks = [outlier_scales(config, factor, (seed, index)) for index in range(config.num_hidden_layers)]

        def rescaled(name: str, weight: Floats | IntWeight) -> Floats:
            assert not isinstance(weight, IntWeight)
            block = block_of(name)
            return weight if block is None else blocks[block].apply(name, weight, config)

        _write(checkpoint, Path(destination), rescaled, overwrite)


def outlier_scales(config: DecoderConfig, factor: float, seed: int | tuple[int, ...]) -> BlockScales:
    """The channels of one block that grow by `factor`, chosen at random: OUTLIER_SHARE of each place, at least one.

    Of keys and queries either may be the large one.
    """
    random = np.random.default_rng(seed)

    def outliers(scales: Floats, both: bool = False) -> Floats:
        grown = scales.copy()
        chosen = random.choice(grown.size, max(1, round(OUTLIER_SHARE * grown.size)), replace=False)
        grown.flat[chosen] = np.where(both & (random.random(len(chosen)) < 0.5), 1 / factor, factor)
        return grown

    plain = BlockScales.ones(config)
    return BlockScales(
        attention=outliers(plain.attention),
        keys=outliers(plain.keys, both=True),
        values=outliers(plain.values),
        mlp=outliers(plain.mlp),
        inner=outliers(plain.inner),
    )


def _write(
    checkpoint: Checkpoint, destination: Path, change: Callable[[str, Floats | IntWeight], Floats], overwrite: bool
) -> None:
    """The model in float32 with every weight changed, in a new folder."""
    check_places(checkpoint.path, destination, overwrite)
    plan = plan_floats(checkpoint.config.with_dtype("float32"), companion_files(checkpoint.path))

    def content(info: TensorInfo) -> tuple[memoryview]:
        weight = read_weight(checkpoint, info.name)
        values = change(info.name, weight if isinstance(weight, IntWeight) else weight.float32())
        return (np.ascontiguousarray(values, np.float32).data.cast("B"),)

    write_folder(destination, plan, content, label="rescaling", overwrite=overwrite)
