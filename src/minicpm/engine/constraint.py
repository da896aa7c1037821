"""Answers of a given form: JSON by a schema, a regular expression, a grammar, one of several texts.

`Constraint` says what is wanted. `Constraints` compiles it for one tokenizer with llguidance, and a `Matcher` follows
one answer: which tokens may come next. Tokens are the bytes that they add to the text, so that a character which the
vocabulary has only as bytes is matched like any other.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from minicpm.engine.json_schema import JSON_STYLE, checked
from minicpm.errors import GenerationError, MissingExtra, brief, one_line
from minicpm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Far beyond what people write, and compiled in a fraction of a second.
MAX_CONSTRAINT_CHARACTERS = 1 << 16
MAX_CHOICES = 1024
# A character that has no piece, only its byte, so nothing merges with it.
_BORDER = "\x02"
# Compiled forms that are kept: the choices of one request and the requests of one program use the same.
_KEPT_FORMS = 32


@dataclass(frozen=True)
class Constraint:
    """The form that an answer must have; make one with the class methods. ValueError for what cannot be meant.

    A stop string that cut a structure, such as JSON, would leave what no program can read. So stop strings have no
    effect on an answer that begins with the text `structure` ('': on none, None: on all).
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str
    structure: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ValueError(f"a constraint must be a text that is not empty, got {brief(self.source)}")
        if len(self.source) > MAX_CONSTRAINT_CHARACTERS:
            length, most = len(self.source), MAX_CONSTRAINT_CHARACTERS
            raise ValueError(f"the constraint has {length:,} characters, at most {most:,} are compiled")

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | bool | str) -> Constraint:
        """JSON that is valid by a schema (an object, or its JSON text)."""
        if not isinstance(schema, str):
            try:
                schema = json.dumps(schema, ensure_ascii=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"the JSON schema is no JSON value: {one_line(str(error))}") from None
        return cls("json_schema", schema, structure="")

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """A text that a regular expression matches whole; Rust's kind, without look-around and back references."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, grammar: str, *, structure: str | None = None) -> Constraint:
        """A text of a context-free grammar in Lark's notation; it begins with the rule `start`."""
        return cls("lark", grammar, structure)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of several texts."""
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not is_list or not 0 < len(texts) <= MAX_CHOICES or not all(isinstance(t, str) and t for t in texts):
            raise ValueError(f"choices must be 1 to {MAX_CHOICES} texts that are not empty, got {brief(texts)}")
        return cls("lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


class Constraints:
    """Compiles constraints for a tokenizer and the end tokens of a model. May be used from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._forms: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def matcher(self, constraint: Constraint) -> Matcher:
        """A follower of one answer; GenerationError for a constraint that cannot be compiled."""
        with self._lock:
            form = self._forms.pop(constraint, None) or self._compiled(constraint)
            self._forms[constraint] = form
            if len(self._forms) > _KEPT_FORMS:
                self._forms.popitem(last=False)
            return Matcher(form.deep_copy(), self._vocab_size, self._eos_token_ids)

    def _compiled(self, constraint: Constraint) -> LLMatcher:
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise MissingExtra("answers of a given form", "serve") from error
        if not self._eos_token_ids:
            raise GenerationError("this model names no end token, so an answer of a given form could not end")
        if self._vocabulary is None:
            wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, min(self._eos_token_ids)))
            self._vocabulary = llguidance.LLTokenizer(
                wrapper, n_vocab=self._vocab_size, eos_token=sorted(self._eos_token_ids)
            )
        try:
            grammar = _grammar(llguidance.LLMatcher, constraint)
            matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
            problem = matcher.get_error()
        except (ValueError, RuntimeError) as error:
            problem = str(error)
        if problem:
            kind = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}[constraint.kind]
            raise GenerationError(f"the {kind} cannot be followed: {one_line(problem)}")
        return matcher


def _grammar(compiler: type[LLMatcher], constraint: Constraint) -> str:
    if constraint.kind == "json_schema":
        schema = json.dumps(checked(_json_of(constraint.source)))
        return compiler.grammar_from_json_schema(schema, overrides=JSON_STYLE)  # type: ignore[arg-type]
    return (
        compiler.grammar_from_regex(constraint.source)
        if constraint.kind == "regex"
        else (compiler.grammar_from_lark(constraint.source))
    )


def _json_of(source: str) -> dict[str, object] | bool:
    schema = json.loads(source)
    if not isinstance(schema, dict | bool):
        raise ValueError(f"it must be an object or a truth value, got {brief(schema)}")
    return schema


class Matcher:
    """Follows one answer, token by token."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_token_ids: frozenset[int]):
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    @property
    def is_complete(self) -> bool:
        """Whether the answer has its form and nothing can follow."""
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next: (vocab,). An end token may exactly where the answer has its form."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token_id: int) -> None:
        """Go on behind a token that `allowed` names and that is no end token."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        problem = self._matcher.get_error()
        if not problem and self._matcher.is_stopped() and not self._matcher.is_accepting():
            problem = f"nothing can follow ({self._matcher.stop_reason()})"
        if problem:
            raise GenerationError(
                f"the answer cannot be brought into its form: {one_line(problem)}; simplify the schema or grammar"
            )


class _Vocabulary:
    """A tokenizer as llguidance asks for one: the bytes of all tokens, and how the model's own tokenizer cuts a text.

    The latter is asked for the middle of an answer, so neither may a blank stand in front of it, nor is a special token
    that is written in it one.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int):
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_token_ids | {eos_token_id})
        self._special_tokens = [
            token for i in self.special_token_ids if len(token := tokenizer.id_to_token(i) or "") > 1
        ]
        self._ids_of_bytes = {bytes([b]): tokenizer.byte_token_id(b) for b in range(256)}
        self._border_id = self._ids_of_bytes[_BORDER.encode()]

    def __call__(self, data: str | bytes) -> list[int]:
        data = data.encode() if isinstance(data, str) else data
        ids = self._cut(data.decode("utf-8", "replace"))
        if b"".join(self.tokens[token_id] for token_id in ids) == data:
            return ids
        spelt = [self._ids_of_bytes[data[i : i + 1]] for i in range(len(data))]
        return [token_id for token_id in spelt if token_id is not None]

    def _cut(self, text: str) -> list[int]:
        """The text's ids as they are behind a character that no piece has in it."""
        for token in self._special_tokens:
            text = text.replace(token, token[0] + _BORDER + token[1:])
        ids = self._tokenizer.encode(_BORDER + text, add_bos=False)
        start = ids.index(self._border_id) if self._border_id in ids else -1
        return [token_id for token_id in ids[start + 1 :] if token_id != self._border_id]
