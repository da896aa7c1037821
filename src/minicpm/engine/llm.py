"""LLM: the one door to a model, from Python, the command line, the server and the evaluations.

Text in, text out; below it everything is token ids. Loading chooses a backend by name and checks the prompt
against the context before anything is computed.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minicpm import hub
from minicpm.chat import Message, template_for
from minicpm.engine.backend import Backend, Row
from minicpm.engine.kv_cache import PrefixCache
from minicpm.engine.request import Completion, Piece, Request
from minicpm.engine.scheduler import PREFILL_CHUNK_TOKENS, Scheduler
from minicpm.errors import GenerationError, MissingExtra, ModelError
from minicpm.progress import Progress, Silent
from minicpm.sampling import SamplingParams
from minicpm.tokenizer import Tokenizer

BACKENDS = ("auto", "torch")


@dataclass(frozen=True)
class Loglikelihood:
    """Log-probability (natural) of a continuation, summed over its tokens; `is_greedy` if each was the likeliest."""

    logprob: float
    token_count: int
    is_greedy: bool


class LLM:
    """A MiniCPM model ready to answer.

    `model` is a folder, a file or a name (`minicpm list`, `minicpm pull`); `dtype` is 'auto' (the checkpoint's
    own), 'float32', 'bfloat16' or 'float16'; `context` lowers the longest sequence below the model's own limit;
    `max_batch` requests run at once. Raises MiniCPMError subclasses when the model cannot be used.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        backend: str = "auto",
        dtype: str = "auto",
        device: str = "auto",
        context: int | None = None,
        threads: int | None = None,
        max_batch: int = 8,
        offline: bool | None = None,
        progress: Progress | None = None,
    ):
        _check_choice("backend", backend, BACKENDS)
        _check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
        _check_at_least_one("threads", threads)
        _check_at_least_one("context", context)
        _check_at_least_one("max_batch", max_batch)
        self.folder = hub.resolve(model, offline=offline, progress=progress or Silent())
        if not self.folder.is_dir():
            raise ModelError(
                f"{self.folder} is a file; give the model's folder, with config.json, tokenizer and weights"
            )
        self.tokenizer = Tokenizer.from_folder(self.folder)
        self.template = template_for(self.folder)
        self.backend: Backend = _load_torch(self.folder, dtype=dtype, device=device, threads=threads)
        self.context_length = min(context or self.backend.context_length, self.backend.context_length)
        self._max_batch = max_batch
        self._eos_token_ids = frozenset(self.backend.eos_token_ids) | frozenset(self.tokenizer.eos_token_ids)
        self._prefixes = PrefixCache(self.backend, capacity=1)

    def chat(
        self, messages: str | Sequence[Message], sampling: SamplingParams | None = None, **overrides: Any
    ) -> Completion:
        """Answer a question or a conversation; `overrides` are SamplingParams fields, e.g. temperature=0."""
        return _last_completion(self.stream(messages, sampling, **overrides))

    def stream(
        self, messages: str | Sequence[Message], sampling: SamplingParams | None = None, **overrides: Any
    ) -> Generator[Piece, None, None]:
        """Like `chat`, piece by piece; the last piece carries the completion. Closing it stops the work."""
        return self.stream_chats([messages], sampling, **overrides)

    def stream_chats(
        self,
        conversations: Sequence[str | Sequence[Message]],
        sampling: SamplingParams | None = None,
        **overrides: Any,
    ) -> Generator[Piece, None, None]:
        """Answer several conversations at once; pieces are told apart by `index` and come as they are ready."""
        params = _with_overrides(sampling, overrides)
        params = replace(params, stop=tuple(dict.fromkeys((*params.stop, *self.template.stop_strings))))
        prompts = [self.template.render(_as_messages(conversation)) for conversation in conversations]
        return self._run(prompts, params)

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        sampling: SamplingParams | None = None,
        **overrides: Any,
    ) -> list[Completion]:
        """Complete prompts (texts or token ids) as they are, without a chat template; answers in their order."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not prompts:
            raise ValueError("there are no prompts; give at least one")
        completions: list[Completion | None] = [None] * len(prompts)
        for piece in self.stream_batch(prompts, sampling, **overrides):
            if piece.completion is not None:
                completions[piece.index] = piece.completion
        return [completion for completion in completions if completion is not None]

    def stream_batch(
        self, prompts: Sequence[str | Sequence[int]], sampling: SamplingParams | None = None, **overrides: Any
    ) -> Generator[Piece, None, None]:
        """Like `generate`, yielding every prompt's pieces (told apart by `index`) as they come."""
        return self._run(prompts, _with_overrides(sampling, overrides))

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Next-token logits after each of `token_ids`: (T, vocab) float32."""
        ids = self._checked_ids(token_ids)
        self._require_room(len(ids))
        sequence = self.backend.new_sequence(len(ids))
        chunks = (ids[i : i + PREFILL_CHUNK_TOKENS] for i in range(0, len(ids), PREFILL_CHUNK_TOKENS))
        return np.concatenate([self.backend.forward([Row(sequence, chunk, "all")])[0] for chunk in chunks])

    def loglikelihood(
        self, pairs: Iterable[tuple[str | Sequence[int], Sequence[str | Sequence[int]]]]
    ) -> list[list[Loglikelihood]]:
        """Score continuations: per (prefix, continuations) a list; the shared prefix is computed once.

        Texts are encoded apart, the prefix with the beginning-of-sequence token, the continuation without: pass
        token ids to decide the border yourself.
        """
        return [self._score(self._as_ids(prefix, add_bos=True), continuations) for prefix, continuations in pairs]

    def _score(self, prefix: list[int], continuations: Sequence[str | Sequence[int]]) -> list[Loglikelihood]:
        tails = [self._as_ids(text, add_bos=False) for text in continuations]
        longest = max((len(tail) for tail in tails), default=0)
        self._require_room(len(prefix) + longest)
        sequence = self.backend.new_sequence(len(prefix) + longest)
        logits = _forward_in_chunks(self.backend, sequence, prefix)
        scores = []
        for tail in tails:
            rows = [logits]
            if len(tail) > 1:
                rows.append(self.backend.forward([Row(sequence, tail[:-1], "all")])[0])
                sequence.truncate(len(prefix))
            scores.append(_loglikelihood(np.concatenate(rows), tail))
        return scores

    def _run(self, prompts: Sequence[str | Sequence[int]], params: SamplingParams) -> Generator[Piece, None, None]:
        scheduler = Scheduler(self.backend, self._prefixes, self._max_batch)
        for index, prompt in enumerate(prompts):
            name = "the prompt" if len(prompts) == 1 else f"prompt {index + 1}"
            scheduler.add(self._request(index, name, self._as_ids(prompt, add_bos=True), params))
        return scheduler.run()

    def _request(self, index: int, name: str, prompt_ids: list[int], params: SamplingParams) -> Request:
        room = self.context_length - len(prompt_ids)
        if room < 1:
            raise GenerationError(
                f"{name} has {len(prompt_ids)} tokens, but the context holds {self.context_length} "
                "with at least one for the answer; shorten the prompt"
            )
        max_new_tokens = min(room, params.max_tokens or room)
        trained = self.backend.trained_length
        planned = len(prompt_ids) + max_new_tokens
        if params.max_tokens is None and len(prompt_ids) < trained:
            # An answer without a limit stays inside the trained positions: only a prompt that needs more is
            # worth the rescaled rotary base of dynamic NTK.
            planned = min(planned, trained)
            max_new_tokens = planned - len(prompt_ids)
        return Request(
            index,
            prompt_ids,
            params,
            self.tokenizer,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            max_new_tokens=max_new_tokens,
            rope_length=planned,
            eos_token_ids=self._eos_token_ids,
        )

    def _as_ids(self, text: str | Sequence[int], *, add_bos: bool) -> list[int]:
        if isinstance(text, str):
            if not text and add_bos:
                raise GenerationError("the prompt is empty; give at least one character")
            text = self.tokenizer.encode(text, add_bos=add_bos)
        return self._checked_ids(text)

    def _checked_ids(self, token_ids: Sequence[int]) -> list[int]:
        ids = [int(token_id) for token_id in token_ids]
        if not ids:
            raise GenerationError("there are no token ids; give at least one")
        bad = next((i for i in ids if not 0 <= i < self.backend.vocab_size), None)
        if bad is not None:
            raise GenerationError(f"token id {bad} is outside the vocabulary of {self.backend.vocab_size}")
        return ids

    def _require_room(self, token_count: int) -> None:
        if token_count > self.context_length:
            raise GenerationError(f"{token_count} tokens are more than the context's {self.context_length}")


def _load_torch(folder: Path, *, dtype: str, device: str, threads: int | None) -> Backend:
    try:
        from minicpm.engine.torch import TorchBackend
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise MissingExtra("the torch backend", "torch") from error
    return TorchBackend(folder, dtype=dtype, device=device, threads=threads)


def _forward_in_chunks(backend: Backend, sequence: Any, ids: list[int]) -> npt.NDArray[np.float32]:
    """Compute all of `ids`; logits (1, vocab) after the last."""
    logits = np.empty((0, 0), np.float32)
    for i in range(0, len(ids), PREFILL_CHUNK_TOKENS):
        chunk = ids[i : i + PREFILL_CHUNK_TOKENS]
        is_last = i + len(chunk) == len(ids)
        logits = backend.forward([Row(sequence, chunk, "last" if is_last else "none")])[0]
    return logits


def _loglikelihood(logits: npt.NDArray[np.float32], token_ids: list[int]) -> Loglikelihood:
    """Score `token_ids` (T,) against the logits (T, vocab) that predict them."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    log_sums = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    chosen = wide[np.arange(len(token_ids)), token_ids]
    is_greedy = bool((logits.argmax(axis=1) == token_ids).all())
    return Loglikelihood(float((chosen - log_sums).sum()), len(token_ids), is_greedy)


def _as_messages(messages: str | Sequence[Message]) -> Sequence[Message]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def _with_overrides(sampling: SamplingParams | None, overrides: dict[str, Any]) -> SamplingParams:
    params = sampling or SamplingParams()
    if not overrides:
        return params
    unknown = sorted(set(overrides) - set(SamplingParams.__dataclass_fields__))
    if unknown:
        known = ", ".join(SamplingParams.__dataclass_fields__)
        raise ValueError(f"unknown sampling option {', '.join(unknown)}; there are: {known}")
    return replace(params, **overrides)


def _last_completion(pieces: Iterable[Piece]) -> Completion:
    completion = None
    for piece in pieces:
        completion = piece.completion or completion
    assert completion is not None
    return completion


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_at_least_one(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or value < 1):
        raise ValueError(f"{name} must be 1 or more, got {value!r}")
