"""Measures a MiniCPM-nano: how well it predicts held-out text, and what its greedy answers are worth.

    OMP_NUM_THREADS=1 python nano/measure.py FOLDER --held-out DIR [DIR ...] --json OUT.json

A kind of data is a file of a held-out folder; the folder of runs/nano/corpus/held-out/books.jsonl.gz calls it
"corpus/books". A quantized FOLDER runs on the numpy engine, with smaller samples; with --reference, the folder it was
made of, the two are compared on the same tokens and prompts. Samples are the first of a fixed random order, so a
larger one holds the smaller. What the numbers mean stands where they are computed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from corpus import read
from stories import NAMES

from minicpm import LLM
from minicpm.engine.backend import Row
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.llama import EMBEDDING
from minicpm.quant.format import PRESETS
from minicpm.train.records import parse_record
from minicpm.train.rendering import Document, Renderer

COUNTRIES = Path(__file__).with_name("countries.tsv")
STORY_TOKENS = 256
ANSWER_TOKENS = 64
FORWARD_TOKENS = 1024  # of one forward pass: 25 MB of logits
# Everyday prompts, and at the end some that a model of this size cannot do.
PROMPTS = (
    "Hello!",
    "Who are you?",
    "How are you today?",
    "What can you do?",
    "My name is Nina.",
    "What is the capital of France?",
    "What is 7 + 5?",
    "What is the opposite of hot?",
    "What do you call a baby dog?",
    "What color is the sky?",
    "How can I stay healthy?",
    "Tell me a joke.",
    "Tell me a short story about a brave rabbit named Max.",
    "What does the word bakery mean?",
    "Who wrote Hamlet?",
    "What is 348 times 27?",
)

Record = dict[str, Any]
HeldOut = dict[str, list[Record]]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sizes:
    """How much of every kind is measured: tokens for a loss, prompts for answers and for stories."""

    loss_tokens: int
    answers: int
    stories: int


DENSE_SIZES = Sizes(loss_tokens=12_000, answers=300, stories=200)
QUANTIZED_SIZES = Sizes(loss_tokens=2_000, answers=60, stories=24)


# --- words -------------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of Wilson for a share of `hits` among `n`; (0, 1) where there is nothing to count."""
    if n == 0:
        return 0.0, 1.0
    share, spread = hits / n, z * z / n
    centre = share + spread / 2
    width = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (centre - width) / (1 + spread)), min(1.0, (centre + width) / (1 + spread))


def share_of(flags: Iterable[bool]) -> Record:
    """A share with its interval and the number it is out of."""
    counted = list(flags)
    low, high = wilson(sum(counted), len(counted))
    return {"share": sum(counted) / len(counted) if counted else 0.0, "low": low, "high": high, "n": len(counted)}


def bare(text: str) -> str:
    """What two answers must agree in: letters without accents or case, digits and signs of arithmetic."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9+*=-]+", " ", plain.replace("'", "")).strip()


def says(text: str, part: str) -> bool:
    """Whether `part` stands in `text` as whole words."""
    return f" {bare(part)} " in f" {bare(text)} "


def last_number(text: str) -> int | None:
    """The last whole number of a text, where answers put the result: "9 - 4 = 5." says 5."""
    numbers = re.findall(r"-?\d+", text.replace(",", ""))
    return int(numbers[-1]) if numbers else None


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*", text.lower())


def repeated_4_grams(text: str) -> tuple[int, int]:
    """How many 4-grams of words occurred before in the text, and how many there are."""
    spoken = words(text)
    grams = [tuple(spoken[i : i + 4]) for i in range(len(spoken) - 3)]
    return len(grams) - len(set(grams)), len(grams)


def names_in(text: str) -> set[str]:
    """Names of a story: capitalised words inside a sentence, invented ones too, and those that stories.py gives."""
    inside = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
    return inside | (set(re.findall(r"[A-Z][a-z]+", text)) & set(NAMES))


# --- held-out data -----------------------------------------------------------------------------------------------


def held_out(folders: Sequence[Path]) -> HeldOut:
    """The records of every kind, in a fixed random order."""
    kinds: HeldOut = {}
    for folder in folders:
        paths = sorted(folder.glob("*.jsonl.gz"))
        if not paths:
            raise ValueError(f"{folder} holds no .jsonl.gz file; give a folder that corpus.py or grammar.py wrote")
        for path in paths:
            records = list(read(path))
            random.Random(0).shuffle(records)
            kinds[f"{folder.resolve().parent.name}/{path.name.removesuffix('.jsonl.gz')}"] = records
    return kinds


def question_of(record: Record) -> list[Record]:
    """The turns up to the last answer."""
    return list(record["messages"][:-1])


def reference_of(record: Record) -> str:
    """The answer that the data give."""
    return str(record["messages"][-1]["content"])


# --- loss --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A part of a document and what of it counts: of a text all but the end token, of a conversation the answers."""

    ids: tuple[int, ...]
    counts: tuple[bool, ...]  # as long as ids; never the first


def documents(
    records: Iterable[Record], renderer: Renderer, context: int, tokens: int
) -> Iterator[tuple[Record, list[Scored]]]:
    """Records, rendered as training does, until `tokens` count or three times as many are read.

    Texts longer than the context come in several parts.
    """
    counted = read_ = 0
    for record in records:
        parts = _parts(renderer.render(parse_record(record)), context)
        yield record, parts
        counted += sum(sum(part.counts) for part in parts)
        read_ += sum(len(part.ids) for part in parts)
        if counted >= tokens or read_ >= 3 * tokens:
            return


def _parts(document: Document, context: int) -> list[Scored]:
    if not document.is_text:
        return [Scored(document.ids[:context], document.is_trained[:context])]
    begin, body = document.ids[:1], document.ids[1:-1]
    pieces = [body[i : i + context - 1] for i in range(0, len(body), context - 1)]
    return [Scored(begin + piece, (False, *[True] * len(piece))) for piece in pieces]


def log_probabilities(llm: LLM, parts: Sequence[Scored]) -> Iterator[Floats]:
    """Per part (n, vocab): what was foreseen for each of its n tokens that count."""
    waiting: list[Scored] = []
    for part in parts:
        waiting.append(part)
        if sum(len(p.ids) for p in waiting) >= FORWARD_TOKENS:
            yield from _forward(llm, waiting)
            waiting = []
    if waiting:
        yield from _forward(llm, waiting)


def _forward(llm: LLM, parts: Sequence[Scored]) -> Iterator[Floats]:
    rows = [Row(llm.backend.new_sequence(len(part.ids)), part.ids[:-1], "all") for part in parts]
    for part, logits in zip(parts, llm.backend.forward(rows)):
        wanted = logits[np.array(part.counts[1:])]
        wanted = wanted - wanted.max(axis=1, keepdims=True)
        wanted -= np.log(np.exp(wanted).sum(axis=1, keepdims=True))
        yield wanted


@dataclass
class Loss:
    """Sums over the counted tokens of a kind; those against a reference stay 0 without one."""

    nats: float = 0.0
    tokens: int = 0
    records: int = 0
    utf8_bytes: int = 0
    reference_nats: float = 0.0
    kl_nats: float = 0.0
    agreed: int = 0

    def add(self, other: Loss) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def loss_of(llm: LLM, reference: LLM | None, records: Sequence[Record], renderer: Renderer, tokens: int) -> Loss:
    """Predict the counted tokens of records, with the reference as well where one is given."""
    chosen = list(documents(records, renderer, llm.context_length, tokens))
    parts = [part for _, of_record in chosen for part in of_record]
    bytes_ = sum(len(record["text"].encode()) for record, _ in chosen if "text" in record)
    loss = Loss(records=len(chosen), utf8_bytes=bytes_)
    others = log_probabilities(reference, parts) if reference else None
    for part, q in zip(parts, log_probabilities(llm, parts)):
        targets = np.array(part.ids)[np.array(part.counts)]
        at = np.arange(len(targets))
        loss.tokens += len(targets)
        loss.nats -= float(q[at, targets].sum(dtype=np.float64))
        if others is not None:
            p = next(others)
            loss.reference_nats -= float(p[at, targets].sum(dtype=np.float64))
            loss.kl_nats += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
            loss.agreed += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    return loss


def bits_per_byte(loss: Loss) -> Record:
    """Bits for a byte of UTF-8 text. The beginning-of-sequence token is given, and the end token is not counted."""
    return {
        "bits_per_byte": loss.nats / math.log(2) / loss.utf8_bytes,
        "nats_per_token": loss.nats / loss.tokens,
        "tokens": loss.tokens,
        "bytes": loss.utf8_bytes,
        "documents": loss.records,
    }


def answer_loss(loss: Loss) -> Record:
    """Nats for a token of the assistant's turns, the end token of each among them."""
    return {"nats_per_token": loss.nats / loss.tokens, "tokens": loss.tokens, "conversations": loss.records}


def difference(loss: Loss) -> Record:
    """How far the model is from its reference on the same tokens."""
    low, high = wilson(loss.agreed, loss.tokens)
    agreed = {"share": loss.agreed / loss.tokens, "low": low, "high": high, "n": loss.tokens}
    return {
        "kl_nats_per_token": loss.kl_nats / loss.tokens,
        "loss_gap_nats_per_token": (loss.nats - loss.reference_nats) / loss.tokens,
        "same_first_choice": agreed,
    }


# --- answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A greedy answer; `ended` if the model ended it within the limit."""

    text: str
    ended: bool


def answers_of(llm: LLM, conversations: Sequence[Any], max_tokens: int) -> list[Answer]:
    """Greedy answers, computed in the engine's batches, in the order of the conversations."""
    found = [Answer("", False)] * len(conversations)
    for piece in llm.stream_chats(conversations, temperature=0, repetition_penalty=1.0, max_tokens=max_tokens):
        if piece.completion is not None:
            found[piece.index] = Answer(piece.completion.text, piece.completion.finish_reason == "stop")
    return found


def is_exact(record: Record, text: str) -> bool:
    """The sentence of the data, apart from case, accents and punctuation."""
    return bare(text) == bare(reference_of(record))


def is_number_right(record: Record, text: str) -> bool:
    """The last number is the result; where the data's own sentence ends in another one, the whole answer must agree."""
    if last_number(reference_of(record)) != last_number(str(record["answer"])):
        return is_exact(record, text)
    return last_number(text) == last_number(str(record["answer"]))


def is_said(record: Record, text: str) -> bool:
    return says(text, str(record["answer"]))


# How the answers of a kind are judged: others by `is_exact`, and those to what nano cannot know ("chat_unknown") by
# whether they are any of that kind's answers, which all say so.
JUDGES = {"chat_arithmetic": is_number_right, "chat_countries": is_said}
LONGEST_ANSWER_WORDS = 25  # longer ones are stories


def measure_answers(llm: LLM, kinds: HeldOut, n: int) -> Record:
    """Share of right answers to what grammar.py asks, per kind; sums apart from other arithmetic."""
    shares: Record = {}
    for label, records in kinds.items():
        kind = label.split("/")[1]
        asked = [record for record in records if has_one_answer(record)]
        groups = {label: asked}
        if kind == "chat_arithmetic":
            groups = {
                f"{label}, sums and differences to 20": [record for record in asked if record["is_sum_to_20"]],
                f"{label}, all other": [record for record in asked if not record["is_sum_to_20"]],
            }
        honest = {bare(reference_of(record)) for record in asked} if kind == "chat_unknown" else set()
        for name, group in groups.items():
            chosen = group[:n]
            if not chosen:
                continue
            tell(f"answers: {name}, {len(chosen)}")
            said = answers_of(llm, [question_of(record) for record in chosen], ANSWER_TOKENS)
            judge = JUDGES.get(kind, is_exact)
            shares[name] = share_of(
                bare(answer.text) in honest if honest else judge(record, answer.text)
                for record, answer in zip(chosen, said)
            )
    return shares


def has_one_answer(record: Record) -> bool:
    """Whether grammar.py made the record, which gives one answer to a question, and the last answer is no story."""
    return "kind" in record and "text" not in record and len(words(reference_of(record))) <= LONGEST_ANSWER_WORDS


def united_nations() -> list[tuple[str, str]]:
    """The 193 members and their capitals, as the data name them."""
    with COUNTRIES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [(row["country"], row["capital"]) for row in rows if not row["note"] and row["country"] != "Vatican City"]


def measure_capitals(llm: LLM, n: int) -> Record:
    """Capitals of the members of the United Nations: the answer names the capital; it names the asked country."""
    capitals = united_nations()
    random.Random(0).shuffle(capitals)
    chosen = capitals[:n]
    tell(f"answers: capitals, {len(chosen)}")
    said = answers_of(llm, [f"What is the capital of {country}?" for country, _ in chosen], ANSWER_TOKENS)
    pairs = list(zip(chosen, said))
    return {
        "right": share_of(says(answer.text, capital) for (_, capital), answer in pairs),
        "country_repeated": share_of(says(answer.text, country) for (country, _), answer in pairs),
    }


def measure_stories(llm: LLM, kinds: HeldOut, n: int) -> tuple[Record, Record]:
    """What the stories asked for by held-out prompts are like, and what the data's own stories are like."""
    label = next((label for label, records in kinds.items() if any("asked" in record for record in records)), None)
    if label is None:
        return {}, {}
    chosen = [record for record in kinds[label] if "asked" in record][:n]
    tell(f"stories: {len(chosen)}")
    said = answers_of(llm, [question_of(record) for record in chosen], STORY_TOKENS)
    own = [Answer(reference_of(record), True) for record in chosen]
    return describe_stories(chosen, said), describe_stories(chosen, own)


def describe_stories(records: Sequence[Record], stories: Sequence[Answer]) -> Record:
    """Shares and means of stories. Repeated 4-grams: of all stories' 4-grams of words, those that their own story had
    before."""
    grams = [repeated_4_grams(story.text) for story in stories]
    asked = list(zip((record["asked"] for record in records), stories))
    return {
        "ended_before_256_tokens": share_of(story.ended for story in stories),
        "repeated_4_gram_rate": sum(again for again, _ in grams) / max(1, sum(total for _, total in grams)),
        "at_most_three_names": share_of(len(names_in(story.text)) <= 3 for story in stories),
        "has_asked_animal": share_of(says(s.text, want["animal"]) for want, s in asked if want.get("animal")),
        "has_asked_name": share_of(says(s.text, want["name"]) for want, s in asked if want.get("name")),
        "mean_words": sum(len(words(story.text)) for story in stories) / len(stories),
        "n": len(stories),
    }


# --- all of it ---------------------------------------------------------------------------------------------------


def measure(llm: LLM, kinds: HeldOut, sizes: Sizes, reference: LLM | None = None) -> Record:
    """All measurements of a model; with a reference also the difference to it."""
    renderer = Renderer(llm.tokenizer, llm.template, llm.backend.vocab_size)
    texts, chats = Loss(), Loss()
    report: Record = {"sizes": asdict(sizes), "bits_per_byte": {}, "answer_loss": {}}
    for label, records in kinds.items():
        is_text = "text" in records[0]
        tell(f"loss: {label}")
        loss = loss_of(llm, reference, records, renderer, sizes.loss_tokens)
        (texts if is_text else chats).add(loss)
        report["bits_per_byte" if is_text else "answer_loss"][label] = (bits_per_byte if is_text else answer_loss)(loss)
    if texts.tokens:
        report["bits_per_byte"]["all"] = bits_per_byte(texts)
    if chats.tokens:
        report["answer_loss"]["all"] = answer_loss(chats)
    if reference is not None:
        sums = {"texts": texts, "answers": chats}
        report["difference"] = {name: difference(loss) for name, loss in sums.items() if loss.tokens}
    report["answers"] = measure_answers(llm, kinds, sizes.answers)
    report["capitals"] = measure_capitals(llm, sizes.answers)
    report["stories"], report["stories_of_the_data"] = measure_stories(llm, kinds, sizes.stories)
    return report


def sample_answers(llm: LLM) -> list[Record]:
    """Greedy answers to the fixed prompts."""
    said = answers_of(llm, PROMPTS, STORY_TOKENS)
    return [{"prompt": prompt, "answer": answer.text} for prompt, answer in zip(PROMPTS, said)]


def describe_model(folder: Path, llm: LLM) -> Record:
    """What is in the folder: shape, number of parameters, how and in how many bytes the weights are stored."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        config, packings, nbytes = checkpoint.config, checkpoint.packings, checkpoint.nbytes
    linear = packings.get("model.layers.0.self_attn.q_proj.weight")
    presets = [p.name for p in PRESETS.values() if (p.linear, p.outer) == (linear, packings.get(EMBEDDING))]
    return {
        "folder": folder.resolve().name,
        "weights": (presets or ["quantized"])[0] if packings else config.dtype,
        "parameters": config.num_parameters(),
        "weight_bytes": nbytes,
        "folder_bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        "backend": llm.backend.name,
        "shape": {
            name: getattr(config, name)
            for name in (
                "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
                "num_key_value_heads", "head_dim", "max_position_embeddings", "scale_emb", "scale_depth",
                "dim_model_base", "tie_word_embeddings",
            )
        },
    }  # fmt: skip


def open_model(folder: Path, threads: int) -> LLM:
    """A quantized folder on the numpy engine, any other on torch in float32, so that only stored weights matter."""
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        is_quantized = bool(checkpoint.packings)
    if is_quantized:
        return LLM(folder, backend="numpy", max_batch=32)
    return LLM(folder, backend="torch", dtype="float32", device="cpu", threads=threads, max_batch=32)


def rounded(value: Any) -> Any:
    """The same with six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def summary(report: Record) -> str:
    """The main numbers, a line each."""
    lines = [f"{label:<44} {row['bits_per_byte']:.3f} bits/byte" for label, row in report["bits_per_byte"].items()]
    lines += [f"{label:<44} {row['nats_per_token']:.3f} nats/token" for label, row in report["answer_loss"].items()]
    shares = {**report["answers"], **{f"capitals {key}": row for key, row in report["capitals"].items()}}
    shares |= {f"stories {key}": row for key, row in report["stories"].items()}
    for name, row in shares.items():
        shown = (
            f"{row:.3f}"
            if not isinstance(row, dict)
            else (f"{100 * row['share']:.1f} %  ({100 * row['low']:.0f} to {100 * row['high']:.0f}) of {row['n']}")
        )
        lines.append(f"{name:<44} {shown}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a model folder, quantized or not")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--without", nargs="+", default=[], metavar="KIND", help="leave out, e.g. 'corpus/chat_*'")
    parser.add_argument("--reference", type=Path, metavar="DENSE", help="the folder that MODEL was quantized from")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--limit", type=int, metavar="N", help="a quick look: N prompts and 20 N tokens of each kind")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    kinds = held_out(args.held_out)
    kinds = {label: kinds[label] for label in kinds if not any(fnmatch(label, left_out) for left_out in args.without)}
    llm = open_model(args.model, args.threads)
    sizes = DENSE_SIZES if llm.backend.name == "torch" else QUANTIZED_SIZES
    if args.limit:
        sizes = Sizes(20 * args.limit, args.limit, args.limit)
    report: Record = {"model": describe_model(args.model, llm), "is_quick_look": args.limit is not None}
    if args.reference:
        reference = open_model(args.reference, args.threads)
        report |= measure(llm, kinds, sizes, reference)
        report["reference"] = {"model": describe_model(args.reference, reference), **measure(reference, kinds, sizes)}
    else:
        report |= measure(llm, kinds, sizes)
    report["samples"] = sample_answers(llm)
    report = rounded(report)
    print(summary(report))
    if args.json:
        partial = args.json.with_name(f".{args.json.name}.partial")
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(args.json)


if __name__ == "__main__":
    main()
