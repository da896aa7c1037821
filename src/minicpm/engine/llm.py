"""LLM: the one door to a model, from Python, the command line, the server and the evaluations.

Text in, text out; below it everything is token ids. loading.py chooses the backend; what a prompt would need is checked
against the context and the cache before anything is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from minicpm import hub
from minicpm.chat import Message
from minicpm.engine.advice import advised_sampling
from minicpm.engine.backend import BLOCK_TOKENS, Backend, KVSequence, Row
from minicpm.engine.backends.vllm import VllmBackend, VllmScheduler
from minicpm.engine.cache.blocks import SHORTEST_ANSWER_TOKENS, budget_tokens, common_prefix_length
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.engine.constraint import Constraint, Constraints
from minicpm.engine.loading import Options, check_context, check_for_vllm, load
from minicpm.engine.lookup import StepTimes
from minicpm.engine.prompt import EmbeddingSpan, Ids, Prompt, checked_ids
from minicpm.engine.request import Completion, Piece, Request
from minicpm.engine.scheduler import PREFILL_CHUNK_TOKENS, Pace, Scheduler, no_room
from minicpm.errors import GenerationError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.tensor import FLOAT_DTYPES
from minicpm.progress import Progress, Silent
from minicpm.sampling import SampledToken, SamplingParams, scored_token

LOOKUPS = ("auto", "off")
BACKENDS = ("auto", "native", "torch", "numpy", "vllm")
KV_CACHE_DTYPES = ("auto", "int8", "bfloat16")
# An answer without a limit gets at least so many tokens before the rotary base of dynamic NTK is stretched for it.
WORTHWHILE_ANSWER_TOKENS = 1024
# Logits of a whole text are looked at in parts of so many bytes: 130 tokens of MiniCPM-2B's vocabulary.
LOGITS_BYTES = 64 << 20


@dataclass(frozen=True)
class Loglikelihood:
    """Log-probability (natural) of a continuation, summed over its tokens; `is_greedy` if each was the likeliest."""

    logprob: float
    token_count: int
    is_greedy: bool


class LLM:
    """A MiniCPM model ready to answer.

    `model` is a folder, a GGUF file or a name (`minicpm list`, `minicpm pull`), None the built-in MiniCPM-nano; `dtype`
    is 'auto' (the checkpoint's own), 'float32', 'bfloat16' or 'float16'; `context` lowers the longest sequence below
    the model's own limit; at most `max_batch` requests run at once, fewer where their keys and values would take more
    than `kv_cache_bytes`, which is fixed here (None: `max_batch` contexts and one for idle texts, as far as memory is
    free). Keys and values are kept as `kv_cache_dtype`, 'int8' or 'bfloat16' ('auto': the backend's own). With a
    `sliding_window` a token attends to so many tokens before it and to the `attention_sinks` first ones, and no text
    holds more than those; `context` may then be longer than the model's own limit (engine/cache). `lookup`
    'auto' guesses tokens ahead from the text so far where that pays and cannot change the answer, 'off' never does;
    `vllm_options` are engine arguments of vLLM, such as tensor_parallel_size. `LLM.sampling` are the model's own
    defaults, for requests that bring no SamplingParams. Raises MiniCPMError subclasses when the model cannot be used,
    ValueError for an option that cannot be.
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
        kv_cache_bytes: int | None = None,
        kv_cache_dtype: str = "auto",
        sliding_window: int | None = None,
        attention_sinks: int = BLOCK_TOKENS,
        lookup: str = "auto",
        vllm_options: Mapping[str, Any] | None = None,
        offline: bool | None = None,
        progress: Progress | None = None,
    ):
        _check_choice("backend", backend, BACKENDS)
        _check_choice("dtype", dtype, ("auto", *FLOAT_DTYPES))
        _check_choice("lookup", lookup, LOOKUPS)
        _check_choice("kv_cache_dtype", kv_cache_dtype, KV_CACHE_DTYPES)
        _check_at_least_one("threads", threads)
        _check_at_least_one("context", context)
        _check_at_least_one("max_batch", max_batch)
        _check_at_least_one("kv_cache_bytes", kv_cache_bytes)
        self.folder = hub.resolve(model, offline=offline, progress=progress or Silent())
        checkpoint = open_checkpoint(self.folder, allow_quantized=True)
        self.tokenizer = checkpoint.tokenizer()
        self.template = checkpoint.chat_template()
        self.sampling = advised_sampling(checkpoint)
        window = None if sliding_window is None else SlidingWindow(sliding_window, attention_sinks)
        check_context(checkpoint.config.context_length, context, window)
        if vllm_options and backend != "vllm":
            raise ValueError(f"vllm_options are for the backend vllm, not for {backend}")
        self.backend: Backend
        if backend == "vllm":
            check_for_vllm(device=device, threads=threads, kv_cache_dtype=kv_cache_dtype, window=window)
            self.backend = VllmBackend(
                checkpoint,
                dtype=dtype,
                context=context,
                max_batch=max_batch,
                kv_cache_bytes=kv_cache_bytes,
                options=vllm_options or {},
            )
            self.context_length = self.backend.context_length
        else:
            options = Options(dtype, device, threads, kv_cache_dtype, window)
            self.backend = load(checkpoint, backend, options)
            self.context_length = context or checkpoint.config.context_length
        self._max_batch = max_batch
        # A verified token is the plain one only where its logits are.
        self._step_times = StepTimes() if lookup == "auto" and self.backend.is_exact else None
        self._eos_token_ids = frozenset(checkpoint.eos_token_ids) | frozenset(self.tokenizer.eos_token_ids)
        self._pace = Pace()
        self._constraints = Constraints(self.tokenizer, self.backend.vocab_size, self._eos_token_ids)
        self._cache = self.backend.new_cache(
            budget_tokens(
                self.backend,
                self.backend.held_tokens(self.context_length),
                max_batch,
                kv_cache_bytes,
            )
        )

    def chat(
        self,
        messages: str | Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        **overrides: Any,
    ) -> Completion:
        """Answer a question or a conversation; `overrides` are SamplingParams fields, e.g. temperature=0.

        They change `sampling`, or the model's own defaults where it is left out. With a `constraint` an answer that
        ends by itself has that form.
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
        """Answer several conversations at once; pieces are told apart by `index` and come as they are ready.

        `sampling` is for all of them, or a sequence with one for each.
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
        """Complete prompts as they are, without a chat template; answers in their order.

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
        """Like `generate`, yielding every prompt's pieces (told apart by `index`) as they come."""
        params = self._sampling_of_each(prompts, sampling, overrides)
        return self._run(prompts, params, is_chat=False, constraint=constraint)

    def prompt_length(self, messages: str | Sequence[Message]) -> int:
        """Tokens of the prompt that `chat` makes of a conversation."""
        return len(self.tokenizer.encode(self.template.render(_as_messages(messages)), add_bos=True))

    def has_room(self, messages: str | Sequence[Message], sampling: SamplingParams | None = None) -> bool:
        """Whether the context holds a conversation together with a worthwhile answer."""
        limit = (sampling or self.sampling).max_tokens
        room = min(limit or WORTHWHILE_ANSWER_TOKENS, self.context_length // 4)
        return self.prompt_length(messages) + room <= self.context_length

    def logits(self, token_ids: Sequence[int | EmbeddingSpan]) -> npt.NDArray[np.float32]:
        """Next-token logits after each of `token_ids`, and after each position of a span: (T, vocab) float32."""
        ids = self._checked_ids(token_ids)
        self._require_room(len(ids))
        with self._open([], len(ids)) as sequence:
            return _forward_in_chunks(self.backend, sequence, ids, "all")

    def drop_cache(self) -> None:
        """Forget what was computed for texts that are finished, and give its memory back to the system."""
        self._cache.drop_idle()

    def embed(self, texts: str | Sequence[Prompt]) -> npt.NDArray[np.float32]:
        """One vector per text (or token ids): (n, hidden) float32, the mean of its tokens' last hidden states.

        These are the states behind the model's last norm, before the logit scale and the head; `<s>` is one of the
        tokens, where the tokenizer puts it in front. The mean is taken in float64. Vectors are not normalised.
        """
        work = self.embed_in_steps(texts, lambda: PREFILL_CHUNK_TOKENS)
        while True:
            try:
                missing_tokens = next(work)
            except StopIteration as done:
                vectors: npt.NDArray[np.float32] = done.value
                return vectors
            if missing_tokens:
                raise no_room(self.backend, self._cache, missing_tokens)

    def embed_in_steps(
        self, texts: str | Sequence[Prompt], most_tokens: Callable[[], int]
    ) -> Generator[int, None, npt.NDArray[np.float32]]:
        """`embed` for one who has other work to do in between; each step computes about `most_tokens()`.

        Yields 0 after a step, and the tokens that there is no room for where it has to be tried again. What cannot be
        embedded is refused at once.
        """
        prompts = [texts] if isinstance(texts, str) else texts
        if not prompts:
            raise ValueError("there are no texts; give at least one")
        waiting = [self._as_ids(prompt, add_bos=True) for prompt in prompts]
        self._require_fitting(waiting)
        return self._embed(waiting, most_tokens)

    def prompt_logprobs_in_steps(
        self, prompts: Sequence[Sequence[int | EmbeddingSpan]], top: int, most_tokens: Callable[[], int]
    ) -> Generator[int, None, list[list[SampledToken]]]:
        """Per prompt all its tokens, each with its log-probability behind those before it and the `top` likeliest ones.

        The first position has neither. A span's positions are no tokens and are left out; what stands behind a span is
        scored like any token. In steps, and refused, like `embed_in_steps`; of the logits (T, vocab) no more than
        LOGITS_BYTES are held at a time.
        """
        waiting = [self._checked_ids(prompt) for prompt in prompts]
        self._require_fitting(waiting)
        return self._score_prompts(waiting, top, most_tokens)

    def _embed(self, texts: list[Ids], most_tokens: Callable[[], int]) -> Generator[int, None, npt.NDArray[np.float32]]:
        means = [_Mean() for _ in texts]
        yield from self._read_in_steps(texts, means, self.backend.hidden_states, most_tokens)
        return np.stack([mean.value for mean in means]).astype(np.float32)

    def _score_prompts(
        self, texts: list[Ids], top: int, most_tokens: Callable[[], int]
    ) -> Generator[int, None, list[list[SampledToken]]]:
        scores = [_Scores(ids, top) for ids in texts]
        at_once = max(1, LOGITS_BYTES // (4 * self.backend.vocab_size))
        yield from self._read_in_steps(texts, scores, self.backend.forward, lambda: min(at_once, most_tokens()))
        return [score.tokens for score in scores]

    def _read_in_steps(
        self,
        texts: list[Ids],
        readers: Sequence[_Reader],
        compute: Callable[[Sequence[Row]], list[npt.NDArray[np.float32]]],
        most_tokens: Callable[[], int],
    ) -> Generator[int, None, None]:
        """Hand what is computed of every text's tokens to its reader, as `embed_in_steps` says."""
        done = 0
        while done < len(texts):
            batch = _first_batch(texts[done:], most_tokens())
            sequences = [self._cache.open((), len(ids), len(ids)) for ids in batch]
            try:
                if None in sequences:
                    yield sum(map(len, batch))
                    continue
                longest = max(map(len, batch))
                start = 0
                while start < longest:
                    end = longest if len(batch) > 1 else start + most_tokens()
                    rows = [Row(sequence, ids[start:end], "all") for sequence, ids in zip(sequences, batch) if sequence]
                    for reader, computed in zip(readers[done:], compute(rows)):
                        reader.add(computed)
                    start = end
                    yield 0
            finally:
                for sequence in sequences:
                    if sequence is not None:
                        self._cache.close(sequence)
            done += len(batch)

    def _require_fitting(self, texts: list[Ids]) -> None:
        for number, ids in enumerate(texts, start=1):
            if len(ids) > self.context_length:
                raise GenerationError(
                    f"text {number} has {len(ids)} tokens, more than the context's {self.context_length}; split it"
                )
            if self.backend.held_tokens(len(ids)) > self._cache.tokens:
                raise self._beyond_budget(f"text {number}", len(ids))

    def loglikelihood(self, pairs: Iterable[tuple[Prompt, Sequence[str | Sequence[int]]]]) -> list[list[Loglikelihood]]:
        """Score continuations: per (prefix, continuations) a list; what they share is computed once.

        Texts are encoded together, prefix and continuation, as the model would read them; the tokens from the first
        that differs from the prefix alone are scored. Token ids are taken as they are, and a prefix may hold spans.
        """
        return [self._score(prefix, continuations) for prefix, continuations in pairs]

    def _score(self, prefix: Prompt, continuations: Sequence[str | Sequence[int]]) -> list[Loglikelihood]:
        prefix_ids = self._as_ids(prefix, add_bos=True)
        wholes = [self._joined_ids(prefix, prefix_ids, continuation) for continuation in continuations]
        self._require_room(max((len(ids) for ids, _ in wholes), default=0))
        if isinstance(self.backend, VllmBackend):
            scored = self.backend.score(wholes)
            return [Loglikelihood(sum(logprobs), len(logprobs), is_greedy) for logprobs, is_greedy in scored]
        # Texts may merge with their prefix into other tokens: what all share can be shorter than the prefix.
        shared = min((border for _, border in wholes), default=0)
        if not shared:
            return []
        scores = []
        with self._open(prefix_ids[:shared], max(len(ids) for ids, _ in wholes)) as sequence:
            logits = _forward_in_chunks(self.backend, sequence, prefix_ids[sequence.length : shared], "last")
            for ids, border in wholes:
                tail = ids[shared:-1]
                rows = _forward_in_chunks(self.backend, sequence, tail, "all") if tail else logits[:0]
                sequence.truncate(shared)
                predictions = np.concatenate([logits, rows])[border - shared :]
                scores.append(_loglikelihood(predictions, ids[border:]))
        return scores

    @contextmanager
    def _open(self, prompt_ids: Ids, tokens: int) -> Iterator[KVSequence]:
        """A sequence of the cache that may grow to `tokens`, holding what is known of all but the prompt's last."""
        if tokens > self._cache.tokens:
            raise self._beyond_budget("the text", tokens)
        sequence = self._cache.open(prompt_ids, tokens, tokens, keeps_all=True)
        if sequence is None:
            raise no_room(self.backend, self._cache, tokens)
        try:
            yield sequence
        finally:
            self._cache.close(sequence)

    def _joined_ids(self, prefix: Prompt, prefix_ids: Ids, continuation: str | Sequence[int]) -> tuple[Ids, int]:
        """Ids of prefix and continuation, and the position of the first scored one (at least 1)."""
        if isinstance(continuation, str) and isinstance(prefix, str):
            ids = self._as_ids(prefix + continuation, add_bos=True)
            border = common_prefix_length(prefix_ids, ids)
        else:
            added = self._as_ids(continuation, add_bos=False)
            if not isinstance(added, list):
                raise GenerationError("a continuation is token ids alone; embeddings have no probability")
            ids = prefix_ids + added
            border = len(prefix_ids)
        if border == len(ids):
            raise ValueError(f"the continuation {continuation!r} adds no token to its prefix; score longer ones")
        return ids, border

    def _sampling_of_each(
        self,
        prompts: Sequence[object],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        overrides: dict[str, Any],
    ) -> list[SamplingParams]:
        if sampling is None or isinstance(sampling, SamplingParams):
            return [_with_overrides(sampling or self.sampling, overrides)] * len(prompts)
        if len(sampling) != len(prompts):
            raise ValueError(f"{len(sampling)} SamplingParams for {len(prompts)} prompts; give one, or one for each")
        return [_with_overrides(params, overrides) for params in sampling]

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingParams],
        *,
        is_chat: bool,
        constraint: Constraint | None,
    ) -> Generator[Piece, None, None]:
        scheduler = self.backend.scheduler() if isinstance(self.backend, VllmBackend) else self.new_scheduler()
        for index, (prompt, params) in enumerate(zip(prompts, sampling)):
            name = "the prompt" if len(prompts) == 1 else f"prompt {index + 1}"
            request = self.new_request(prompt, params, is_chat=is_chat, index=index, name=name, constraint=constraint)
            scheduler.add(request)
        return _pieces(scheduler)

    def new_scheduler(self) -> Scheduler:
        """What runs this model's requests; engine/service.py keeps one, and every call here has its own."""
        if isinstance(self.backend, VllmBackend):
            raise GenerationError(
                "the vllm backend has a scheduler of its own, and many users at once are its server's: minicpm serve "
                "--backend vllm"
            )
        return Scheduler(self.backend, self._cache, self._max_batch, self._pace, self._step_times)

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
        """A request for a scheduler; GenerationError, which calls the prompt `name`, where it cannot be answered."""
        if constraint is not None and isinstance(self.backend, VllmBackend):
            raise GenerationError(
                "the vllm backend samples by itself and cannot hold an answer to a form; use the backend native, torch "
                "or numpy, or vLLM's own server (minicpm serve --backend vllm)"
            )
        prompt_ids = self._as_ids(prompt, add_bos=True)
        if len(prompt_ids) >= self.context_length:
            raise GenerationError(
                f"{name} has {len(prompt_ids)} tokens, but the context holds {self.context_length} "
                "with at least one for the answer; shorten the prompt"
            )
        rope_length = self._planned_length(len(prompt_ids), params.max_tokens)
        # An answer of a given form ends where that does; a marker inside is a part of it.
        ends_by_marker = is_chat and constraint is None
        stop = (*params.stop, *self.template.stop_strings) if ends_by_marker else params.stop
        # A marker that is one special token never shows as text: it ends the answer as a token.
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
        )

    def _longest_answer(self, name: str, prompt_tokens: int, rope_length: int, max_tokens: int | None) -> int:
        """Tokens an answer may have; without a limit of its own it gets that of the memory for keys and values."""
        wanted = min(max_tokens or self.context_length, rope_length - prompt_tokens)
        room = self._cache.tokens - prompt_tokens
        if self.backend.held_tokens(prompt_tokens + wanted) <= self._cache.tokens:
            return wanted
        if max_tokens is not None or room < SHORTEST_ANSWER_TOKENS:
            raise self._beyond_budget(f"{name} and its answer", prompt_tokens + wanted)
        return room

    def _beyond_budget(self, name: str, tokens: int) -> GenerationError:
        megabytes = self.backend.cache_bytes_per_token / 1e6
        tokens = self.backend.held_tokens(tokens)
        return GenerationError(
            f"{name} may take {tokens} tokens, which need {tokens * megabytes:,.1f} MB for keys and values; the cache "
            f"holds {self._cache.tokens} tokens in {self._cache.tokens * megabytes:,.1f} MB. Lower max_tokens, shorten "
            "the prompt, or load the model with more kv_cache_bytes"
        )

    def _planned_length(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """Length that prompt and answer may reach, which fixes the rotary base of dynamic NTK.

        The trained length, doubled until the prompt and a worthwhile answer fit: few different bases, so that the
        turns of a growing conversation can share what was computed.
        """
        trained = self.backend.trained_length
        wanted = prompt_tokens + (max_tokens or min(WORTHWHILE_ANSWER_TOKENS, trained // 4))
        length = trained
        while length < min(wanted, self.context_length):
            length *= 2
        return min(length, self.context_length)

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


def _forward_in_chunks(
    backend: Backend, sequence: KVSequence, ids: Ids, logits: Literal["last", "all"]
) -> npt.NDArray[np.float32]:
    """Compute `ids` (T,); logits (T, vocab), or (1, vocab) after the last."""
    chunks = Row(sequence, ids, logits).chunks(PREFILL_CHUNK_TOKENS)
    return np.concatenate([backend.forward([chunk])[0] for chunk in chunks])


def _first_batch(texts: list[Ids], most_tokens: int) -> list[Ids]:
    """The first texts, as many as have at most so many tokens together, but one at least."""
    count, tokens = 1, len(texts[0])
    while count < len(texts) and tokens + len(texts[count]) <= most_tokens:
        tokens += len(texts[count])
        count += 1
    return texts[:count]


class _Reader(Protocol):
    """Takes in what a backend computes of a text's tokens, chunk after chunk (T, n)."""

    def add(self, computed: npt.NDArray[np.float32]) -> None: ...


class _Scores:
    """A text's tokens with their log-probabilities, from the logits (T, vocab) of all chunks that are added."""

    def __init__(self, ids: Ids, top: int):
        self._ids = ids
        self._top = top
        self._read = 1  # positions that are done with
        self.tokens = [SampledToken(token_id) for token_id in ids[:1] if token_id >= 0]

    def add(self, computed: npt.NDArray[np.float32]) -> None:
        # The last one's predict what isn't there. A span's positions have content ids, below 0.
        for logits, token_id in zip(computed, self._ids[self._read :]):
            if token_id >= 0:
                self.tokens.append(scored_token(logits, token_id, self._top))
        self._read += len(computed)


class _Mean:
    """Mean over the tokens of all chunks (T, hidden) that are added: (hidden,) float64."""

    def __init__(self) -> None:
        self._sum: npt.NDArray[np.float64] | None = None
        self._count = 0

    def add(self, computed: npt.NDArray[np.float32]) -> None:
        # The sum so far is the first of the rows, which numpy adds one by one: chunks don't change its bits.
        rows = computed.astype(np.float64) if self._sum is None else np.vstack([self._sum, computed])
        self._sum = rows.sum(axis=0)
        self._count += len(computed)

    @property
    def value(self) -> npt.NDArray[np.float64]:
        assert self._sum is not None
        mean: npt.NDArray[np.float64] = self._sum / self._count
        return mean


def _loglikelihood(logits: npt.NDArray[np.float32], token_ids: Ids) -> Loglikelihood:
    """Score `token_ids` (T,) against the logits (T, vocab) that predict them."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    log_sums = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    chosen = wide[np.arange(len(token_ids)), token_ids]
    is_greedy = bool((logits.argmax(axis=1) == token_ids).all())
    return Loglikelihood(float((chosen - log_sums).sum()), len(token_ids), is_greedy)


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


def _pieces(scheduler: Scheduler | VllmScheduler) -> Generator[Piece, None, None]:
    """Pieces of all requests until each has finished; closing the iterator cancels what is left."""
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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_at_least_one(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or value < 1):
        raise ValueError(f"{name} must be 1 or more, got {value!r}")
