"""What every preset costs a really trained model, beside llama.cpp's types, on the same texts; nothing is timed.

    make real && make peers
    python benchmarks/quality.py --real [--work runs]

The model is SmolLM2-135M-Instruct (`make real`), a Llama in every shape, which this package runs as a MiniCPM whose
scales are 1. The reference is the published file, widened to float32 by the package gguf and computed by transformers
in float32. Texts are benchmarks/texts, in windows of WINDOW tokens, each predicted from its own beginning.

Caveat: the publisher rounded the weights to Q4_1, 16 levels in each block of 32. As a float reference they lie on that
grid, so formats that are affine in blocks of 32 (K-quants, Q4_1) find them again and look better than they are.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm.cli.calibration import DEFAULT_TOKENS, SAMPLE, calibration_text
from minicpm.engine.backend import StepBackend
from minicpm.engine.backends.native import NativeBackend
from minicpm.eval.likelihood import logits_of
from minicpm.export.convert import convert
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.quant.format import PRESETS
from minicpm.quant.quality import Comparison

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / ".venv-real" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOCUMENT = ROOT / "docs" / "quantization.md"
LLAMACPP = ROOT / ".venv-llamacpp" / "bin" / "python"
TEXTS = (ROOT / "benchmarks" / "texts" / "prose.txt", ROOT / "benchmarks" / "texts" / "markup.txt")
WINDOW = 512
# llama_ftype of the files that llama.cpp makes of the float32 file.
LLAMACPP_TYPES = {"Q8_0": 7, "Q4_K_M": 15, "IQ4_NL": 25, "Q4_0": 2}
CAVEAT = (
    "The publisher rounded these weights to Q4_1: formats that are affine in blocks of 32 (Q4_K_M) find that grid "
    "again and look better than they are; symmetric 4-bit formats are not flattered. A 135 M model is harder to round "
    "than a larger one."
)
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 7 + 5?",
    "Name three fruits.",
    "Explain in two sentences why the sky is blue.",
    "Translate to French: Good morning.",
    "Give me a title for a story about a brave mouse.",
    "What does a baker do?",
    "List the days of the week.",
    "Write a short poem about rain.",
)
ANSWER_TOKENS = 60
PROMPT_PRESETS = ("int8", "int4", "int4-small")


# --- the reference -----------------------------------------------------------------------------------------------


def float_folder(file: Path, folder: Path) -> Path:
    """The model of a GGUF file as a Llama folder in float32, written by transformers, with its tokenizer's files."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model that was read of a GGUF file cannot be saved, although its weights are floats.
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config)).float()
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = [2]
    model.save_pretrained(folder)
    write_tokenizer(file, folder)
    return folder


def write_tokenizer(file: Path, folder: Path) -> None:
    """tokenizer.json in the form that the model was published with, made without this package's tokenizer."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = gguf.GGUFReader(file).fields
    pieces, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    types = fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    special = [piece for piece, kind in zip(pieces, types) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"].contents(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


class Reference:
    """transformers in float32; logits (T - 1, vocab) of rows of T ids."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, ids: list[int]) -> np.ndarray:
        with self._torch.inference_mode():
            return self._model(self._torch.tensor([ids[:-1]])).logits[0].float().numpy()


# --- texts -------------------------------------------------------------------------------------------------------


def texts(folder: Path) -> dict[str, list[int]]:
    """The ids of every text, by its name."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        tokenizer = checkpoint.tokenizer()
    return {path.name: tokenizer.encode(path.read_text(encoding="utf-8")) for path in TEXTS}


def windows(folder: Path) -> list[list[int]]:
    """All texts as rows of at most WINDOW + 1 ids."""
    return [
        ids[start : start + WINDOW + 1] for ids in texts(folder).values() for start in range(0, len(ids) - 1, WINDOW)
    ]


def described_texts() -> str:
    return ", ".join(f"{path.name} (SHA-256 {_sha256(path)[:12]})" for path in TEXTS)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- measuring ---------------------------------------------------------------------------------------------------


def opened(path: Path, kv_dtype: str = "int8") -> StepBackend:
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        return NativeBackend(checkpoint, kv_dtype=kv_dtype)


def weight_bytes(path: Path) -> int:
    with open_checkpoint(path, allow_quantized=True) as checkpoint:
        return checkpoint.nbytes


@dataclass(frozen=True)
class Bench:
    """The float32 folder, the texts, and the reference's logits of them, on disk as float32."""

    work: Path
    rows: list[list[int]]

    @classmethod
    def prepare(cls, work: Path, file: Path = MODEL) -> Bench:
        folder = float_folder(file, work / "float")
        bench = cls(work, windows(folder))
        reference = Reference(folder)
        for index, ids in enumerate(bench.rows):
            np.save(work / f"reference-{index}.npy", reference.logits(ids))
        return bench

    def compare(self, found: Iterator[np.ndarray]) -> Comparison:
        comparison = Comparison()
        for index, (ids, logits) in enumerate(zip(self.rows, found)):
            expected = np.load(self.work / f"reference-{index}.npy", mmap_mode="r")
            comparison.add(expected, logits, np.array(ids[1:]))
        return comparison

    def folder(self, name: str) -> Path:
        """The model in bfloat16, or rounded by a preset."""
        folder = self.work / name
        if not folder.exists() and name in PRESETS:
            quantize_folder(self.work / "float", folder, preset=name)
        elif not folder.exists():
            convert(self.work / "float", folder, to="hf", dtype=name)
        return folder

    def row(self, name: str, kv_dtype: str) -> dict[str, object]:
        folder = self.folder(name)
        found = self.compare(logits_of(opened(folder, kv_dtype), self.rows))
        return {"engine": "native", "weights": name, "cache": kv_dtype, "bytes": weight_bytes(folder), **numbers(found)}

    def not_equalized(self, name: str) -> dict[str, object]:
        with tempfile.TemporaryDirectory(dir=self.work) as place:
            folder = Path(place) / name
            quantize_folder(self.work / "float", folder, preset=name, equalize=False)
            found = self.compare(logits_of(opened(folder), self.rows))
            label = f"{name}, not equalized"
            nbytes = weight_bytes(folder)
        return {"engine": "native", "weights": label, "cache": "int8", "bytes": nbytes, **numbers(found)}

    def calibrated(self, name: str) -> dict[str, object]:
        """A preset by GPTQ on the packaged sample, as `minicpm quantize --method gptq` does it."""
        folder = self.work / f"{name}-gptq"
        text = calibration_text(self.work / "float", SAMPLE, DEFAULT_TOKENS)
        quantize_folder(self.work / "float", folder, preset=name, method="gptq", calibration=text)
        found = self.compare(logits_of(opened(folder), self.rows))
        label = f"{name} by gptq"
        return {"engine": "native", "weights": label, "cache": "int8", "bytes": weight_bytes(folder), **numbers(found)}

    def llamacpp_rows(self) -> Iterator[dict[str, object]]:
        source = self.work / "float.gguf"
        write_float_gguf(MODEL, source)
        for name, ftype in LLAMACPP_TYPES.items():
            path = self.work / f"{name}.gguf"
            script = ROOT / "tests" / "peers" / "llamacpp_quantizes.py"
            subprocess.run([LLAMACPP, script, source, path, str(ftype)], check=True, capture_output=True)
            found = self.compare(llamacpp_logits(path, self.rows, self.work))
            cell = {"engine": "llama.cpp", "weights": name, "cache": "float16", "bytes": path.stat().st_size}
            yield {**cell, **numbers(found)}
            path.unlink()

    def answers(self) -> list[dict[str, str]]:
        """Greedy answers of the presets to PROMPTS."""
        from minicpm.engine.llm import LLM

        rows = [{"prompt": prompt} for prompt in PROMPTS]
        for name in PROMPT_PRESETS:
            llm = LLM(self.folder(name), backend="native")
            for row, prompt in zip(rows, PROMPTS):
                row[name] = llm.chat(prompt, temperature=0, max_tokens=ANSWER_TOKENS).text.strip()
        return rows


def write_float_gguf(source: Path, destination: Path) -> None:
    """The same file with every tensor in float32; llama.cpp rounds it from there."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(destination, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name == "general.file_type":
            writer.add_file_type(0)
            continue
        kind, item = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llamacpp_logits(path: Path, rows: list[list[int]], work: Path) -> Iterator[np.ndarray]:
    """What llama.cpp computes with the settings that its users have, row by row."""
    for ids in rows:
        out = work / "logits.npz"
        request = {"file": str(path), "texts": [], "ids": [ids[:-1]], "out": str(out), "keeps_float32": False}
        script = ROOT / "tests" / "peers" / "llamacpp_answers.py"
        subprocess.run([LLAMACPP, script], input=json.dumps(request), text=True, check=True, capture_output=True)
        with np.load(out) as saved:
            yield saved["0"]


def numbers(found: Comparison) -> dict[str, object]:
    return {
        "tokens": found.tokens,
        "kl": _digits(found.kl),
        "perplexity": _digits(found.perplexity),
        "reference_perplexity": _digits(found.reference_perplexity),
        "perplexity_percent": _digits(100 * (found.perplexity / found.reference_perplexity - 1)),
        "top1_agreement": _digits(found.top1_agreement),
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def write_tables(rows: list[dict[str, Any]], answers: list[dict[str, str]], note: str) -> None:
    """Write the tables of docs/quantization.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, section in (("quality", table(rows, note)), ("answers", answer_table(answers))):
        begin, end = f"<!-- {name}: made by benchmarks/real_weights.py -->\n", "<!-- end -->\n"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n" + section + "\n" + end + rest.partition(end)[2]
    DOCUMENT.write_text(text, encoding="utf-8")


def table(rows: list[dict[str, Any]], note: str) -> str:
    lines = [
        "| engine, weights | keys and values | size | KL | perplexity | same first choice |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = (
            f"{row['engine']}, `{row['weights']}`",
            row["cache"],
            f"{row['bytes'] / 1e6:.0f} MB",
            f"{row['kl']:.2g}",
            _percent(row["perplexity_percent"]),
            f"{100 * row['top1_agreement']:.1f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", note]) + "\n"


def _percent(value: float) -> str:
    """With a sign and two significant digits: +0.7 %, +35 %, +130 %."""
    return f"{float(f'{value:.2g}'):+,g} %"


def answer_table(answers: list[dict[str, str]]) -> str:
    lines = [f"| prompt | {' | '.join(f'`{name}`' for name in PROMPT_PRESETS)} |", "|---|---|---|---|"]
    for row in answers:
        cells = (" ".join(row[key].replace("|", "\\|").split()) for key in ("prompt", *PROMPT_PRESETS))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(work: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]], str]:
    """All rows, the answers side by side, and the note of the result."""
    if not MODEL.exists():
        sys.exit("the model is not there; run: make real")
    if not LLAMACPP.exists():
        sys.exit("llama.cpp is not there; run: make peers")
    if _sha256(MODEL) != MODEL_SHA256:
        sys.exit(f"{MODEL.name} is another file than the one that the figures are of; run: rm -r .venv-real; make real")
    with tempfile.TemporaryDirectory(prefix="real-", dir=work) as place:
        bench = Bench.prepare(Path(place))
        rows: list[dict[str, Any]] = []

        def add(row: dict[str, Any]) -> None:
            print(row, flush=True)
            rows.append(row)

        for name, kv_dtype in (("bfloat16", "bfloat16"), ("bfloat16", "int8"), *((name, "int8") for name in PRESETS)):
            if name != "int4-hf":  # 128 divides no row of this model
                add(bench.row(name, kv_dtype))
        add(bench.not_equalized("int4"))
        add(bench.calibrated("int4"))
        for row in bench.llamacpp_rows():
            add(row)
        tokens = rows[0]["tokens"]
        answers = bench.answers()
    note = (
        f"SmolLM2-135M-Instruct ({MODEL.name}, SHA-256 {MODEL_SHA256[:12]}), {tokens:,} predicted tokens in windows of "
        f"{WINDOW} of {described_texts()}. Reference: the file widened to float32, computed by transformers "
        f"in float32. KL(reference || row) in nats per token. {CAVEAT}"
    )
    return rows, answers, note
