"""MiniCPM as transformers-native classes; importing this room makes the Auto classes know them.

    import minicpm.models
    model = AutoModelForCausalLM.from_pretrained(folder)        # no remote code, whatever the caller trusts
    response, history = model.chat(tokenizer, "Which city is the capital of China?")

`load_model(folder)` is the safer and faster road that our own engine takes. vLLM finds `register` by entry point.
"""

from __future__ import annotations

from minicpm.models.autoclasses import MiniCPMTokenizerFast, register
from minicpm.models.configuration import MiniCPMConfig
from minicpm.models.loading import load_model
from minicpm.models.modeling import MiniCPMForCausalLM, MiniCPMForSequenceClassification, MiniCPMModel

__all__ = [
    "MiniCPMConfig",
    "MiniCPMForCausalLM",
    "MiniCPMForSequenceClassification",
    "MiniCPMModel",
    "MiniCPMTokenizerFast",
    "load_model",
    "register",
]

register()
