"""The known faults of the tokenizer and the chat template in a MiniCPM folder.

`look_at_tokenizer` finds them and changes `FolderContent` to the content of a repaired copy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from minicpm.chat import CURRENT_TEMPLATE, template_from
from minicpm.chat.templates import TEMPLATE_FILE
from minicpm.doctor.faults import TEMPLATE_CURE, TEMPLATE_SYMPTOM, Fault, foreign_markers
from minicpm.errors import FormatError, MiniCPMError
from minicpm.files import json_text
from minicpm.formats.folder import ModelFolder
from minicpm.sandbox.process import has_limits
from minicpm.tokenizer import (
    Tokenizer,
    build_from_sentencepiece,
    first_difference,
    prepends_blank,
    read_sentencepiece,
    special_token,
)
from minicpm.tokenizer.loading import CONFIG_FILE as TOKENIZER_CONFIG
from minicpm.tokenizer.loading import JSON_FILE as TOKENIZER_JSON

BOS, EOS = "<s>", "</s>"


@dataclass
class FolderContent:
    """The small files of the repaired copy."""

    folder: ModelFolder
    config: dict[str, Any]  # config.json
    tokenizer_config: dict[str, Any]  # {}: there is none
    generation_config: dict[str, Any]  # {}: there is none
    texts: dict[str, str] = field(default_factory=dict)  # other files that are new or replaced
    left_out: set[str] = field(default_factory=set)  # files that a copy does not have

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The folder's own, unrepaired; None if it cannot be read."""
        try:
            return Tokenizer.from_folder(self.folder.path)
        except MiniCPMError:
            return None

    @property
    def has_tokenizer(self) -> bool:
        return bool(self.tokenizer_config) or self.folder.has("tokenizer.model") or self.folder.has(TOKENIZER_JSON)

    def has_token(self, text: str) -> bool:
        return self.tokenizer is not None and self.tokenizer.token_to_id(text) is not None


def look_at_tokenizer(content: FolderContent) -> list[Fault]:
    """The faults of the tokenizer. Changes `content` to that of a copy without them."""
    if not content.has_tokenizer:
        return [
            Fault(
                "missing-tokenizer",
                f"no tokenizer.model, {TOKENIZER_JSON} or {TOKENIZER_CONFIG}",
                "no program can chat with it",
                "the tokenizer files of the model that it was made from, beside the weights",
                is_repairable=False,
            )
        ]
    looks = (_pipeline, _readability, _rebuilding, _first_token, _last_token, _template)
    return [fault for look in looks if (fault := look(content)) is not None]


def _pipeline(content: FolderContent) -> Fault | None:
    """Check that tokenizer.json exists and splits texts as tokenizer.model does."""
    if not content.folder.has("tokenizer.model"):
        return None
    model = read_sentencepiece(content.folder.file("tokenizer.model"))
    path = content.folder.path
    library = build_from_sentencepiece(model, prepends_blank(content.tokenizer_config, path))
    if not content.folder.has(TOKENIZER_JSON):
        content.texts[TOKENIZER_JSON] = _written(library)
        return Fault(
            "missing-tokenizer-json",
            f"tokenizer.model, but no {TOKENIZER_JSON}",
            "transformers asks for sentencepiece, protobuf or tiktoken, or for the file; if it builds one itself, "
            "texts that begin with blanks get other tokens than in training",
            f"{TOKENIZER_JSON} made of tokenizer.model, the pipeline that MiniCPM was trained with",
        )
    different = _difference(
        content, Tokenizer(library, content.tokenizer_config, path / "tokenizer.model")
    )  # changes `library`
    if different is None:
        return None
    content.texts[TOKENIZER_JSON] = _written(
        build_from_sentencepiece(model, prepends_blank(content.tokenizer_config, path))
    )
    return Fault(
        "wrong-tokenizer-json",
        f"{TOKENIZER_JSON} {different} differently from tokenizer.model",
        "answers are worse than they should be: programs that read it give texts other tokens than the model learned "
        "(transformers 5 rebuilds the tokenizer and saves such a file)",
        f"{TOKENIZER_JSON} made of tokenizer.model, the pipeline that MiniCPM was trained with",
    )


def _difference(content: FolderContent, meant: Tokenizer) -> str | None:
    try:
        text = first_difference(Tokenizer.from_folder(content.folder.path), meant)
    except FormatError as error:
        return f"is none of MiniCPM's ({error})"
    return None if text is None else f"splits {text!r}"


def _written(library: Any) -> str:
    text: str = library.to_str(pretty=True)
    return json_text(json.loads(text))


def _readability(content: FolderContent) -> Fault | None:
    """Check that there is a tokenizer that can be read, now or in the repaired copy."""
    if TOKENIZER_JSON in content.texts:
        return None
    try:
        Tokenizer.from_folder(content.folder.path)
    except MiniCPMError as error:
        return Fault(
            "unreadable-tokenizer",
            str(error),
            "no program can chat with it",
            "the tokenizer files of the model that it was made from, beside the weights",
            is_repairable=False,
        )
    return None


def _rebuilding(content: FolderContent) -> Fault | None:
    """Find a Llama tokenizer class: transformers 5 rebuilds such a tokenizer instead of reading tokenizer.json."""
    rebuilt = ("LlamaTokenizer", "LlamaTokenizerFast")
    if content.config.get("model_type") != "llama" or content.tokenizer_config.get("tokenizer_class") not in rebuilt:
        return None
    content.tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return Fault(
        "rebuilt-tokenizer",
        f"{TOKENIZER_CONFIG} names a Llama tokenizer",
        f"transformers 5 builds another pipeline than {TOKENIZER_JSON}'s: texts that begin with blanks get other "
        "tokens than in training",
        f"PreTrainedTokenizerFast, which reads {TOKENIZER_JSON} as it is",
    )


def _first_token(content: FolderContent) -> Fault | None:
    config = content.tokenizer_config
    is_left_out = config.get("add_bos_token") is False or special_token(config, "bos_token") is None
    if not is_left_out or not content.has_token(BOS) or "bos_token" in str(config.get("chat_template")):
        return None
    config.update(add_bos_token=True, bos_token=BOS)
    return Fault(
        "no-bos",
        f"{TOKENIZER_CONFIG} puts no {BOS} in front of texts",
        "answers are worse than they should be in programs that obey it, and in GGUF files made of it: the model never "
        f"saw a text without {BOS} in front",
        f"add_bos_token true, bos_token {BOS}",
    )


def _last_token(content: FolderContent) -> Fault | None:
    """Check that every id that ends an answer is a special token of the tokenizer, but not `<s>`."""
    said = [config.get("eos_token_id") for config in (content.config, content.generation_config)]
    ids = [one for value in said for one in (value if isinstance(value, list) else [value]) if one is not None]
    tokenizer = content.tokenizer
    if tokenizer is None or not ids or (meant := tokenizer.token_to_id(EOS)) is None:
        return None
    wrong = [one for one in ids if one not in tokenizer.special_token_ids or one == tokenizer.bos_token_id]
    is_named = special_token(content.tokenizer_config, "eos_token") is not None
    if not wrong and is_named:
        return None
    for config in (content.config, content.generation_config):
        if config:
            config["eos_token_id"] = meant
    content.tokenizer_config["eos_token"] = content.tokenizer_config.get("eos_token") or EOS
    found = f"eos_token_id {wrong[0]} is no special token" if wrong else f"{TOKENIZER_CONFIG} has no eos_token"
    return Fault(
        "wrong-eos",
        found,
        f"it never stops: after the answer come {EOS}, more questions and answers, until the limit",
        f"{meant} ({EOS}) in all three files",
    )


def _template(content: FolderContent) -> Fault | None:
    text = content.tokenizer_config.get("chat_template")
    if content.folder.has(TEMPLATE_FILE):
        text = content.folder.file(TEMPLATE_FILE).read_text(encoding="utf-8", errors="replace")[: 1 << 16]
    if isinstance(text, list):
        return None  # several named templates; they are not judged
    is_known = isinstance(text, str) and content.tokenizer is not None
    markers = foreign_markers(str(text), content.has_token) if is_known else []
    broken = _failure(content, text) if isinstance(text, str) and text and not markers else None
    if text and not markers and broken is None:
        return None
    content.tokenizer_config["chat_template"] = CURRENT_TEMPLATE.text
    content.left_out.add(TEMPLATE_FILE)
    if not text:
        found = f"neither {TOKENIZER_CONFIG} nor {TEMPLATE_FILE} has a chat template"
        symptom = "transformers' apply_chat_template fails; " + TEMPLATE_SYMPTOM.format(
            found="<|im_start|> or the like"
        )
        return Fault("missing-template", found, symptom, TEMPLATE_CURE)
    if broken is not None:
        symptom = "programs cannot make a prompt of a question: apply_chat_template fails"
        return Fault("broken-template", broken, symptom, TEMPLATE_CURE)
    return Fault(
        "wrong-template",
        f"the chat template writes {', '.join(markers[:3])}, which the vocabulary does not have",
        TEMPLATE_SYMPTOM.format(found=markers[0]),
        TEMPLATE_CURE,
    )


def _failure(content: FolderContent, text: str) -> str | None:
    """Why the chat template cannot render a question; None if it can, or if this system cannot try."""
    if not has_limits():
        return None
    try:
        template = template_from(text, content.folder.path / TOKENIZER_CONFIG, content.tokenizer_config)
        template.render([{"role": "user", "content": "Hi"}])
    except MiniCPMError as error:
        return str(error)
    return None
