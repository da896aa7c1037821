"""Compile the kernels of MiniCPM-2B's steps for a GPU that may be absent: `compiling.py CAPABILITY`.

Steps are taken as on a GPU, but for one layer of weights that nobody wrote, and nothing is launched. Prints a line for
each kernel, as it was called: its name, what it was made for, and how it reads memory.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from minicpm.engine.backends.torch import kernels
from minicpm.engine.backends.torch.graphs import GraphedDecoder
from minicpm.engine.backends.torch.ragged import TorchSequence
from minicpm.formats.config import DecoderConfig
from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM
from minicpm.models.quantized import QuantizedEmbedding, QuantizedLinear

SHAPE = Path(__file__).parents[2] / "data" / "configs" / "MiniCPM-2B-sft-bf16"
DTYPE = torch.bfloat16


class NoGpu:
    """Stands in for the driver of a GPU."""

    def __init__(self, capability: int):
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """What every call of a kernel was compiled to, in the place of launching it."""

    def __init__(self) -> None:
        self.reads: dict[str, str] = {}
        run = JITFunction.run

        def compile_only(kernel: Any, *args: Any, grid: object, warmup: bool, **options: Any) -> None:
            made = run(kernel, *args, grid=grid, warmup=True, **options)
            assert made.asm["cubin"]
            reads = sorted(set(re.findall(r"ld\.global[\w.]*|cp\.async\.c[ag]", made.asm["ptx"])))
            self.reads[f"{kernel.__name__} {made.hash[:8]}"] = " ".join(reads)

        JITFunction.run = compile_only


def model_of(config: DecoderConfig, bits: int, group_size: int) -> MiniCPMForCausalLM:
    """A model with weights of codes, or in bfloat16 for 16 bits."""
    with torch.device("meta"):
        model = MiniCPMForCausalLM(MiniCPMConfig.from_decoder_config(config)).to(DTYPE)
    if bits < 16:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        for name in linear:
            layer = model.get_submodule(name)
            groups = layer.in_features // group_size
            codes = torch.empty((layer.out_features, groups * group_size * bits // 32), dtype=torch.int32)
            scales = torch.empty((layer.out_features, groups), dtype=torch.float16)
            model.set_submodule(name, QuantizedLinear(codes, scales, bits, group_size, layer.in_features))
        model.model.embed_tokens = QuantizedEmbedding(model.lm_head, config.scale_emb, DTYPE)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False))
    return model.eval()


def step(config: DecoderConfig, model: MiniCPMForCausalLM, lengths: list[int]) -> None:
    """A step of single tokens behind texts of so many."""
    decoder = GraphedDecoder(model, config, lambda compute: (compute(), lambda: None))
    sequences = []
    for length in lengths:
        sequence = TorchSequence(config, 4096, DTYPE, torch.device("cpu"))
        sequence.reserve(length)
        sequence.extend([0] * length)
        sequences.append(sequence)
    decoder(sequences, [0] * len(lengths))


def main() -> None:
    triton.runtime.driver.set_active(NoGpu(int(sys.argv[1])))
    raw = json.loads(next(SHAPE.glob("config*.json")).read_text(encoding="utf-8"))
    config = DecoderConfig.from_dict(raw | {"num_hidden_layers": 1})
    compiled = Compiled()
    with torch.inference_mode():
        for bits, group_size in ((16, 64), (8, 64), (4, 64), (4, 128)):
            model = model_of(config, bits, group_size)
            step(config, model, [0])
            if group_size == 64:
                step(config, model, [1000])
            if bits < 16:
                step(config, model, [5, 6, 7])
                kernels.weights_of(model.model.layers[0].mlp.up_proj, slice(None), DTYPE)
    for name, reads in compiled.reads.items():
        print(f"{name}: {reads}")


if __name__ == "__main__":
    main()
