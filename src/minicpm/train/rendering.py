"""A record as token ids, and which of them are trained.

Spans are known while the text is made, piece by piece; nothing is found again by searching for ids. What is asked is
written by the chat template and encoded as at inference, so that a trained prompt has the ids of a served one.
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm.chat import ChatTemplate
from minicpm.errors import ModelError
from minicpm.tokenizer import Tokenizer
from minicpm.train.options import TRAIN_ON, TrainOn
from minicpm.train.records import Conversation, Record, Text, TokenIds

# A character of no vocabulary: it becomes a byte token and never merges with what follows.
ANCHOR = "\x01"


@dataclass(frozen=True)
class Document:
    """Token ids and, for each, whether the model learns to predict it. The first is never predicted."""

    ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    is_text: bool  # may be cut anywhere; a conversation keeps its beginning

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.is_trained)


class Renderer:
    """Makes documents of records for one tokenizer and chat template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, vocab_size: int, train_on: TrainOn = "assistant"):
        """`vocab_size` is the model's. Raises ModelError for a tokenizer that does not fit it or cannot end a text."""
        if train_on not in TRAIN_ON:
            raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}, got {train_on!r}")
        if tokenizer.vocab_size > vocab_size:
            raise ModelError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model's vocabulary {vocab_size:,}; "
                "use the tokenizer of this model"
            )
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token; a model trained with it would never stop")
        self.tokenizer, self.template, self.vocab_size, self.train_on = tokenizer, template, vocab_size, train_on
        self.eos_token_id: int = tokenizer.eos_token_id
        self._anchor_ids = tokenizer.encode(ANCHOR, add_bos=False)

    def render(self, record: Record) -> Document:
        """The document of a record; ValueError for token ids out of range and templates that rewrite earlier turns."""
        if isinstance(record, Conversation):
            return self._conversation(record)
        if isinstance(record, Text):
            ids = [*self.tokenizer.encode(record.text), self.eos_token_id]
            return Document(tuple(ids), (False, *[True] * (len(ids) - 1)), is_text=True)
        return self._checked(record)

    def _conversation(self, record: Conversation) -> Document:
        messages = record.messages
        ids: list[int] = []
        is_trained: list[bool] = []
        written = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.template.render(messages[:i], True)
            whole = self.template.render(messages[: i + 1], False)
            if not prompt.startswith(written) or not whole.startswith(prompt):
                raise ValueError("the chat template rewrites earlier turns, so no part of its text belongs to one turn")
            asked, answered = prompt[len(written) :], whole[len(prompt) :]
            if not answered:
                raise ValueError(f"the chat template leaves nothing of messages[{i}]")
            answer, ends_itself = self._ended(answered, message["content"])
            written = prompt + answer
            self._extend(ids, is_trained, self._encoded(asked, is_first=not ids), self.train_on == "all")
            end = [] if ends_itself else [self.eos_token_id]
            self._extend(ids, is_trained, [*self._encoded(answer, is_first=False), *end], record.is_trained(i))
        is_trained[0] = False
        return Document(tuple(ids), tuple(is_trained), is_text=False)

    def _ended(self, answered: str, content: str) -> tuple[str, bool]:
        """An answer up to the end marker that the template wrote behind `content`, and whether it did (ChatML)."""
        behind = answered.rfind(content.strip()) + len(content.strip())
        ends = [at + len(stop) for stop in self.template.stop_strings if (at := answered.find(stop, behind)) >= 0]
        return (answered[: min(ends)], True) if ends else (answered, False)

    def _encoded(self, text: str, is_first: bool) -> list[int]:
        """Ids of a piece of text: the first as a prompt is encoded, later ones without the blank before a text."""
        if is_first:
            return self.tokenizer.encode(text)
        if not text:
            return []
        ids = self.tokenizer.encode(ANCHOR + text, add_bos=False)
        cut = len(self._anchor_ids)
        assert ids[:cut] == self._anchor_ids, "the anchor merged with the text behind it"
        return ids[cut:]

    @staticmethod
    def _extend(ids: list[int], is_trained: list[bool], piece: list[int], trained: bool) -> None:
        ids += piece
        is_trained += [trained] * len(piece)

    def _checked(self, record: TokenIds) -> Document:
        for i, token_id in enumerate(record.ids):
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"input_ids[{i}] is {token_id}, out of range 0 to {self.vocab_size - 1}")
        if not any(record.is_trained[1:]):
            raise ValueError("no label is trained")
        return Document(record.ids, (False, *record.is_trained[1:]), is_text=all(record.is_trained[1:]))
