"""Names that earlier versions exported and this package no longer uses; `minicpm.chat` warns when one is read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# System texts of the 2024 mobile apps. As a system message they give exactly the apps' prompts.
SYSTEM_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "android": "<系统命令>你是MiniCPM，由面壁智能开发。",
        "ios": "<系统命令>你是MiniCPM，你是由面壁智能开发的语言模型。",
    }
)
