"""Models to measure quantization with: a float model that rounds to a quantized one, and outlier-scaled copies.

Large models have channels that are hundreds of times larger than their neighbours and make rounding hard. A small
model has none. An outlier-scaled copy has them and computes the same function: every difference comes from rounding.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from minicpm.errors import ModelError
from minicpm.export.convert import check_places, companion_files
from minicpm.files import write_text
from minicpm.formats import hf
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.folder import copy_file, new_folder
from minicpm.formats.tensor import TensorInfo
from minicpm.quant.format import Floats, IntWeight, read_weight
from minicpm.quant.rescaling import BlockScales, block_of

OUTLIER_SHARE = 0.005  # of the channels of each place, at least one


def write_unrounded(source: str | Path, destination: str | Path, seed: int, overwrite: bool = False) -> None:
    """Write a float32 model that rounds to the quantized one in `source`.

    Every weight moves at random inside its own step: weight = (code + u) scale, u uniform in -1/2 .. 1/2. The rounding
    error of the source is then as large as for its true float weights, which are lost. u depends only on the seed and
    the weight's name.
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
    """Write a float32 copy of the float model `source` that computes the same, some channels `factor` times larger."""
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        blocks = [outlier_scales(config, factor, (seed, index)) for index in range(config.num_hidden_layers)]

        def rescaled(name: str, weight: Floats | IntWeight) -> Floats:
            assert not isinstance(weight, IntWeight)
            block = block_of(name)
            return weight if block is None else blocks[block].apply(name, weight, config)

        _write(checkpoint, Path(destination), rescaled, overwrite)


def outlier_scales(config: DecoderConfig, factor: float, seed: int | tuple[int, ...]) -> BlockScales:
    """Scales of one block: OUTLIER_SHARE of the channels of each place, chosen at random, grow by `factor`.

    Of a key channel and its query channel, either may be the larger one.
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
    """Write the model in float32 with `change` applied to every weight."""
    check_places(checkpoint.path, destination, overwrite)
    config = replace(checkpoint.config, dtype="float32")
    infos = [TensorInfo(name, "float32", shape) for name, shape in config.parameter_shapes().items()]
    files = hf.plan_files(infos, hf.DEFAULT_SHARD_BYTES)

    def content(name: str) -> tuple[memoryview]:
        weight = read_weight(checkpoint, name)
        values = change(name, weight if isinstance(weight, IntWeight) else weight.float32())
        return (np.ascontiguousarray(values, np.float32).data.cast("B"),)

    with new_folder(destination, overwrite) as folder:
        for path in companion_files(checkpoint, "hf"):
            copy_file(path, folder / path.name)
        for _ in hf.write_weights(folder, files, content):
            pass
        if (index := hf.index_of(files)) is not None:
            write_text(folder / index[0], json.dumps(index[1], indent=2) + "\n")
        write_text(folder / "config.json", json.dumps(hf.write_config(config), indent=2, ensure_ascii=False) + "\n")
