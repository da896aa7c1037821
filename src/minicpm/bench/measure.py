"""Measures prefill, decode and batch speed of a loaded model, its memory, and the share of the machine's peaks it uses.

It drives a `StepBackend` directly, with random ids and without sampling, so that only the model is measured. Memory
bandwidth of a virtual machine varies over time. So the peaks are measured in alternation with the work, and each
percentage refers to the peak measured beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm import native
from minicpm.engine.backend import KVSequence, Row, StepBackend, Wanted
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.engine.memory import peak_rss_bytes
from minicpm.engine.scheduler import PREFILL_CHUNK_TOKENS
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.compressed_tensors import SHAPE
from minicpm.formats.config import DecoderConfig
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.tensor import STORAGE_DTYPES

# A buffer of this size is many times larger than any CPU cache.
BANDWIDTH_BYTES = 1 << 30
PEAK_WINDOW_S = 0.1
# Tokens that a window of single steps appends after its depth, at least and at most.
FEWEST_TOKENS, WINDOW_TOKENS = 16, 256


@dataclass(frozen=True)
class Plan:
    """The points to measure. Each gets `repeats` windows; all points take turns."""

    prefill: tuple[int, ...] = (128, 512)  # prompts of so many tokens
    decode: tuple[int, ...] = (0, 1024)  # depths: tokens in the cache while one token at a time is decoded
    batch: tuple[int, ...] = (1, 2, 4, 8)  # so many sequences, each with one token per step
    verify: int = 16  # steps over 1 .. verify tokens of one sequence, as drafts are verified
    repeats: int = 5
    window_s: float = 0.5  # length of a window of one point

    def __post_init__(self) -> None:
        for name, values, least in (("prefill", self.prefill, 1), ("decode", self.decode, 0), ("batch", self.batch, 1)):
            if any(value < least for value in values):
                raise ValueError(f"{name} takes numbers from {least} on, got {min(values)}")
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has a number twice: {', '.join(map(str, values))}")
        if not 0 <= self.verify <= 64:
            raise ValueError(f"verify must be 0 to 64 tokens, got {self.verify}")
        if not 1 <= self.repeats <= 1000:
            raise ValueError(f"repeats must be 1 to 1000, got {self.repeats}")
        if not 0 < self.window_s <= 60:
            raise ValueError(f"window_s must be above 0 and at most 60, got {self.window_s}")
        if not (self.prefill or self.decode or self.batch or self.verify):
            raise ValueError("there is nothing to measure; name at least one point")

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the plan needs."""
        texts = [*self.prefill, *(depth + FEWEST_TOKENS for depth in self.decode)]
        if self.batch:
            texts.append(1 + FEWEST_TOKENS)
        if self.verify:
            texts.append(self.verify_depth + self.verify)
        return max(texts)

    @property
    def verify_depth(self) -> int:
        return min(self.decode, default=0)


@dataclass(frozen=True)
class Spread:
    """Median, best and worst of several windows. `best` is the least disturbed window."""

    median: float
    best: float
    worst: float
    windows: tuple[float, ...]

    @classmethod
    def of(cls, windows: Sequence[float], *, less_is_better: bool = False) -> Spread:
        best, worst = (min, max) if less_is_better else (max, min)
        return cls(statistics.median(windows), best(windows), worst(windows), tuple(windows))


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one point, and the share of the machine's peaks that they use (None if unknown)."""

    kind: str  # prefill, decode or batch
    size: int  # tokens of the prompt, depth, or sequences
    tokens_per_s: Spread
    bytes_per_step: int | None  # weights and cache that a step reads; None for prefill
    of_bandwidth: float | None
    of_integer_peak: float | None


@dataclass(frozen=True)
class Verification:
    """A step over several tokens of one sequence, beside a step over one."""

    tokens: int
    step_s: Spread
    cost: float  # in single steps
    # The share of tokens - 1 drafts that must be accepted for the step to break even; above 1 it never does.
    break_even_acceptance: float | None


@dataclass(frozen=True)
class Measurement:
    backend: str
    isa: str | None
    threads: int | None
    weight_bytes_per_step: int
    cache_bytes_per_token: int
    first_token_s: float  # for a prompt of one token, the first work after loading
    peak_rss_bytes: int | None
    peak_rss_tokens: int  # in the cache when peak_rss_bytes was read
    read_bandwidth: Spread | None  # bytes per second
    integer_peak: Spread | None  # operations per second; a multiplication and an addition are two
    speeds: tuple[Speed, ...]
    verifications: tuple[Verification, ...]


class Work:
    """Timed pieces of work of a backend. Sequences are filled once per depth and truncated after every window."""

    def __init__(self, backend: StepBackend, seed: int = 0):
        self._backend = backend
        self._random = np.random.default_rng(seed)
        self._filled: dict[int, KVSequence] = {}

    def prefill(self, tokens: int) -> float:
        """Tokens per second of a new prompt, its last logits included."""
        sequence = self._backend.new_sequence(tokens)
        start = time.perf_counter()
        self._append(sequence, self._ids(tokens), "last")
        return tokens / (time.perf_counter() - start)

    def fill(self, depth: int) -> KVSequence:
        """The sequence of `depth` tokens, filled with random ids when it is first needed."""
        if depth not in self._filled:
            sequence = self._backend.new_sequence(depth + self._room(depth))
            if depth:
                self._append(sequence, self._ids(depth), "none")
            self._filled[depth] = sequence
        return self._filled[depth]

    def decode(self, depth: int, window_s: float) -> float:
        """Tokens per second, decoded one at a time after `depth` tokens."""
        sequence = self.fill(depth)
        ids = self._ids(self._room(depth))
        seconds = self._window(lambda i: self._backend.forward([Row(sequence, ids[i : i + 1])]), window_s, len(ids))
        sequence.truncate(depth)
        return len(seconds) / sum(seconds)

    def batch(self, sequences: int, window_s: float) -> float:
        """Tokens per second of all sequences together, from their start on. Each gets one token per step."""
        room = self._room(1)
        rows = [self._backend.new_sequence(1 + room) for _ in range(sequences)]
        ids = [self._ids(1 + room) for _ in rows]
        self._backend.forward([Row(row, own[:1]) for row, own in zip(rows, ids)])

        def step(i: int) -> object:
            return self._backend.forward([Row(row, own[i + 1 : i + 2]) for row, own in zip(rows, ids)])

        seconds = self._window(step, window_s, room)
        return sequences * len(seconds) / sum(seconds)

    def verify_step(self, depth: int, tokens: int, window_s: float) -> float:
        """Seconds of a step over `tokens` tokens of one sequence after `depth` tokens, with the logits of all."""
        sequence = self.fill(depth)
        ids = self._ids(tokens)

        def step(_: int) -> None:
            self._backend.forward([Row(sequence, ids, "all")])
            sequence.truncate(depth)

        return statistics.mean(self._window(step, window_s))

    def first_token(self) -> float:
        """Seconds of a prompt of one token."""
        start = time.perf_counter()
        self._backend.forward([Row(self._backend.new_sequence(1), self._ids(1))])
        return time.perf_counter() - start

    def _room(self, depth: int) -> int:
        """Tokens that a window may append after `depth`."""
        return min(WINDOW_TOKENS, self._backend.context_length - depth)

    @staticmethod
    def _window(step: Callable[[int], object], window_s: float, limit: int = WINDOW_TOKENS) -> list[float]:
        """Seconds of each step of a window, at least two. A first, cold step is not counted."""
        step(0)
        seconds: list[float] = []
        start = last = time.perf_counter()
        while (last - start < window_s or len(seconds) < 2) and len(seconds) < limit - 1:
            step(len(seconds) + 1)
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return seconds

    def _append(self, sequence: KVSequence, ids: Sequence[int], logits: Wanted) -> None:
        for chunk in Row(sequence, ids, logits).chunks(PREFILL_CHUNK_TOKENS):
            self._backend.forward([chunk])

    def _ids(self, count: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._backend.vocab_size, count).tolist()
        return ids


class Peaks:
    """The machine's peaks, measured with the engine's kernels and thread count."""

    def __init__(self, isa: str, threads: int, memory_bytes: int = BANDWIDTH_BYTES):
        self._machine = native.extension().Machine(isa=isa, threads=threads, memory_bytes=memory_bytes)

    def read_bandwidth(self) -> float:
        """Bytes per second of reading memory."""
        return float(self._machine.read_bandwidth())

    def integer_rate(self) -> float:
        """Integer operations per second; a multiplication and its addition are two."""
        return 2 * float(self._machine.product_rate(PEAK_WINDOW_S))


def step_weight_bytes(checkpoint: Checkpoint, dtype: str = "auto") -> int:
    """Bytes of the weights that every step reads: all but an embedding that is not also the head.

    `dtype` is the dtype in which unquantized weights are computed; "auto" is their own.
    """
    embedding = () if checkpoint.config.tie_word_embeddings else _stored(EMBEDDING)
    total = 0
    for name, info in checkpoint.tensors.items():
        if name in embedding or name.endswith(SHAPE):
            continue
        is_converted = not checkpoint.packings and dtype != "auto"
        itemsize = STORAGE_DTYPES[dtype if is_converted else info.dtype].itemsize
        total += int(np.prod(info.shape)) * itemsize
    return total


def _stored(name: str) -> tuple[str, ...]:
    return name, f"{name}_packed", f"{name}_scale"


def prompt_operations(config: DecoderConfig, tokens: int, window: SlidingWindow | None = None) -> float:
    """Multiplications and additions of a prompt: the layers' matrices, the head once, causal attention."""
    shapes = config.parameter_shapes().items()
    linear = sum(shape[0] * shape[1] for name, shape in shapes if len(shape) == 2 and name not in (EMBEDDING, HEAD))
    head = config.vocab_size * config.hidden_size
    pairs = tokens * (tokens + 1) / 2
    if window is not None:
        pairs = sum(window.attended_tokens(position) + 1 for position in range(tokens))
    attention = 2 * pairs * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2 * (linear * tokens + head + attention)


def measure(
    backend: StepBackend,
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    dtype: str = "auto",
    threads: int | None = None,
    peaks: Callable[[], Peaks | None] = lambda: None,
    on_repeat: Callable[[int], None] = lambda repeat: None,
) -> Measurement:
    """Measure a plan. `peaks` is called after the peak memory was read, because its own buffers need memory."""
    if plan.longest > backend.context_length:
        raise ValueError(
            f"{plan.longest} tokens are needed ({FEWEST_TOKENS} of them for measuring), but the context holds "
            f"{backend.context_length}; choose smaller depths and prompts"
        )
    _require_memory(backend, plan)
    work = Work(backend)
    first_token_s = work.first_token()
    deepest = max(plan.decode, default=0)
    for depth in sorted({*plan.decode, plan.verify_depth}):
        work.fill(depth)
    peak_rss, found = peak_rss_bytes(), peaks()
    runs = _Runs(found)
    weight_bytes = step_weight_bytes(checkpoint, dtype)
    step_s: dict[int, list[float]] = {tokens: [] for tokens in range(1, plan.verify + 1)}
    for repeat in range(plan.repeats):
        on_repeat(repeat)
        for tokens in plan.prefill:
            runs.compute(tokens, work.prefill)
        for depth in plan.decode:
            runs.read("decode", depth, lambda size: work.decode(size, plan.window_s))
        for sequences in plan.batch:
            runs.read("batch", sequences, lambda size: work.batch(size, plan.window_s))
        for tokens, seconds in step_s.items():
            seconds.append(work.verify_step(plan.verify_depth, tokens, plan.window_s / 2))
    return Measurement(
        backend=backend.name,
        isa=getattr(backend, "isa", None),
        threads=threads,
        weight_bytes_per_step=weight_bytes,
        cache_bytes_per_token=backend.cache_bytes_per_token,
        first_token_s=first_token_s,
        peak_rss_bytes=peak_rss,
        peak_rss_tokens=sum({*plan.decode, plan.verify_depth}) if deepest else 0,
        read_bandwidth=Spread.of(runs.bandwidths) if runs.bandwidths else None,
        integer_peak=Spread.of(runs.integer_rates) if runs.integer_rates else None,
        speeds=tuple(runs.speeds(checkpoint.config, weight_bytes, backend)),
        verifications=tuple(_verifications(step_s)),
    )


def _require_memory(backend: StepBackend, plan: Plan) -> None:
    held = sum(depth + WINDOW_TOKENS for depth in {*plan.decode, plan.verify_depth})
    most = max([*plan.prefill, *(count * WINDOW_TOKENS for count in plan.batch)], default=0)
    needed, free = (held + most) * backend.cache_bytes_per_token, backend.free_cache_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"keys and values of this plan take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "choose smaller depths and batches"
        )


class _Runs:
    """The windows of all points. Each runs between two measurements of the peak that limits it."""

    def __init__(self, peaks: Peaks | None):
        self._peaks = peaks
        self._windows: dict[tuple[str, int], list[tuple[float, float | None]]] = {}
        self.bandwidths: list[float] = []
        self.integer_rates: list[float] = []

    def read(self, kind: str, size: int, run: Callable[[int], float]) -> None:
        """Run a window that memory bandwidth limits."""
        self._run(kind, size, run, self.bandwidths, None if self._peaks is None else self._peaks.read_bandwidth)

    def compute(self, tokens: int, run: Callable[[int], float]) -> None:
        """Run a window that integer arithmetic limits."""
        rate = None if self._peaks is None else self._peaks.integer_rate
        self._run("prefill", tokens, run, self.integer_rates, rate)

    def _run(
        self,
        kind: str,
        size: int,
        run: Callable[[int], float],
        peaks: list[float],
        peak: Callable[[], float] | None,
    ) -> None:
        before = peak() if peak else None
        speed = run(size)
        beside = None
        if peak and before is not None:
            after = peak()
            peaks += [before, after]
            beside = (before + after) / 2
        self._windows.setdefault((kind, size), []).append((speed, beside))

    def speeds(self, config: DecoderConfig, weight_bytes: int, backend: StepBackend) -> Iterator[Speed]:
        window = getattr(backend, "window", None)
        for (kind, size), windows in self._windows.items():
            spread = Spread.of([speed for speed, _ in windows])
            if kind == "prefill":
                step_bytes, work = None, prompt_operations(config, size, window) / size
            else:
                depth, tokens_per_step = (size, 1) if kind == "decode" else (0, size)
                attended = depth if window is None else window.attended_tokens(depth)
                step_bytes = weight_bytes + attended * backend.cache_bytes_per_token
                work = step_bytes / tokens_per_step
            parts = [speed * work / peak for speed, peak in windows if peak is not None]
            part = statistics.median(parts) if parts else None
            is_prefill = kind == "prefill"
            yield Speed(kind, size, spread, step_bytes, None if is_prefill else part, part if is_prefill else None)


def _verifications(step_s: dict[int, list[float]]) -> Iterator[Verification]:
    for tokens, seconds in step_s.items():
        cost = statistics.median(many / one for many, one in zip(seconds, step_s[1]))
        break_even = None if tokens == 1 else max(0.0, (cost - 1) / (tokens - 1))
        yield Verification(tokens, Spread.of(seconds, less_is_better=True), cost, break_even)


def as_record(value: Any) -> Any:
    """A measurement as plain JSON values."""
    if isinstance(value, tuple | list):
        return [as_record(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_record(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
