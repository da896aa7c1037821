"""The native extension, if this installation has one: its instruction set and thread count.

minicpm.engine.backends.native calls its kernels. Without a C++ compiler the package installs without the extension, and
the numpy backend computes.
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
    """The extension module. Raises ImportError, with the reason, if there is none."""
    from minicpm import _native

    return _native


def why_missing() -> str | None:
    """The reason why the extension cannot be used; None if it can."""
    try:
        extension()
    except ImportError as error:
        is_absent = importlib.util.find_spec("minicpm._native") is None
        return "this installation was made without a C++ compiler" if is_absent else str(error)
    return None


def isa() -> str:
    """The instruction set of the kernels: the fastest that runs here, or MINICPM_ISA."""
    runnable = _asked_once(extension().runnable_isas)
    wanted = os.environ.get("MINICPM_ISA", "")
    if not wanted:
        return runnable[0]
    if wanted not in runnable:
        raise ValueError(f"MINICPM_ISA is '{wanted}'; this machine and build run {', '.join(runnable)}")
    return wanted


@functools.cache
def _asked_once(runnable_isas: Callable[[], list[str]]) -> list[str]:
    """The result of the first call. A call takes 2 ms under a hypervisor, and every request needs one."""
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
    """Physical cores that this process may use, at least 1. Two threads on one core would share its multipliers."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_read(_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in allowed}
    # A container may have a quota of CPU time; more threads than that would wait for each other.
    quota, _, period = _read(_CPU_LIMIT).partition(" ")
    limit = math.ceil(int(quota) / int(period)) if quota.isdecimal() and period.isdecimal() else len(cores)
    return max(1, min(len(cores), limit))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
