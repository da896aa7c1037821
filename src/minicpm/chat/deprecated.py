"""Names that earlier versions exported and nothing here uses; `minicpm.chat` warns when one is read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# System texts of the 2024 mobile apps; as a system message they give the apps' prompts to the letter.
SYSTEM_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "android": "<系统命令>你是MiniCPM，由面壁智能开发。",
        "ios": "<系统命令>你是MiniCPM，你是由面壁智能开发的语言模型。",
    }
)
