"""How transformers' Auto classes learn of MiniCPM.

Most of it is registration. Two doors need more, each wrapped once:

- `PreTrainedConfig.get_config_dict`, since the real config.json has no `model_type`: MiniCPM is recognised by what the
  file does hold, and `auto_map` never gets further. vLLM reads configs through the same door.
- `AutoTokenizer.from_pretrained`, since transformers 5 rebuilds a `LlamaTokenizer` from scratch instead of reading
  tokenizer.json, and MiniCPM's text then gets other ids; and since tokenizer_config.json may name foreign code too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers import PreTrainedTokenizerFast as MiniCPMTokenizerFast

from minicpm.errors import ModelError
from minicpm.formats.config import MUP_KEYS, architecture_names
from minicpm.models.configuration import ARCHITECTURES, MiniCPMConfig
from minicpm.models.modeling import MiniCPMForCausalLM, MiniCPMForSequenceClassification, MiniCPMModel

MODEL_TYPE = MiniCPMConfig.model_type
# Keywords of AutoTokenizer.from_pretrained that steer its choice of a class, which is made here.
CHOICE_KEYWORDS = ("config", "use_fast", "trust_remote_code", "code_revision")
HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def register() -> None:
    """Make transformers and vLLM know MiniCPM; may be called any number of times, in any process."""
    AutoConfig.register(MODEL_TYPE, MiniCPMConfig, exist_ok=True)
    AutoModel.register(MiniCPMConfig, MiniCPMModel, exist_ok=True)
    AutoModelForCausalLM.register(MiniCPMConfig, MiniCPMForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(MiniCPMConfig, MiniCPMForSequenceClassification, exist_ok=True)
    AutoTokenizer.register(MiniCPMConfig, MiniCPMTokenizerFast, exist_ok=True)
    wrap_classmethod(PreTrainedConfig, "get_config_dict", _get_config_dict)
    wrap_classmethod(AutoTokenizer, "from_pretrained", _tokenizer_from_pretrained)


def is_minicpm(raw: dict[str, Any]) -> bool:
    """True if the content of a config.json claims to be MiniCPM's decoder; whether it can be one is checked later."""
    if "model_type" in raw:
        return raw["model_type"] == MODEL_TYPE
    named = any(name in ARCHITECTURES for name in architecture_names(raw))
    return named and all(key in raw for key in MUP_KEYS)


def _get_config_dict(original: Any, cls: type, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    raw, unused = original(cls, *args, **kwargs)
    if is_minicpm(raw):
        raw = {key: value for key, value in raw.items() if key != "auto_map" and not key.startswith("_")}
        raw["model_type"] = MODEL_TYPE
    return raw, unused


def _tokenizer_from_pretrained(original: Any, cls: type, name: Any, *args: Any, **kwargs: Any) -> Any:
    if _is_ours(name, kwargs):
        kwargs = {key: value for key, value in kwargs.items() if key not in CHOICE_KEYWORDS}
        if Path(name).is_dir() and not (Path(name) / kwargs.get("subfolder", "") / "tokenizer.json").is_file():
            raise ModelError(f"{name} has no tokenizer.json; MiniCPM's tokenizer is read from that file")
        return MiniCPMTokenizerFast.from_pretrained(name, *args, **kwargs)
    return original(cls, name, *args, **kwargs)


def _is_ours(name: Any, kwargs: dict[str, Any]) -> bool:
    config = kwargs.get("config")
    if kwargs.get("tokenizer_type") is not None:
        return False  # the caller chose a class of transformers
    if config is not None:
        return isinstance(config, MiniCPMConfig)
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name, **{key: kwargs[key] for key in HUB_KEYWORDS if key in kwargs})
    except OSError:
        return False  # no config.json: the original finds its own way, or its own words
    return is_minicpm(raw)


def wrap_classmethod(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace owner.name by a class method that calls wrapper(original function, cls, ...); once per wrapper."""
    original = getattr(owner, name).__func__
    if wrapper in getattr(original, "minicpm_wrappers", ()):
        return

    @functools.wraps(original)
    def wrapped(cls: type, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, cls, *args, **kwargs)

    wrapped.minicpm_wrappers = (*getattr(original, "minicpm_wrappers", ()), wrapper)  # type: ignore[attr-defined]
    setattr(owner, name, classmethod(wrapped))
