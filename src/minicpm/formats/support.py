"""Decides from config.json alone whether this version can run a model, before its weights are downloaded."""

from __future__ import annotations

from typing import Any

from minicpm.errors import ModelError
from minicpm.formats import compressed_tensors
from minicpm.formats.checkpoint import FORMS, recognise
from minicpm.formats.config import MUP_KEYS, architecture_names
from minicpm.hub import Preview


def require_supported(preview: Preview) -> None:
    """Raise ModelError for a model on a hub whose config.json shows that this version cannot run it."""
    raw = preview.config
    reason = None if raw is None else why_unsupported(raw)
    if reason is not None:
        raise ModelError(f"{preview.reference}: {reason}; its weights were not downloaded")


def why_unsupported(raw: dict[str, Any]) -> str | None:
    """Why a model with this config.json does not run here; None if it does, or if the file does not decide it."""
    if not raw.get("model_type") and not raw.get("architectures"):
        return None
    try:
        FORMS[recognise(raw)].read_config(raw)
        compressed_tensors.read_quantization(raw)
    except ModelError as error:
        # A MiniCPM whose file lacks constants is judged with its weights, by open_checkpoint.
        is_bare = "MiniCPMForCausalLM" in architecture_names(raw) and not any(key in raw for key in MUP_KEYS)
        return None if is_bare else str(error)
    return None
