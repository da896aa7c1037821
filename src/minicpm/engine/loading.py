"""Loads a model with the backend of a given name, or with the one that fits the weights and the machine."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from pathlib import Path

from minicpm import native
from minicpm.engine.backend import StepBackend
from minicpm.engine.backends.vllm import VllmBackend, VllmRuntime, require_vllm
from minicpm.engine.cache.sliding_window import MOST_POSITIONS, SlidingWindow
from minicpm.engine.options import EngineOptions
from minicpm.engine.runtime import Runtime, StepRuntime
from minicpm.errors import MissingExtra, ModelError, install_command
from minicpm.formats.checkpoint import Checkpoint

_LOGGER = logging.getLogger(__name__)

# The native engine reads these weights at half the bytes of float32; it is not chosen for float32.
SHORT_DTYPES = ("bfloat16", "float16")


def load(checkpoint: Checkpoint, options: EngineOptions) -> Runtime:
    """Load with the named backend, or for 'auto' with the one that fits the weights and the machine."""
    longest = checkpoint.config.context_length
    _check_context(longest, options.context, options.window)
    if options.backend == "vllm":
        _check_for_vllm(options)
        return VllmRuntime(VllmBackend(checkpoint, options))
    return StepRuntime(_step_backend(checkpoint, options), options, options.context or longest)


def _step_backend(checkpoint: Checkpoint, options: EngineOptions) -> StepBackend:
    backend = _automatic(checkpoint, options) if options.backend == "auto" else options.backend
    if backend == "native":
        return _load_native(checkpoint, options)
    if backend == "numpy":
        return _load_numpy(checkpoint, options)
    if options.needs_our_cache:
        raise ValueError(f"kv_cache_dtype and sliding_window need the backend native or numpy, not {backend}")
    return _load_torch(checkpoint, dtype=options.dtype, device=options.device, threads=options.threads)


def _check_context(longest: int, context: int | None, window: SlidingWindow | None) -> None:
    """Raise ValueError for a context or a window that is longer than the model supports."""
    if window is not None and window.reach > longest:
        raise ValueError(
            f"a sliding window of {window.tokens} tokens with {window.sinks} sinks reaches over {window.reach} "
            f"positions, more than the {longest} this model is made for"
        )
    if context is not None and context > (longest if window is None else MOST_POSITIONS):
        hint = "; with a sliding_window it may be longer" if window is None else " under a sliding window"
        limit = (
            f"{longest} tokens this model is made for" if window is None else f"{MOST_POSITIONS} positions there are"
        )
        raise ValueError(f"context {context} is more than the {limit}{hint}")


def _automatic(checkpoint: Checkpoint, options: EngineOptions) -> str:
    """Native for quantized weights, and on a CPU for 16-bit ones; torch for others, and on a GPU.

    Quantized weights run on a GPU only if `device` names it. If the backend that fits is not installed, numpy is the
    fallback, with a warning.
    """
    missing, dtype, device = native.why_missing(), options.dtype, options.device
    if (checkpoint.packings and device in ("auto", "cpu")) or options.needs_our_cache:
        if missing is None:
            return "native"
        _warn_once(f"the native engine is missing ({missing}), so the numpy backend computes, slowly")
        return "numpy"
    is_short = checkpoint.config.dtype in SHORT_DTYPES and dtype in ("auto", checkpoint.config.dtype)
    is_on_cpu = device == "cpu" or (device == "auto" and not (_has_torch() and _has_gpu()))
    if is_short and is_on_cpu and missing is None:
        return "native"
    if _has_torch():
        return "torch"
    _LOGGER.warning(f"torch is not installed, so the numpy backend computes; {install_command('torch')}")
    return "numpy"


@functools.cache
def _warn_once(message: str) -> None:
    _LOGGER.warning(message)


def _load_native(checkpoint: Checkpoint, options: EngineOptions) -> StepBackend:
    if missing := native.why_missing():
        raise ModelError(f"the native engine is missing ({missing}); install a C++ compiler and minicpm again")
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"the native backend runs on the cpu, got device {options.device!r}")
    if options.dtype not in (("auto",) if checkpoint.packings else ("auto", checkpoint.config.dtype)):
        raise ValueError(
            f"the native backend computes with the weights as they are stored, got dtype {options.dtype!r}"
        )
    from minicpm.engine.backends.native import NativeBackend

    return NativeBackend(checkpoint, options.threads, kv_dtype=options.kv_cache_dtype, window=options.window)


def _check_for_vllm(options: EngineOptions) -> None:
    require_vllm()
    if options.kv_cache_dtype != "auto":
        raise ValueError("vLLM has its own option for this; use vllm_options={'kv_cache_dtype': ...}")
    if options.window is not None:
        raise ValueError("sliding_window needs the backend native or numpy, not vllm")
    if options.device != "auto":
        raise ValueError(f"vLLM runs on the device it was built for, got device {options.device!r}; leave it out")
    if options.threads is not None:
        raise ValueError(
            "vLLM sets its thread count itself; leave threads out and set OMP_NUM_THREADS before the start"
        )


def _has_torch() -> bool:
    return all(importlib.util.find_spec(library) is not None for library in ("torch", "transformers"))


def _has_gpu() -> bool:
    """Whether the system has a GPU driver. Importing torch to find out would take seconds."""
    paths = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg", r"C:\Windows\System32\nvcuda.dll")
    return sys.platform == "darwin" or any(Path(path).exists() for path in paths)


def _load_numpy(checkpoint: Checkpoint, options: EngineOptions) -> StepBackend:
    if options.threads is not None:
        raise ValueError(
            "numpy sets its thread count itself; leave threads out and set OMP_NUM_THREADS before the start"
        )
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"the numpy backend runs on the cpu, got device {options.device!r}")
    if options.dtype not in (("auto",) if checkpoint.packings else ("auto", "float32")):
        known = "the quantized weights as they are" if checkpoint.packings else "float32"
        raise ValueError(f"the numpy backend computes with {known}, got dtype {options.dtype!r}")
    from minicpm.engine.backends.numpy import NumpyBackend

    return NumpyBackend(checkpoint, kv_dtype=options.kv_cache_dtype, window=options.window)


def _load_torch(checkpoint: Checkpoint, *, dtype: str, device: str, threads: int | None) -> StepBackend:
    try:
        from minicpm.engine.backends.torch import TorchBackend
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise MissingExtra("the torch backend", "torch") from error
    return TorchBackend(checkpoint, dtype=dtype, device=device, threads=threads)
