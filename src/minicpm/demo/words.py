"""Every word of the demo, in English and Chinese. The browser's language chooses."""

from __future__ import annotations

from typing import Literal

from minicpm.demo.conversation import Note

Language = Literal["en", "zh"]

# Fixed words: the browser itself picks the language of these.
WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "question": "Your question",
        "type": "Your question (Enter sends, Shift+Enter breaks the line)",
        "ask": "Ask a question, or take an example",
        "submit": "Submit",
        "stop": "Stop",
        "regenerate": "Regenerate",
        "undo": "Undo",
        "clear": "Clear",
        "system": "System prompt",
        "temperature": "Temperature",
        "temperature_info": "0 takes the likeliest token; higher is more varied",
        "top_p": "Top p",
        "top_p_info": "choose among the likeliest tokens that add up to this",
        "repetition_penalty": "Repetition penalty",
        "repetition_penalty_info": "above 1 discourages repeating",
        "max_dec_len": "Longest answer (tokens)",
        "settings": "Settings",
        "chat": "Conversation",
    },
    "zh": {
        "question": "输入您的问题",
        "type": "输入您的问题（Enter 发送，Shift+Enter 换行）",
        "ask": "问个问题，或选择一个示例",
        "submit": "提交",
        "stop": "停止",
        "regenerate": "重新生成",
        "undo": "撤回",
        "clear": "清空",
        "system": "系统提示词",
        "temperature": "温度",
        "temperature_info": "0 总取最可能的词，越高越多样",
        "top_p": "Top p",
        "top_p_info": "只在累计概率达到此值的最可能词中选择",
        "repetition_penalty": "重复惩罚",
        "repetition_penalty_info": "大于 1 时减少重复",
        "max_dec_len": "最长回答（token 数）",
        "settings": "设置",
        "chat": "对话",
    },
}

EXAMPLES = (
    "Which city is the capital of China?",
    "中国的首都是哪座城市？",
    "Tell me a story about a brave rabbit.",
    "写一首关于泰山的诗。",
)


def language_of(accept_language: str) -> Language:
    """The language of a browser that sends this Accept-Language header."""
    return "zh" if accept_language.strip().lower().startswith("zh") else "en"


def note_text(note: Note, language: Language) -> str:
    """What an answer cost and how it ended; "" before the first."""
    is_chinese = language == "zh"
    parts = []
    if note.progress is not None:
        count, rate = note.progress.tokens, note.progress.tokens_per_s
        unit = " 个 token" if is_chinese else " token" if count == 1 else " tokens"
        parts.append(f"{count}{unit}")
        if rate:
            parts.append(f"{rate:.1f} token/秒" if is_chinese else f"{rate:.1f} tokens/s")
        if note.progress.finish_reason == "length":
            parts.append("已达最长长度" if is_chinese else "cut at the longest allowed")
        if dropped := note.progress.dropped_rounds:
            rounds = "round" if dropped == 1 else "rounds"
            parts.append(
                f"最早的 {dropped} 轮对话放不下，未计入"
                if is_chinese
                else f"the oldest {dropped} {rounds} had no room and were left out"
            )
    if note.is_stopped:
        parts.append("已停止" if is_chinese else "stopped")
    if note.error:
        parts.append(f"⚠ {note.error}")
    return " · ".join(parts)
