"""Write a model of true shapes with random weights: real config.json, real tokenizer, nothing trained.

    python benchmarks/make_model.py runs/2b                     # MiniCPM-2B, bf16, one safetensors file (5.4 GB)
    python benchmarks/make_model.py runs/2b-bin --form bin      # as the hub had it: one pytorch_model.bin
    python benchmarks/make_model.py runs/1b --shape MiniCPM-1B-sft-bf16

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

from minicpm.formats.config import DecoderConfig
from minicpm.formats.safetensors import SafetensorsWriter
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.formats.torch_bin import TorchWriter

DATA = Path(__file__).parents[1] / "tests" / "data"
# Gains over 1/sqrt(fan-in), at which a projection keeps the size of its input. The branches must outweigh the
# embedding about tenfold in the residual stream, or a tied head gives the last token back for ever; the final
# norm's weight then sets how peaked the distribution is (logits with a standard deviation of about 2).
O_PROJ, DOWN_PROJ, EMBEDDING, HEAD = 0.6, 5.0, 0.006, 0.006
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
    args = parser.parse_args()
    make_model(args.folder, args.shape, args.form, args.dtype, args.layers, args.seed)


def make_model(
    folder: Path,
    shape: str = "MiniCPM-2B-sft-bf16",
    form: str = "safetensors",
    dtype: str = "bfloat16",
    layers: int | None = None,
    seed: int = 0,
) -> None:
    """Write the model folder; the same arguments give the same bytes."""
    raw = json.loads(next((DATA / "configs" / shape).glob("config*.json")).read_text(encoding="utf-8"))
    if layers is not None:
        raw["num_hidden_layers"] = layers
    raw["torch_dtype"] = dtype
    config = DecoderConfig.from_dict(raw)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=4), encoding="utf-8")
    _copy_tokenizer(folder)
    infos = [TensorInfo(name, dtype, dims) for name, dims in config.parameter_shapes().items()]
    writer_of = {"safetensors": SafetensorsWriter, "bin": TorchWriter}[form]
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[form]
    writer = writer_of(folder / name, infos)
    for number, info in enumerate(infos):
        writer.write(info.name, _random(info, np.random.default_rng([seed, number])))
    writer.close()


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
    if "embed_tokens" in info.name:
        return EMBEDDING
    if "lm_head" in info.name:
        return HEAD
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
