"""Compile the GPU's kernels, on true MiniCPM-2B shapes, for a GPU that need not be there: `compiling.py CAPABILITY`.

Prints a line for each: its name, and how it reads memory.
"""

from __future__ import annotations

import re
import sys

import triton
from triton.backends.compiler import GPUTarget

from minicpm.engine.torch import kernels

HIDDEN, INNER, HEADS, D = 2304, 5760, 36, 64
BF16, CODES, SCALE, TABLE, WIDE = "*bf16", "*i32", "*fp16", "*i64", "*fp32"


def compiled(name: str, kernel, capability: int, constants: dict[str, object], **types: str) -> None:
    """`types` are those of the arguments in order; all pointers and whole numbers are multiples of 16."""
    signature = types | dict.fromkeys(constants, "constexpr")
    whole = [i for i, kind in enumerate(types.values()) if kind[0] == "*" or kind == "i32"]
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in whole},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert made.asm["cubin"]
    reads = sorted(set(re.findall(r"ld\.global[\w.:]*|cp\.async\.c[ag]\S* \[.*?\], \[.*?\], \w+", made.asm["ptx"])))
    print(f"{name}: {' '.join(reads)}")


def main() -> None:
    capability = int(sys.argv[1])
    one = {"x": BF16, "norm": BF16, "codes": BF16, "scales": SCALE, "residual": BF16, "out": BF16}
    sizes = {"N": "i32", "row_stride": "i32", "eps": "fp32", "factor": "fp32", "ones": "i32"}
    for name, codes, bits, G, K in (
        ("bf16", BF16, 16, 64, HIDDEN),
        ("bf16, long", BF16, 16, 64, INNER),
        ("int8", CODES, 8, 64, HIDDEN),
        ("int8, long", CODES, 8, 64, INNER),
        ("int4", CODES, 4, 64, HIDDEN),
        ("int4, long", CODES, 4, 64, INNER),
        ("int4-small", CODES, 4, 128, HIDDEN),
    ):
        block, groups, more = kernels._tile(HIDDEN if K == INNER else 2 * INNER, K, bits, G, 2)
        shape = {"K": K, "BITS": bits, "G": G, "BLOCK_N": block, "GROUPS": groups, "MORE_GROUPS": more}
        flags = (False, True, False) if K == INNER else (True, False, True)  # beside a residual, or gated
        constants = shape | dict(zip(("HAS_NORM", "HAS_RESIDUAL", "IS_GATED"), flags))
        compiled(name, kernels._product_kernel, capability, constants, **one | {"codes": codes} | sizes)
    rows = {"x": BF16, "codes": CODES, "scales": SCALE, "out": BF16}
    rows |= dict.fromkeys(("M", "N", "K", "row_stride", "ones"), "i32")
    for bits in (4, 8):
        constants = {"BITS": bits, "G": 64, "BLOCK_M": 16, "BLOCK_N": 16, "WORDS": kernels._WORDS}
        compiled(f"rows int{bits}", kernels._rows_kernel, capability, constants, **rows)
        constants = {"K": HIDDEN, "BITS": bits, "G": 64, "GROUPS": kernels._EXPANDED_GROUPS}
        types = {"codes": CODES, "scales": SCALE, "out": BF16, "row_stride": "i32", "ones": "i32"}
        compiled(f"weights int{bits}", kernels._weights_kernel, capability, constants, **types)
    attention = {"HEADS": HEADS, "KV_HEADS": HEADS, "D": D, "SPLITS": 4, "SPLIT": 256, "BLOCK": 64}
    compiled(
        "attention",
        kernels._attention_kernel,
        capability,
        attention,
        **{"qkv": BF16, "table": TABLE, "out": WIDE, "scale": "fp32", "layer": "i32"},
    )
    join = {"HEADS": HEADS, "D": D, "SPLITS": 4, "SPLIT": 256}
    compiled("join", kernels._join_kernel, capability, join, **{"parts": WIDE, "table": TABLE, "out": BF16})


if __name__ == "__main__":
    main()
