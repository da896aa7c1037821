"""EngineOptions: how a model is loaded and run. LLM, the command line and both servers use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

from minicpm.engine.backend import BLOCK_TOKENS
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.formats.tensor import FLOAT_DTYPES

# The values of the options that are texts.
CHOICES = {
    "backend": ("auto", "native", "torch", "numpy", "vllm"),
    "dtype": ("auto", *FLOAT_DTYPES),
    "kv_cache_dtype": ("auto", "int8", "bfloat16"),
    "lookup": ("auto", "off"),
}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is loaded and run. Raises ValueError for an invalid value.

    - `backend`: 'auto' chooses the one that fits the weights and the machine.
    - `dtype`: 'auto' (the checkpoint's own), 'float32', 'bfloat16' or 'float16'.
    - `device`: 'auto', 'cpu', 'cuda' or 'cuda:N'. `threads`: CPU threads (None: one per physical core).
    - `context`: the longest sequence in tokens (None: the model's own limit). It may exceed that limit only with a
      `sliding_window`.
    - `max_batch`: at most so many requests run at once; fewer if their keys and values need more than `kv_cache_bytes`.
    - `kv_cache_bytes`: the KV cache (None: `max_batch` contexts and one for idle texts, as far as memory is free).
    - `kv_cache_dtype`: 'int8' or 'bfloat16' for keys and values ('auto': the backend's own).
    - `sliding_window`: a token attends to so many tokens before it and to the first `attention_sinks` tokens. A text
      holds keys and values of no others.
    - `lookup`: 'auto' drafts tokens from the text so far if that is faster and cannot change the answer; 'off' never
      drafts.
    - `vllm_options`: engine arguments of vLLM, such as tensor_parallel_size.

    `offline` and `progress` are no fields: they only matter while a model's files are found, before the engine starts.
    LLM takes them beside these options.
    """

    backend: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    context: int | None = None
    threads: int | None = None
    max_batch: int = 8
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    sliding_window: int | None = None
    attention_sinks: int = BLOCK_TOKENS
    lookup: str = "auto"
    vllm_options: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("threads", "context", "kv_cache_bytes"):
            if getattr(self, name) is not None:
                self._check_at_least_one(name)
        self._check_at_least_one("max_batch")
        _ = self.window  # SlidingWindow checks its values
        if self.vllm_options:
            if self.backend != "vllm":
                raise ValueError(f"vllm_options are for the backend vllm, not for {self.backend}")
            # A copy, so that the caller can change its own mapping later without an effect here.
            object.__setattr__(self, "vllm_options", dict(self.vllm_options))

    @property
    def window(self) -> SlidingWindow | None:
        """The window that a token attends to; None: all tokens before it."""
        return None if self.sliding_window is None else SlidingWindow(self.sliding_window, self.attention_sinks)

    @property
    def needs_our_cache(self) -> bool:
        """Whether the KV cache needs a feature that only the native and the numpy backend have."""
        return self.kv_cache_dtype != "auto" or self.sliding_window is not None

    def _check_at_least_one(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value!r}")


OPTION_NAMES = tuple(option.name for option in fields(EngineOptions))


def engine_options(options: EngineOptions | None, given: Mapping[str, Any]) -> EngineOptions:
    """EngineOptions from LLM's arguments: either `options` or single fields.

    Raises TypeError if both are given, or for an unknown field.
    """
    if unknown := sorted(set(given) - set(OPTION_NAMES)):
        raise TypeError(
            f"LLM() got an unexpected keyword argument {', '.join(map(repr, unknown))}; there are: "
            f"{', '.join(OPTION_NAMES)}, options, offline and progress"
        )
    if options is None:
        return EngineOptions(**given)
    if given:
        raise TypeError(
            f"LLM() takes options or their single fields, not both; put {', '.join(given)} into EngineOptions"
        )
    return options
