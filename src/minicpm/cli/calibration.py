"""The texts that `quantize` calibrates on: the packaged sample, a file, or what the model itself writes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from minicpm.cli.arguments import whole
from minicpm.errors import DataError
from minicpm.export.dequantized import open_dequantized
from minicpm.export.quantize import CalibrationText
from minicpm.files import read_text
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint

SAMPLE, SELF = "sample", "self"
SAMPLE_FILE = Path(__file__).resolve().parents[1] / "assets" / "calibration.jsonl.gz"
DEFAULT_TOKENS = 16_384
ROW_TOKENS = 512
FEWEST_TOKENS = 1_024  # with less, moments of the widest inputs say nothing
MAX_TEXT_BYTES = 64 << 20
STREAMS = 16  # texts that the model writes at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration",
        metavar="FILE",
        default=SAMPLE,
        help="text for the method gptq: a .txt file, training records (.jsonl, .json, .gz), 'sample' (packaged: "
        "English, Chinese, code and conversations; the default) or 'self' (the model writes it)",
    )
    group.add_argument(
        "--calibration-tokens",
        type=whole(FEWEST_TOKENS),
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"how much of it is used (default: {DEFAULT_TOKENS:,})",
    )


def calibration_text(model: Path, given: str, tokens: int) -> CalibrationText:
    """Rows of at most ROW_TOKENS ids, `tokens` in all or what there is.

    Raises DataError for a file that is no text, and for too little text.
    """
    if given == SELF:
        return CalibrationText(written_by(model, tokens), "text that the model wrote")
    path = SAMPLE_FILE if given == SAMPLE else Path(given).expanduser()
    with open_dequantized(model) as checkpoint:
        length = min(ROW_TOKENS, checkpoint.config.max_position_embeddings)
        rows = _chosen([row for ids in _texts(checkpoint, path) for row in _cut(ids, length)], tokens)
    found = sum(map(len, rows))
    if found < FEWEST_TOKENS:
        raise DataError(f"{path}: {found:,} tokens; calibration needs at least {FEWEST_TOKENS:,}")
    return CalibrationText(rows, "the packaged sample" if given == SAMPLE else str(path))


def _texts(checkpoint: Checkpoint, path: Path) -> Iterator[Sequence[int]]:
    """The ids of every text of a file."""
    from minicpm.train.records import Problem, read_records, require_no_problems
    from minicpm.train.rendering import Renderer

    tokenizer = checkpoint.tokenizer()
    if path.suffix.lower() in (".txt", ".md"):
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        yield tokenizer.encode(read_text(path, MAX_TEXT_BYTES))
        return
    renderer = Renderer(tokenizer, checkpoint.chat_template(), checkpoint.config.vocab_size)
    for place, record in read_records(path):
        if isinstance(record, Problem):
            require_no_problems(path, [record])
        else:
            try:
                yield renderer.render(record).ids
            except ValueError as error:
                raise DataError(f"{path}: {place}: {error}") from None


def _cut(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def _chosen(rows: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Rows until there are `tokens`, in an order that does not depend on the file's; the last one is cut."""
    chosen: list[list[int]] = []
    left = tokens
    for index in np.random.default_rng(0).permutation(len(rows)):
        row = list(rows[index][:left])
        if row:
            chosen.append(row)
            left -= len(row)
    return chosen


def written_by(model: Path, tokens: int) -> list[list[int]]:
    """Texts that the model writes, half of them from nothing and half from where a user's turn begins.

    A model that was tuned to chat writes a question and its answer then. Seeds are fixed: the same model writes the
    same texts.
    """
    from minicpm.engine.llm import LLM
    from minicpm.sampling import SamplingParams

    with open_checkpoint(model, allow_quantized=True) as checkpoint:
        is_wide = checkpoint.config.dtype == "float32" and not checkpoint.packings
    llm = LLM(model, offline=True, dtype="bfloat16" if is_wide else "auto")  # half of the bytes to read per token
    length = min(ROW_TOKENS, llm.context_length)
    turn = llm.template.render([{"role": "user", "content": _MARK}]).partition(_MARK)[0]
    beginnings = [list(llm.tokenizer.encode(text, add_bos=True)) for text in ("", turn)]
    beginnings = [ids or [llm.tokenizer.eos_token_id or 0] for ids in beginnings]
    rows: list[list[int]] = []
    while (left := tokens - sum(map(len, rows))) > 0:
        prompts = [beginnings[index % 2] for index in range(STREAMS)]
        params = [
            SamplingParams(
                temperature=1.0, top_p=1.0, repetition_penalty=1.0, max_tokens=length - len(prompt), seed=len(rows) + i
            )
            for i, prompt in enumerate(prompts)
        ]
        answers = llm.generate(prompts, params)
        rows += [(prompt + list(answer.ids))[:left] for prompt, answer in zip(prompts, answers)]
    return _chosen(rows, tokens)


_MARK = "\u2063"  # stands for what a user says
