"""Compares a model with what was published of it: hashes, the release's example, perplexity of texts, and the KL
divergence from another folder, usually the one that it was quantized from.

    report = verify("MiniCPM-2B-int4", against="MiniCPM-2B-sft-bf16")

It judges only what can be compared. An unpublished hash is reported without a verdict, and perplexity on the packaged
texts is not comparable with wikitext's.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpm.engine.backend import StepBackend
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.engine.llm import LLM
from minicpm.engine.memory import peak_rss_bytes
from minicpm.errors import FormatError, ModelError, counted
from minicpm.eval.likelihood import chosen, encoded_text, logits_of, nats_of
from minicpm.eval.passages import Passage, passages, passages_sha256
from minicpm.eval.published import ANSWERS, FILES_SHA256, PROMPT_IDS, QUESTION, WINDOW_TOKENS
from minicpm.files import read_bytes, sha256_of
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.progress import Progress, Silent
from minicpm.quant.quality import Comparison

ANSWER_TOKENS = 48
MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True)
class FileHash:
    """One file of the model."""

    name: str
    nbytes: int
    sha256: str
    published_as: str | None  # None: no published file has this hash


@dataclass(frozen=True)
class Example:
    """The release's question and the model's greedy answer."""

    question: str
    answer: str
    is_expected: bool  # Beijing is named
    prompt_ids: tuple[int, ...]
    has_published_ids: bool  # MiniCPM-2B's; another vocabulary has different ids


@dataclass(frozen=True)
class PassageScore:
    """The negative log-likelihood of one text. Its first token is `<s>`, so every token of the text counts."""

    name: str
    language: str
    tokens: int
    nbytes: int
    nats: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """A measure that is comparable between models with different vocabularies."""
        return self.nats / math.log(2) / self.nbytes


@dataclass(frozen=True)
class WindowScore:
    """Perplexity of a text of the user in windows of 2,048 tokens without overlap.

    `<s>` is at the beginning of the text only. All tokens of a window but its first count. An incomplete last window
    does not count.
    """

    name: str
    sha256: str
    nbytes: int
    tokens: int
    windows: int
    perplexity: float


@dataclass(frozen=True)
class Distance:
    """Predictions on the packaged texts, compared with another folder's token by token."""

    name: str
    backend: str
    tokens: int
    kl: float
    max_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float


@dataclass(frozen=True)
class Verification:
    """The report of `verify`."""

    name: str
    backend: str
    files: tuple[FileHash, ...]
    example: Example
    passages_sha256: str
    passages: tuple[PassageScore, ...]
    windows: WindowScore | None
    distance: Distance | None
    wall_s: float
    peak_rss_bytes: int | None

    @property
    def total(self) -> PassageScore:
        """All passages as one."""
        sums = (sum(getattr(score, name) for score in self.passages) for name in ("tokens", "nbytes", "nats"))
        return PassageScore("all", "", *sums)


def verify(
    model: str | Path,
    *,
    against: str | Path | None = None,
    text: Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Examine a folder or GGUF file, run it, and compare it with the folder `against` if one is given.

    An unquantized `against` is computed in float32 whatever its dtype. Raises ModelError if the two tokenizers split
    texts differently, MiniCPMError subclasses for models that cannot be used, and OSError for a text that cannot be
    read.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    model = Path(model)
    files = tuple(_hashes(model, progress))
    llm = LLM(model, max_batch=1, progress=progress)
    rows = [llm.tokenizer.encode(passage.text) for passage in passages()]
    windows = None if text is None else _windows(llm, text, progress)
    scores, distance = _passages(llm, rows, None if against is None else Path(against), progress)
    return Verification(
        name=model.resolve().name,
        backend=llm.backend.name,
        files=files,
        example=_example(llm),
        passages_sha256=passages_sha256(),
        passages=scores,
        windows=windows,
        distance=distance,
        wall_s=time.perf_counter() - start,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _hashes(model: Path, progress: Progress) -> list[FileHash]:
    """Hashes of a GGUF file, or of every file of a folder but hidden ones."""
    paths = [model] if model.is_file() else sorted(path for path in model.iterdir() if path.is_file())
    paths = [path for path in paths if not path.name.startswith(".")]
    return [
        FileHash(path.name, path.stat().st_size, sha256, FILES_SHA256.get(sha256))
        for path, sha256 in zip(paths, sha256_of(paths, progress))
    ]


def _example(llm: LLM) -> Example:
    answer = llm.chat(QUESTION, temperature=0, repetition_penalty=1.0, max_tokens=ANSWER_TOKENS)
    ids = tuple(llm.tokenizer.encode(llm.template.render([{"role": "user", "content": QUESTION}])))
    return Example(QUESTION, answer.text, any(name in answer.text for name in ANSWERS), ids, ids == PROMPT_IDS)


def _passages(
    llm: LLM, rows: list[list[int]], against: Path | None, progress: Progress
) -> tuple[tuple[PassageScore, ...], Distance | None]:
    """Compute the texts with both models in turns, so that memory holds the logits of few texts."""
    other = None if against is None else _other(against, rows)
    expected = None if other is None else logits_of(other, rows)
    comparison, scores = Comparison(), []
    progress.begin("reading texts", sum(len(passage.text.encode()) for passage in passages()))
    try:
        for passage, ids, logits in zip(passages(), rows, logits_of(llm.steps.backend, rows)):
            scores.append(_score(passage, ids, -float(chosen(logits, ids[1:]).sum())))
            if expected is not None:
                comparison.add(next(expected), logits, np.array(ids[1:]))
            progress.advance(scores[-1].nbytes)
    finally:
        progress.end()
    if against is None or other is None:
        return tuple(scores), None
    return tuple(scores), Distance(
        name=against.resolve().name,
        backend=other.name,
        tokens=comparison.tokens,
        kl=comparison.kl,
        max_kl=comparison.max_kl,
        top1_agreement=comparison.top1_agreement,
        perplexity=comparison.perplexity,
        reference_perplexity=comparison.reference_perplexity,
    )


def _other(folder: Path, rows: list[list[int]]) -> StepBackend:
    """The backend of the folder to compare with. Raises ModelError if it tokenizes texts differently."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        if checkpoint.tokenizer().encode_batch([passage.text for passage in passages()]) != rows:
            raise ModelError(f"{folder}: splits texts into other tokens than the model, so they cannot be compared")
        if not checkpoint.packings:
            return NumpyBackend(checkpoint)
    return LLM(folder, max_batch=1).steps.backend


def _score(passage: Passage, ids: Sequence[int], nats: float) -> PassageScore:
    return PassageScore(passage.name, passage.language, len(ids) - 1, len(passage.text.encode()), nats)


def _windows(llm: LLM, path: Path, progress: Progress) -> WindowScore:
    data = read_bytes(path, MAX_TEXT_BYTES)
    try:
        ids = encoded_text(llm.tokenizer, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(path, f"is no UTF-8 text (byte {error.start})") from error
    if llm.context_length < WINDOW_TOKENS:
        raise ValueError(f"the model reads {llm.context_length} tokens, a window has {WINDOW_TOKENS}")
    count = len(ids) // WINDOW_TOKENS
    if count == 0:
        raise FormatError(
            path, f"has {counted(len(ids), 'token')}; one window takes {WINDOW_TOKENS:,}, so give a longer text"
        )
    nats = 0.0
    progress.begin(f"reading {path.name}", len(data))
    try:
        for start in range(0, count * WINDOW_TOKENS, WINDOW_TOKENS):
            nats += float(nats_of(llm.steps.backend, ids[start : start + WINDOW_TOKENS]).mean())
            progress.advance(len(data) // count)
    finally:
        progress.end()
    sha256 = hashlib.sha256(data).hexdigest()
    return WindowScore(path.name, sha256, len(data), len(ids), count, math.exp(nats / count))
