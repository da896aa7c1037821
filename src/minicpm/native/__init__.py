"""The native extension, where this installation has one: which instruction set it uses, and on how many threads.

The rest of the package knows no kernels; minicpm.engine.backends.native calls them. Without a compiler the package
installs all the same, and the numpy engine computes.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

_CPUS = Path("/sys/devices/system/cpu")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def extension() -> ModuleType:
    """The extension module; ImportError says why there is none."""
    from minicpm import _native

    return _native


def why_missing() -> str | None:
    """None where the extension can be used, else the reason in a few words."""
    try:
        extension()
    except ImportError as error:
        is_absent = importlib.util.find_spec("minicpm._native") is None
        return "this installation was made without a C++ compiler" if is_absent else str(error)
    return None


def isa() -> str:
    """The instruction set of the kernels: the fastest that runs here, or the one in MINICPM_ISA."""
    runnable = _asked_once(extension().runnable_isas)
    wanted = os.environ.get("MINICPM_ISA", "")
    if not wanted:
        return runnable[0]
    if wanted not in runnable:
        raise ValueError(f"MINICPM_ISA is '{wanted}'; this machine and build run {', '.join(runnable)}")
    return wanted


@functools.cache
def _asked_once(runnable_isas: Callable[[], list[str]]) -> list[str]:
    """Its answer: 2 ms under a hypervisor, which every question to the processor wakes, and every request asks."""
    return runnable_isas()


def thread_count(threads: int | None = None) -> int:
    """Threads to compute with: `threads`, else MINICPM_THREADS, else one per physical core this process may use."""
    if threads is not None:
        return threads
    wanted = os.environ.get("MINICPM_THREADS", "")
    if not wanted:
        return physical_cores()
    if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
        raise ValueError(f"MINICPM_THREADS is '{wanted}'; expected a number from 1 to 1024")
    return int(wanted)


def physical_cores() -> int:
    """Physical cores this process may use, at least 1: two threads on one core only wait for its multipliers."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_read(_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in allowed}
    # A container may be given a part of the machine's time: threads beyond it would wait for each other.
    quota, _, period = _read(_CPU_LIMIT).partition(" ")
    limit = math.ceil(int(quota) / int(period)) if quota.isdecimal() and period.isdecimal() else len(cores)
    return max(1, min(len(cores), limit))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
