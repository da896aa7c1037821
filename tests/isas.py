"""The native engine's instruction sets as parameters of tests. One that this machine lacks is skipped, not absent."""

from __future__ import annotations

import platform

import pytest

from minicpm import native

# The fastest first, as csrc/isa.cc has them.
X86_ISAS = ("avx512bf16", "avx512vnni", "avxvnni", "avx2", "generic")
ARM_ISAS = ("neoni8mm", "neondot", "generic")
# What `platform.machine()` says on Linux, Windows and macOS.
ISAS_OF = {"x86_64": X86_ISAS, "AMD64": X86_ISAS, "aarch64": ARM_ISAS, "arm64": ARM_ISAS}


def runnable_isas() -> list[str]:
    """Those that run here, the fastest first; none without the native engine."""
    return [] if native.why_missing() else native.extension().runnable_isas()


def every_isa(machine: str = platform.machine()) -> list[object]:
    """A parameter for each instruction set of this architecture; those that cannot run here are skipped."""
    runnable = runnable_isas()
    lacking = f"no native engine: {native.why_missing()}" if native.why_missing() else "this machine has no {}"
    return [
        isa if isa in runnable else pytest.param(isa, marks=pytest.mark.skip(lacking.format(isa)))
        for isa in ISAS_OF.get(machine, ("generic",))
    ]
