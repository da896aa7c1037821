"""Tensor names under the wrappers of other tools, and the published names that they stand for.

torch.compile, DDP, FSDP, DeepSpeed, Lightning and PEFT save the names of their wrapper: `_orig_mod.model.norm.weight`,
`module.model.norm.weight`, `base_model.model.model.norm.weight`. A model that was saved without its head has no
`model.` in front. Only names are known here, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from minicpm.errors import ModelError, brief

# Wrappers of single modules, which stand anywhere in a name.
_INNER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_LANDMARK = "layers.0.input_layernorm.weight"  # every model has exactly one
PUBLISHED_LANDMARK = f"model.{_LANDMARK}"


def published_names(stored: Iterable[str]) -> dict[str, str]:
    """Published name -> stored name. A name outside the wrapper, and every name of an unknown layout, stays as it is.

    Raises ModelError if two names stand for the same tensor.
    """
    plain = {name: _INNER.sub("", name) for name in stored}
    base, outer = _prefixes(plain.values())
    published: dict[str, str] = {}
    for name, inner in plain.items():
        meant = inner
        if inner.startswith(f"{outer}lm_head."):
            meant = inner.removeprefix(outer)
        elif inner.startswith(base):
            meant = f"model.{inner.removeprefix(base)}"
        if meant in published:
            raise ModelError(f"{brief(name)} and {brief(published[meant])} are the same tensor")
        published[meant] = name
    return published


def wrapped_example(stored: Iterable[str]) -> str | None:
    """A stored name that shows the wrapper; None if the names are the published ones."""
    landmarks = [name for name in stored if _is_landmark(_INNER.sub("", name))]
    return landmarks[0] if len(landmarks) == 1 and landmarks[0] != PUBLISHED_LANDMARK else None


def _prefixes(names: Iterable[str]) -> tuple[str, str]:
    """The prefixes of `layers.` and of `lm_head.`; a published model has "model." and ""."""
    landmarks = [name for name in names if _is_landmark(name)]
    if len(landmarks) != 1:
        return "model.", ""
    base = landmarks[0].removesuffix(_LANDMARK)
    parts = base.removesuffix(".").split(".") if base else []
    outer = parts[:-1] if parts[-1:] == ["model"] else parts
    return base, "".join(f"{part}." for part in outer)


def _is_landmark(name: str) -> bool:
    return name == _LANDMARK or name.endswith(f".{_LANDMARK}")
