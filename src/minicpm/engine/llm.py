"""LLM: the interface to a model for Python, the command line, the server and the evaluations.

It takes and returns text; everything below it is token ids. loading.py chooses the runtime (runtime.py), scoring.py
computes logits, scores and embeddings. A prompt is checked against the context and the cache before the computation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minicpm import hub
from minicpm.chat import Message
from minicpm.engine.advice import advised_sampling
from minicpm.engine.cache.blocks import SHORTEST_ANSWER_TOKENS, beyond_budget, common_prefix_length
from minicpm.engine.constraint import Constraint, Constraints
from minicpm.engine.loading import load
from minicpm.engine.options import EngineOptions, engine_options
from minicpm.engine.prompt import EmbeddingSpan, Ids, Prompt, checked_ids
from minicpm.engine.request import Completion, Piece, Request
from minicpm.engine.runtime import RequestScheduler, StepRuntime
from minicpm.engine.scheduler import Scheduler
from minicpm.engine.scoring import Continuation, Loglikelihood
from minicpm.errors import GenerationError, counted
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.support import require_supported
from minicpm.progress import Progress, Silent
from minicpm.sampling import SampledToken, SamplingParams

# The rotary base of dynamic NTK is chosen so that an answer without a limit can have at least so many tokens.
WORTHWHILE_ANSWER_TOKENS = 1024


class LLM:
    """A MiniCPM model ready to answer.

    `model` is a folder, a GGUF file or a name (`minicpm list`, `minicpm pull`); None is the built-in MiniCPM-nano. With
    `offline` nothing is downloaded; otherwise a download reports to `progress`. Give the engine's options as `options`
    or as single fields: `LLM(model, max_batch=4)` is `LLM(model, options=EngineOptions(max_batch=4))`.
    `LLM.sampling` has the model's own defaults, for requests without SamplingParams.

    Raises MiniCPMError subclasses if the model cannot be used, ValueError for an invalid option, TypeError for an
    unknown one.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        options: EngineOptions | None = None,
        offline: bool | None = None,
        progress: Progress | None = None,
        **fields: Any,
    ):
        self.options = engine_options(options, fields)
        self.folder = hub.resolve(model, offline=offline, progress=progress or Silent(), accept=require_supported)
        checkpoint = open_checkpoint(self.folder, allow_quantized=True)
        self.tokenizer = checkpoint.tokenizer()
        self.template = checkpoint.chat_template()
        self.sampling = advised_sampling(checkpoint)
        self._runtime = load(checkpoint, self.options)
        self.backend = self._runtime.backend
        self.context_length = self._runtime.context_length
        self._eos_token_ids = frozenset(checkpoint.eos_token_ids) | frozenset(self.tokenizer.eos_token_ids)
        self._constraints = Constraints(self.tokenizer, self.backend.vocab_size, self._eos_token_ids)

    def chat(
        self,
        messages: str | Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        **overrides: Any,
    ) -> Completion:
        """Answer a question or a conversation; `overrides` are SamplingParams fields, e.g. temperature=0.

        They override `sampling`, or the model's own defaults without it. With a `constraint`, the answer satisfies it,
        unless a limit cuts the answer off.
        """
        return _last_completion(self.stream(messages, sampling, constraint=constraint, **overrides))

    def stream(
        self,
        messages: str | Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        **overrides: Any,
    ) -> Generator[Piece, None, None]:
        """Like `chat`, piece by piece; the last piece carries the completion. Closing it stops the work."""
        return self.stream_chats([messages], sampling, constraint=constraint, **overrides)

    def stream_chats(
        self,
        conversations: Sequence[str | Sequence[Message]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        constraint: Constraint | None = None,
        **overrides: Any,
    ) -> Generator[Piece, None, None]:
        """Answer several conversations at once. Pieces come as they are ready; `index` is their conversation.

        `sampling` applies to all conversations, or is a sequence with one for each.
        """
        params = self._sampling_of_each(conversations, sampling, overrides)
        prompts = [self.template.render(_as_messages(conversation)) for conversation in conversations]
        return self._run(prompts, params, is_chat=True, constraint=constraint)

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        constraint: Constraint | None = None,
        **overrides: Any,
    ) -> list[Completion]:
        """Complete prompts without a chat template; the answers are in the order of the prompts.

        A prompt is a text, or a sequence of token ids and EmbeddingSpans (engine/prompt.py).
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not prompts:
            raise ValueError("there are no prompts; give at least one")
        completions: list[Completion | None] = [None] * len(prompts)
        for piece in self.stream_batch(prompts, sampling, constraint=constraint, **overrides):
            if piece.completion is not None:
                completions[piece.index] = piece.completion
        return [completion for completion in completions if completion is not None]

    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        constraint: Constraint | None = None,
        **overrides: Any,
    ) -> Generator[Piece, None, None]:
        """Like `generate`, but yield the pieces as they come; `index` is their prompt."""
        params = self._sampling_of_each(prompts, sampling, overrides)
        return self._run(prompts, params, is_chat=False, constraint=constraint)

    def prompt_length(self, messages: str | Sequence[Message]) -> int:
        """Tokens of the prompt that `chat` makes of a conversation."""
        return len(self.tokenizer.encode(self.template.render(_as_messages(messages)), add_bos=True))

    def has_room(self, messages: str | Sequence[Message], sampling: SamplingParams | None = None) -> bool:
        """Whether a conversation and a reasonably long answer fit into the context."""
        limit = (sampling or self.sampling).max_tokens
        room = min(limit or WORTHWHILE_ANSWER_TOKENS, self.context_length // 4)
        return self.prompt_length(messages) + room <= self.context_length

    def logits(self, token_ids: Sequence[int | EmbeddingSpan]) -> npt.NDArray[np.float32]:
        """Next-token logits after each of `token_ids`, and after each position of a span: (T, vocab) float32."""
        steps, ids = self.steps, self._checked_ids(token_ids)
        self._require_room(len(ids))
        return steps.scorer.logits(ids)

    def drop_cache(self) -> None:
        """Evict the cached keys and values of finished texts, and return their memory to the system."""
        self._runtime.drop_cache()

    def embed(self, texts: str | Sequence[Prompt]) -> npt.NDArray[np.float32]:
        """One vector per text (or token ids): (n, hidden) float32, the mean of its tokens' last hidden states.

        These are the states after the model's last norm, before the logit scale and the head. `<s>` is one of the
        tokens if the tokenizer puts it in front. The mean is computed in float64. Vectors are not normalised.
        """
        return self.steps.scorer.embed(self._ids_of_each(texts))

    def embed_in_steps(
        self, texts: str | Sequence[Prompt], most_tokens: Callable[[], int]
    ) -> Generator[int, None, npt.NDArray[np.float32]]:
        """`embed` in steps of about `most_tokens()` tokens, so that the caller can do other work in between.

        Yields 0 after a step. If there is no room in the cache, it yields the number of missing tokens and tries again
        when it is resumed. A text that can never be embedded is refused before the first step.
        """
        return self.steps.scorer.embed_in_steps(self._ids_of_each(texts), most_tokens)

    def prompt_logprobs_in_steps(
        self, prompts: Sequence[Sequence[int | EmbeddingSpan]], top: int, most_tokens: Callable[[], int]
    ) -> Generator[int, None, list[list[SampledToken]]]:
        """Per prompt all its tokens, each with its log-probability given the tokens before it, and the `top` likeliest.

        The first position has neither. A span's positions are not tokens and are left out; tokens after a span are
        scored normally. Steps and refusals are as in `embed_in_steps`.
        """
        texts = [self._checked_ids(prompt) for prompt in prompts]
        return self.steps.scorer.prompt_logprobs_in_steps(texts, top, most_tokens)

    def loglikelihood(self, pairs: Iterable[tuple[Prompt, Sequence[str | Sequence[int]]]]) -> list[list[Loglikelihood]]:
        """Score continuations: a list per (prefix, continuations); their common prefix is computed once.

        Prefix and continuation are encoded as one text. The tokens from the first one that differs from the encoded
        prefix are scored. Token ids are used unchanged, and a prefix may hold spans.
        """
        return [self._score(prefix, continuations) for prefix, continuations in pairs]

    @property
    def steps(self) -> StepRuntime:
        """The runtime that computes step by step. Raises GenerationError if the engine gives no logits."""
        if self._runtime.steps is None:
            raise GenerationError(self._runtime.why_no_steps)
        return self._runtime.steps

    def new_scheduler(self) -> Scheduler:
        """A scheduler that takes and cancels requests at any time, for engine/service.py."""
        if self._runtime.steps is None:
            name = self.backend.name
            raise GenerationError(
                f"the {name} backend has its own scheduler; for many concurrent users run its server: minicpm serve "
                f"--backend {name}"
            )
        return self._runtime.steps.new_scheduler()

    def _score(self, prefix: Prompt, continuations: Sequence[str | Sequence[int]]) -> list[Loglikelihood]:
        prefix_ids = self._as_ids(prefix, add_bos=True)
        texts = [self._joined(prefix, prefix_ids, continuation) for continuation in continuations]
        self._require_room(max((len(text.ids) for text in texts), default=0))
        return self._runtime.scorer.loglikelihood(texts)

    def _joined(self, prefix: Prompt, prefix_ids: Ids, continuation: str | Sequence[int]) -> Continuation:
        """A prefix and its continuation, encoded together because tokens may span the border."""
        if isinstance(continuation, str) and isinstance(prefix, str):
            ids = self._as_ids(prefix + continuation, add_bos=True)
            border = common_prefix_length(prefix_ids, ids)
        else:
            added = self._as_ids(continuation, add_bos=False)
            if not isinstance(added, list):
                raise GenerationError("a continuation must have only token ids; embeddings have no probability")
            ids = prefix_ids + added
            border = len(prefix_ids)
        if border == len(ids):
            raise ValueError(f"the continuation {continuation!r} adds no token to its prefix; score longer ones")
        return Continuation(ids, border)

    def _sampling_of_each(
        self,
        prompts: Sequence[object],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        overrides: dict[str, Any],
    ) -> list[SamplingParams]:
        if sampling is None or isinstance(sampling, SamplingParams):
            return [_with_overrides(sampling or self.sampling, overrides)] * len(prompts)
        if len(sampling) != len(prompts):
            given = f"{len(sampling)} SamplingParams for {counted(len(prompts), 'prompt')}"
            raise ValueError(f"{given}; give one, or one for each")
        return [_with_overrides(params, overrides) for params in sampling]

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingParams],
        *,
        is_chat: bool,
        constraint: Constraint | None,
    ) -> Generator[Piece, None, None]:
        scheduler = self._runtime.new_scheduler()
        for index, (prompt, params) in enumerate(zip(prompts, sampling)):
            name = "the prompt" if len(prompts) == 1 else f"prompt {index + 1}"
            request = self.new_request(prompt, params, is_chat=is_chat, index=index, name=name, constraint=constraint)
            scheduler.add(request)
        return _pieces(scheduler)

    def new_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        is_chat: bool,
        index: int = 0,
        name: str = "the prompt",
        choice: int = 0,
        constraint: Constraint | None = None,
    ) -> Request:
        """A request for a scheduler. Raises GenerationError about the prompt `name` if it cannot be answered."""
        prompt_ids = self._as_ids(prompt, add_bos=True)
        if len(prompt_ids) >= self.context_length:
            raise GenerationError(
                f"{name} has {len(prompt_ids)} tokens, but the context holds {self.context_length} "
                "with at least one for the answer; shorten the prompt"
            )
        rope_length = self._planned_length(len(prompt_ids), params.max_tokens)
        # A constrained answer ends with its constraint; a marker inside it is part of the answer. Words may be one of
        # the forms beside a structure, and they end as other words do.
        ends_by_marker = is_chat and (constraint is None or bool(constraint.structure))
        stop = (*params.stop, *self.template.stop_strings) if ends_by_marker else params.stop
        # A marker that is a single special token never appears as text, so it ends the answer as a token.
        marker_ids = {i for i in self.tokenizer.special_token_ids if self.tokenizer.id_to_token(i) in stop}
        return Request(
            index,
            prompt_ids,
            params,
            self.tokenizer,
            seed=int.from_bytes(os.urandom(8)) >> 1 if params.seed is None else params.seed,
            max_new_tokens=self._longest_answer(name, len(prompt_ids), rope_length, params.max_tokens),
            rope_length=rope_length,
            eos_token_ids=self._eos_token_ids,
            marker_ids=frozenset(marker_ids),
            stop=tuple(dict.fromkeys(stop)),
            continues=not is_chat or constraint is not None,
            choice=choice,
            matcher=None if constraint is None else self._constraints.matcher(constraint),
            structure=None if constraint is None else constraint.structure,
        )

    def _longest_answer(self, name: str, prompt_tokens: int, rope_length: int, max_tokens: int | None) -> int:
        """Most tokens of an answer; without `max_tokens` the cache's memory may limit it further."""
        wanted = min(max_tokens or self.context_length, rope_length - prompt_tokens)
        cache_tokens = self._runtime.cache_tokens
        room = cache_tokens - prompt_tokens
        if self.backend.held_tokens(prompt_tokens + wanted) <= cache_tokens:
            return wanted
        if max_tokens is not None or room < SHORTEST_ANSWER_TOKENS:
            raise beyond_budget(self.backend, cache_tokens, f"{name} and its answer", prompt_tokens + wanted)
        return room

    def _planned_length(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """The longest length of prompt and answer, which determines the rotary base of dynamic NTK.

        It is the trained length, doubled until the prompt and a reasonably long answer fit. This gives few different
        bases, so that the turns of a growing conversation can share cached blocks.
        """
        trained = self.backend.trained_length
        wanted = prompt_tokens + (max_tokens or min(WORTHWHILE_ANSWER_TOKENS, trained // 4))
        length = trained
        while length < min(wanted, self.context_length):
            length *= 2
        return min(length, self.context_length)

    def _ids_of_each(self, texts: str | Sequence[Prompt]) -> list[Ids]:
        texts = [texts] if isinstance(texts, str) else texts
        if not texts:
            raise ValueError("there are no texts; give at least one")
        return [self._as_ids(text, add_bos=True) for text in texts]

    def _as_ids(self, text: Prompt, *, add_bos: bool) -> Ids:
        if isinstance(text, str):
            if not text and add_bos:
                raise GenerationError("the prompt is empty; give at least one character")
            text = self.tokenizer.encode(text, add_bos=add_bos)
        return self._checked_ids(text)

    def _checked_ids(self, token_ids: Sequence[int | EmbeddingSpan]) -> Ids:
        return checked_ids(token_ids, self.backend.vocab_size, self.backend.embedding_size)

    def _require_room(self, token_count: int) -> None:
        if token_count > self.context_length:
            raise GenerationError(f"{token_count} tokens are more than the context's {self.context_length}")


def _as_messages(messages: str | Sequence[Message]) -> Sequence[Message]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def _with_overrides(params: SamplingParams, overrides: dict[str, Any]) -> SamplingParams:
    if not overrides:
        return params
    unknown = sorted(set(overrides) - set(SamplingParams.__dataclass_fields__))
    if unknown:
        known = ", ".join(SamplingParams.__dataclass_fields__)
        raise ValueError(f"unknown sampling option {', '.join(unknown)}; there are: {known}")
    return replace(params, **overrides)


def _pieces(scheduler: RequestScheduler) -> Generator[Piece, None, None]:
    """Pieces of all requests until each has finished; closing the iterator cancels the remaining ones."""
    try:
        while scheduler.is_busy:
            for _, event in scheduler.step():
                if isinstance(event, GenerationError):
                    raise event
                yield event
    finally:
        scheduler.close()


def _last_completion(pieces: Iterable[Piece]) -> Completion:
    completion = None
    for piece in pieces:
        completion = piece.completion or completion
    assert completion is not None
    return completion
