"""Write a model of true shapes with random weights: real config.json, real tokenizer, nothing trained.

    python benchmarks/make_model.py runs/2b                     # MiniCPM-2B, bf16, one safetensors file (5.4 GB)
    python benchmarks/make_model.py runs/2b-bin --form bin      # as the hub had it: one pytorch_model.bin
    python benchmarks/make_model.py runs/1b --shape MiniCPM-1B-sft-bf16
    python benchmarks/make_model.py runs/2b-int4 --preset int4  # random codes, in seconds: what speed needs

The weights are shaped so that greedy text varies: with one standard deviation everywhere a tied model repeats one
token for ever, and tests nothing.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minicpm.formats.compressed_tensors import PACKED, SCALE, SHAPE, Packing, is_linear, write_quantization
from minicpm.formats.config import DecoderConfig
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.safetensors import SafetensorsWriter
from minicpm.formats.tensor import STORAGE_DTYPES, TensorInfo, TensorView
from minicpm.formats.torch_bin import TorchWriter
from minicpm.quant.format import PRESETS, WEIGHT_TYPES, Preset, round_scales

DATA = Path(__file__).parents[1] / "tests" / "data"
# Gains over 1/sqrt(fan-in), at which a projection keeps the size of its input. The branches must outweigh the
# embedding about tenfold in the residual stream, or a tied head gives the last token back for ever; the final
# norm's weight then sets how peaked the distribution is (logits with a standard deviation of about 2).
O_PROJ, DOWN_PROJ, OUTER = 0.6, 5.0, 0.006
FINAL_NORM = (40.0, 100.0)
CHUNK_VALUES = 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="MiniCPM-2B-sft-bf16", help="a folder name in tests/data/configs")
    parser.add_argument("--form", choices=("safetensors", "bin"), default="safetensors")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", choices=tuple(PRESETS), help="weights as random codes of a preset")
    args = parser.parse_args()
    make_model(args.folder, args.shape, args.form, args.dtype, args.layers, args.seed, args.preset)


def make_model(
    folder: Path,
    shape: str = "MiniCPM-2B-sft-bf16",
    form: str = "safetensors",
    dtype: str = "bfloat16",
    layers: int | None = None,
    seed: int = 0,
    preset: str | None = None,
) -> None:
    """Write the model folder; the same arguments give the same bytes."""
    raw = json.loads(next((DATA / "configs" / shape).glob("config*.json")).read_text(encoding="utf-8"))
    if layers is not None:
        raw["num_hidden_layers"] = layers
    raw["torch_dtype"] = dtype
    config = DecoderConfig.from_dict(raw)
    infos = [TensorInfo(name, dtype, dims) for name, dims in config.parameter_shapes().items()]
    packings = {} if preset is None else _packings(infos, PRESETS[preset])
    if preset is not None:
        raw["quantization_config"] = write_quantization(PRESETS[preset].linear, PRESETS[preset].outer)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=4), encoding="utf-8")
    _copy_tokenizer(folder)
    writer_of = {"safetensors": SafetensorsWriter, "bin": TorchWriter}[form]
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[form]
    parts = [(info, stored) for info in infos for stored in _stored(info, packings.get(info.name))]
    if packings:  # an even place for the wide ones
        parts.sort(key=lambda part: -STORAGE_DTYPES[part[1].dtype].itemsize)
    writer = writer_of(folder / name, [stored for _, stored in parts])
    for number, (info, stored) in enumerate(parts):
        rng = np.random.default_rng([seed, number])
        is_packed = info.name in packings
        writer.write(
            stored.name, _random_codes(info, stored, packings[info.name], rng) if is_packed else _random(info, rng)
        )
    writer.close()


def _packings(infos: list[TensorInfo], preset: Preset) -> dict[str, Packing]:
    found = {info.name: preset.linear for info in infos if is_linear(info.name)}
    if preset.outer is not None:
        found |= {info.name: preset.outer for info in infos if info.name in (EMBEDDING, HEAD)}
    return found


def _stored(info: TensorInfo, packing: Packing | None) -> tuple[TensorInfo, ...]:
    return (info,) if packing is None else packing.stored(info.name, info.shape)


def _random_codes(
    info: TensorInfo, stored: TensorInfo, packing: Packing, rng: np.random.Generator
) -> Iterator[memoryview]:
    """One of the tensors of a packed weight: all codes are as likely, one scale gives them the deviation they need."""
    if stored.name.endswith(SHAPE):
        yield memoryview(np.array(info.shape, np.int64)).cast("B")
    elif stored.name.endswith(SCALE):
        kind = WEIGHT_TYPES[packing.bits]
        scale = _deviation(info) * (12 / ((kind.high - kind.low + 1) ** 2 - 1)) ** 0.5
        yield memoryview(np.full(stored.shape, round_scales(np.float32(scale)))).cast("B")
    else:
        assert stored.name.endswith(PACKED)
        # A byte of zeros is the int8 code -128, which there is not.
        yield memoryview(rng.integers(1 if packing.bits == 8 else 0, 256, stored.nbytes, np.uint8))


def _random(info: TensorInfo, rng: np.random.Generator) -> Iterator[memoryview]:
    """A tensor's bytes in chunks of whole values."""
    count = int(np.prod(info.shape))
    for start in range(0, count, CHUNK_VALUES):
        size = min(CHUNK_VALUES, count - start)
        if len(info.shape) == 1:
            low, high = FINAL_NORM if info.name == "model.norm.weight" else (0.8, 1.2)
            values = rng.uniform(low, high, size).astype(np.float32)
        else:
            values = rng.standard_normal(size, dtype=np.float32) * np.float32(_deviation(info))
        yield TensorView.from_float32(info.name, values, info.dtype).buffer


def _deviation(info: TensorInfo) -> float:
    fan_in = info.shape[1]
    if info.name in (EMBEDDING, HEAD):
        return OUTER
    gain = O_PROJ if "o_proj" in info.name else DOWN_PROJ if "down_proj" in info.name else 1.0
    return gain / float(np.sqrt(fan_in))


def _copy_tokenizer(folder: Path) -> None:
    for file in (DATA / "tokenizer" / "MiniCPM-2B").iterdir():
        if file.suffix == ".xz":
            (folder / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        elif "feb2024" not in file.name:
            shutil.copy(file, folder / file.name)


if __name__ == "__main__":
    main()
