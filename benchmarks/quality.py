"""The quality of every preset, on a trained model or on MiniCPM-nano and outlier-scaled copies; nothing is timed.

python benchmarks/quality.py --real [--work runs]    # a trained model beside llama.cpp: real_weights.py
python benchmarks/quality.py [--work runs]           # MiniCPM-nano and its copies

The float reference is a model that nano may have been rounded from (benchmarks/outliers.py), computed in float32 by the
numpy engine; a copy computes the same with 0.5 % of its channels larger by `outlier scale`. The text is
nano/held-out.jsonl; of conversations the answers count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import real_weights
from costs import require_idle_machine, write_results
from outliers import write_outlier_copy, write_unrounded
from report import write_report

from minicpm import native
from minicpm.engine.backend import KV_BLOCK, StepBackend
from minicpm.engine.backends.arithmetic import Floats
from minicpm.engine.backends.native import NativeBackend
from minicpm.engine.backends.numpy import Linear, NumpyBackend
from minicpm.engine.backends.numpy_attention import NumpySequence, attention_kind
from minicpm.eval.likelihood import logits_of
from minicpm.export.convert import convert
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded
from minicpm.quant.format import PRESETS, IntWeight, read_weight
from minicpm.quant.quality import Comparison
from minicpm.train.records import parse_record
from minicpm.train.rendering import Renderer

HELD_OUT = Path(__file__).parents[1] / "nano" / "held-out.jsonl"
SEED = 0
SCALES = (1, 30, 100, 300)
STORED_DTYPES = ("bfloat16", "float16")
PART_PRESET, PART_SCALES = "int4", (1, 100)
CACHE_PRESET, CACHE_SCALES = "int8", (1, 100)


@dataclass(frozen=True)
class Sample:
    """A text as token ids, and which of them count; the first never does."""

    ids: tuple[int, ...]
    counts: tuple[bool, ...]
    is_text: bool

    @property
    def targets(self) -> np.ndarray:
        return np.array(self.ids)[np.array(self.counts)]


class WeightsOnly(NumpyBackend):
    """Weights as they were rounded, everything else in float32."""

    def linear(self, *names: str) -> Linear:
        weights = [read_weight(self._checkpoint, name) for name in names]
        matrix = np.concatenate([w.dequantize() if isinstance(w, IntWeight) else w.float32() for w in weights]).T
        return lambda x: x @ matrix


class _Int4ValuesSequence(NumpySequence):
    def append(self, layer: int, keys: Floats, values: Floats) -> None:
        T, H, D = values.shape
        blocks = np.pad(values, ((0, 0), (0, 0), (0, -D % KV_BLOCK))).reshape(T, H, -1, KV_BLOCK)
        steps = np.abs(blocks).max(axis=3, keepdims=True) / np.float32(7)
        rounded = np.rint(blocks / np.where(steps == 0, np.float32(1), steps)) * steps
        super().append(layer, keys, rounded.reshape(T, H, -1)[..., :D])


class Int4Values(NumpyBackend):
    """Values in blocks of 32 rounded to 15 steps, keys in int8: what a cache of 4-bit values would hold."""

    def new_sequence(self, rope_length: int) -> NumpySequence:
        return _Int4ValuesSequence(self.config, rope_length, attention_kind("int8", self.config.head_dim))


def samples(folder: Path, path: Path) -> list[Sample]:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        renderer = Renderer(checkpoint.tokenizer(), checkpoint.chat_template(), checkpoint.config.vocab_size)
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        document = renderer.render(parse_record(json.loads(line)))
        found.append(Sample(document.ids, (False, *document.is_trained[1:]), document.is_text))
    return found


def logits(backend: StepBackend, texts: Sequence[Sample]) -> Iterator[Floats]:
    """Per text, the logits (n, vocab) of each of its n tokens that count."""
    for text, of_text in zip(texts, logits_of(backend, [text.ids for text in texts])):
        yield of_text[np.array(text.counts[1:])]


def opened(folder: Path, kv_dtype: str = "int8") -> StepBackend:
    """The users' engine: native if it is built, else numpy with the same bits."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        if native.why_missing() is None:
            return NativeBackend(checkpoint, kv_dtype=kv_dtype)
        return NumpyBackend(checkpoint, is_exact=True, kv_dtype=kv_dtype)


def with_int4_values(folder: Path) -> StepBackend:
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return Int4Values(checkpoint, is_exact=True)


def with_float_cache(folder: Path, kind: type[NumpyBackend]) -> StepBackend:
    """A numpy backend whose keys, values and queries stay in float32."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        return kind(checkpoint, is_exact=False)


@dataclass(frozen=True)
class Bench:
    """The texts, the reference's logits of them, and the folder for models."""

    work: Path
    texts: list[Sample]
    reference: list[Floats]

    @classmethod
    def prepare(cls, work: Path) -> Bench:
        source = work / "float"
        write_unrounded(embedded.folder(), source, SEED)
        texts = samples(source, HELD_OUT)
        return cls(work, texts, list(logits(with_float_cache(source, NumpyBackend), texts)))

    def outlier_copy(self, scale: float) -> Path:
        folder = self.work / f"scaled-{scale:g}"
        if not folder.exists():
            write_outlier_copy(self.work / "float", folder, scale, SEED)
        return folder

    def quantized(self, preset: str, scale: float, equalize: bool) -> Path:
        folder = self.work / f"scaled-{scale:g}-{preset}-{'evened' if equalize else 'plain'}"
        if not folder.exists():
            quantize_folder(self.outlier_copy(scale), folder, preset=preset, equalize=equalize)
        return folder

    def compare(self, backend: StepBackend) -> Comparison:
        comparison = Comparison()
        for text, expected, found in zip(self.texts, self.reference, logits(backend, self.texts)):
            comparison.add(expected, found, text.targets)
        return comparison

    def preset_row(self, preset: str, scale: float) -> dict[str, object]:
        """A preset as `minicpm quantize` makes it, and its KL without equalization."""
        found = self.compare(opened(self.quantized(preset, scale, equalize=True)))
        plain = self.compare(opened(self.quantized(preset, scale, equalize=False)))
        return {
            "preset": preset,
            "outlier_scale": scale,
            **numbers(found),
            "kl_not_equalized": digits(plain.kl),
            "top1_agreement_not_equalized": digits(plain.top1_agreement),
        }

    def stored_row(self, dtype: str) -> dict[str, object]:
        """Weights that are not quantized, as the native engine runs them: keys and values are int8."""
        folder = self.work / dtype
        convert(self.work / "float", folder, to="hf", dtype=dtype)
        return {"preset": dtype, "outlier_scale": 1, **numbers(self.compare(opened(folder)))}

    def part_rows(self, preset: str, scale: float) -> Iterator[dict[str, object]]:
        """The same weights with more and more of the computation rounded."""
        for equalize in (True, False):
            folder = self.quantized(preset, scale, equalize)
            for rounded, backend in (
                ("weights", with_float_cache(folder, WeightsOnly)),
                ("weights and activations", with_float_cache(folder, NumpyBackend)),
                ("weights, activations, queries, keys and values", opened(folder)),
            ):
                found = self.compare(backend)
                yield part_row(preset, scale, "yes" if equalize else "no", rounded, found)

    def cache_rows(self, preset: str, scale: float) -> Iterator[dict[str, object]]:
        """The same weights with other dtypes of keys and values."""
        for equalize in (True, False):
            folder = self.quantized(preset, scale, equalize)
            for kept, backend in (
                ("bfloat16", opened(folder, "bfloat16")),
                ("int8", opened(folder)),
                ("int8, values in int4", with_int4_values(folder)),
            ):
                found = self.compare(backend)
                row = part_row(preset, scale, "yes" if equalize else "no", kept, found)
                yield {"keys and values": row.pop("rounded"), **row}


def part_row(preset: str, scale: float, equalized: str, rounded: str, found: Comparison) -> dict[str, object]:
    return {
        "rounded": rounded,
        "weights_of": preset,
        "outlier_scale": scale,
        "equalized": equalized,
        "kl": digits(found.kl),
        "max_kl": digits(found.max_kl),
    }


def numbers(found: Comparison) -> dict[str, object]:
    return {
        name: digits(getattr(found, name))
        for name in ("kl", "max_kl", "perplexity", "reference_perplexity", "top1_agreement")
    }


def digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def told(row: dict[str, object]) -> dict[str, object]:
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs"), help="models are made in it (700 MB), and removed")
    parser.add_argument("--real", action="store_true", help="measure SmolLM2-135M, which `make real` fetches (2 GB)")
    args = parser.parse_args()
    require_idle_machine()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.real:
        rows, answers, note = real_weights.run(args.work)
        print("wrote", write_results("quality_real", rows, note, answers=answers))
        real_weights.write_tables(rows, answers, note)
        write_report()
        return
    with tempfile.TemporaryDirectory(prefix="quality-", dir=args.work) as work:
        bench = Bench.prepare(Path(work))
        rows = [told(bench.preset_row(preset, scale)) for preset in PRESETS for scale in SCALES]
        rows += [told(bench.stored_row(dtype)) for dtype in STORED_DTYPES]
        for scale in PART_SCALES:
            scaled = bench.compare(with_float_cache(bench.outlier_copy(scale), NumpyBackend))
            rows.append(told(part_row("outlier-scaled copy, float32", scale, "no", "nothing", scaled)))
            rows += [told(row) for row in bench.part_rows(PART_PRESET, scale)]
        rows += [told(row) for scale in CACHE_SCALES for row in bench.cache_rows(CACHE_PRESET, scale)]
    tokens, texts = sum(len(text.targets) for text in bench.texts), len(bench.texts)
    note = (
        f"MiniCPM-nano, {tokens:,} held-out tokens of {texts} texts and conversations. KL(reference || preset) in nats "
        "per token. An outlier scale of 1 is nano itself; a copy computes the same with 0.5 % of its channels that "
        "many times larger. docs/quantization.md tells what the numbers mean."
    )
    print("wrote", write_results("quality", rows, note))
    write_report()


if __name__ == "__main__":
    main()
