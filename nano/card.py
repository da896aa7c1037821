"""Writes the model card of a MiniCPM-nano from what measure.py and the training runs wrote; no number is typed.

    python nano/card.py MEASURED.json --quantized INT4.json INT8.json --runs RUN [RUN ...] --out README.md

MEASURED.json is of the unquantized model, the quantized ones were measured with --reference. The card ships with the
smallest quantized model whose loss gap reaches its goal. It calls the model a toy as long as one
of GOALS is missed or not measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus import CONVERSATIONS, TEXTS

from minicpm.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
SOURCES = Path(__file__).with_name("sources.json")
SMOOTHED_STEPS = 50  # whose mean is a run's final loss

Json = dict[str, Any]


# --- goals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A number to reach before the model may be called more than a toy, and where a report has what was measured."""

    name: str
    limit: float
    is_lower_better: bool
    is_share: bool
    find: Callable[[Json], Any]  # a number, a share with its interval, or None where it was not measured

    def measured(self, report: Json) -> float | None:
        found = self.find(report)
        return found["share"] if isinstance(found, dict) else found

    def is_reached(self, report: Json) -> bool:
        value = self.measured(report)
        if value is None:
            return False
        return value <= self.limit if self.is_lower_better else value >= self.limit


def _at(*keys: str) -> Callable[[Json], Any]:
    def find(report: Json) -> Any:
        found: Any = report
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    return find


def _answers(ending: str) -> Callable[[Json], Any]:
    """The share of the only kind of answers whose label ends so."""
    return lambda report: next((row for label, row in report["answers"].items() if label.endswith(ending)), None)


GOALS = (
    Goal("Loss of held-out answers, nats per token", 1.0, True, False, _at("answer_loss", "all", "nats_per_token")),
    Goal("Small talk, identity, simple facts: exact answers", 0.9, False, True, _answers("chat_small")),
    Goal("Capitals of all UN members", 0.6, False, True, _at("capitals", "right")),
    Goal("Sums and differences up to 20", 0.8, False, True, _answers("sums and differences to 20")),
    Goal("Stories that end before 256 tokens", 0.95, False, True, _at("stories", "ended_before_256_tokens")),
    Goal("Repeated 4-grams in stories", 0.03, True, True, _at("stories", "repeated_4_gram_rate")),
)
GAP = Goal(
    "Loss gap of the shipped file, nats per token", 0.03, True, False,
    _at("difference", "answers", "loss_gap_nats_per_token"),
)  # fmt: skip


def shipped(quantized: Sequence[Json]) -> Json | None:
    """The smallest file whose loss gap reaches its goal, else the one with the smallest gap."""
    good = [report for report in quantized if GAP.is_reached(report)]
    if good:
        return min(good, key=lambda report: report["model"]["weight_bytes"])
    return min(quantized, key=lambda report: report["difference"]["answers"]["loss_gap_nats_per_token"], default=None)


def is_toy(measured: Json, quantized: Sequence[Json]) -> bool:
    """Whether a goal is missed or was not measured."""
    chosen = shipped(quantized)
    return not (all(goal.is_reached(measured) for goal in GOALS) and chosen is not None and GAP.is_reached(chosen))


# --- numbers and tables ------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A number as the card writes it: whole ones with commas, others with four significant digits."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def with_interval(row: Mapping[str, Any]) -> list[str]:
    """The cells of a share: itself, its interval, and the number it is out of."""
    return [percent(row["share"]), f"{percent(row['low'])} to {percent(row['high'])}", shown(row["n"])]


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB ({nbytes:,} bytes)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers stand right."""
    rows = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in rows]
    numeric = [all(row[i][:1].isdigit() or row[i][:1] == "-" for row in rows) for i in range(len(head))]
    lines = [head, ["---:" if is_number else "---" for is_number in numeric], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named(key: str) -> str:
    """A key of a report as words."""
    return key.replace("_", " ")


# --- sections ----------------------------------------------------------------------------------------------------

HEADER = """---
license: apache-2.0
language:
- en
library_name: minicpm
pipeline_tag: text-generation
tags:
- minicpm
- small-language-model
- stories
- cpu
---
"""


def introduction(measured: Json, quantized: Sequence[Json]) -> str:
    parameters = f"{measured['model']['parameters'] / 1e6:.1f} million"
    text = (
        f"# MiniCPM-nano\n\nA member of the MiniCPM family with {parameters} parameters, trained from random weights "
        "by the `minicpm` package alone and shipped inside it: `minicpm chat` talks to it without a download, without "
        "torch, on any CPU. It was taught to tell short stories for children, to make small talk, to name capitals and "
        "to add small numbers, in English. It exists so that every part of the package has a real model to run on.\n\n"
    )
    if is_toy(measured, quantized):
        text += (
            "**It is a toy**: not all of the goals set for it are reached (table below). "
            "Do not rely on anything it says.\n"
        )
    else:
        text += "It reaches the goals set for it (table below), which are modest: do not rely on anything it says.\n"
    return text + '\n    minicpm chat\n    minicpm run "Once upon a time"'


def goals(measured: Json, quantized: Sequence[Json]) -> str:
    chosen = shipped(quantized)
    rows = [_goal_row(goal, measured) for goal in GOALS] + [_goal_row(GAP, chosen or {})]
    return (
        "## Measured against its goals\n\nGreedy answers of the unquantized weights to held-out prompts; only those "
        "for capitals are not new to it, since they ask for facts that it was taught. Intervals are Wilson's, 95 %.\n\n"
        + table(("", "measured", "interval", "out of", "goal", ""), rows)
    )


def _goal_row(goal: Goal, report: Json) -> list[str]:
    found = goal.find(report) if report else None
    write = percent if goal.is_share else shown
    cells = (
        with_interval(found) if isinstance(found, dict) else [shown(None) if found is None else write(found), "", ""]
    )
    sign = "at most" if goal.is_lower_better else "at least"
    verdict = "pass" if report and goal.is_reached(report) else "miss"
    return [goal.name, *cells, f"{sign} {write(goal.limit)}", verdict]


def samples(measured: Json) -> str:
    rows = [(sample["prompt"], sample["answer"] or "(nothing)") for sample in measured["samples"]]
    return "## What it says\n\nGreedy, the same prompts for every version, none left out.\n\n" + table(
        ("prompt", "answer"), rows
    )


def shape(measured: Json) -> str:
    model = measured["model"]
    rows = [
        ("parameters", shown(model["parameters"])),
        ("weights", f"{model['weights']}, {shown(model['weight_bytes'])} bytes"),
    ]
    rows += [(f"`{key}`", shown(value)) for key, value in model["shape"].items()]
    return (
        "## Shape\n\nThe architecture of MiniCPM-2B with its muP scalings, nothing added; the tokenizer is a "
        "SentencePiece BPE with byte fallback, the chat template `<用户>...<AI>...`.\n\n" + table(("", ""), rows)
    )


def measurements(measured: Json) -> str:
    parts = [
        "## All measurements\n\nOf the unquantized weights in float32 arithmetic. Kinds of data are named by origin "
        "and file. A text's beginning-of-sequence token is given and its end token not counted; the "
        "loss of answers counts the assistant's tokens with the end token of each turn. `all` sums the tokens of the "
        f"kinds, of which each gives at most about {shown(measured['sizes']['loss_tokens'])}. Answers are of at most "
        f"{shown(measured['sizes']['answers'])} prompts of a kind, stories of {shown(measured['sizes']['stories'])}."
    ]
    for key, title in (("bits_per_byte", "Held-out texts"), ("answer_loss", "Held-out conversations")):
        rows = [[label, *map(shown, row.values())] for label, row in measured[key].items()]
        if rows:
            columns = next(iter(measured[key].values()))
            parts.append(f"### {title}\n\n" + table(("", *map(named, columns)), rows))
    rows = [[label, *with_interval(row)] for label, row in measured["answers"].items()]
    rows += [[f"capitals: {named(key)}", *with_interval(row)] for key, row in measured["capitals"].items()]
    parts.append(
        "### Right answers\n\nAn answer is right if it is the data's but for case and punctuation; in arithmetic, if "
        "its last number is the result; for countries, if it has the name asked for; for what the model cannot know "
        "(chat_unknown), if it says so in any of the taught ways. The capitals are those of all UN members, each asked "
        'for as "What is the capital of X?".\n\n' + table(("", "share", "interval", "out of"), rows)
    )
    if measured["stories"]:
        parts.append(_stories(measured["stories"], measured["stories_of_the_data"]))
    return "\n\n".join(parts)


def _stories(own: Json, of_data: Json) -> str:
    rows = []
    for key, row in own.items():
        cells = with_interval(row) if isinstance(row, dict) else [_plain(key, row), "", ""]
        other = of_data[key]
        rows.append([named(key), *cells, percent(other["share"]) if isinstance(other, dict) else _plain(key, other)])
    return (
        "### Stories\n\nAsked for by held-out prompts, cut at 256 tokens. Repeated 4-grams are those of all 4-grams of "
        "words that their own story had before. The last column is what the data's own stories are like.\n\n"
        + table(("", "measured", "interval", "out of", "data"), rows)
    )


def _plain(key: str, value: float) -> str:
    return percent(value) if key.endswith("rate") else shown(value)


def quantization(quantized: Sequence[Json]) -> str:
    chosen = shipped(quantized)
    if chosen is None:
        return ""
    reached = "The smallest preset whose loss gap reaches the goal" if GAP.is_reached(chosen) else "No preset reaches "
    reached += " ships" if GAP.is_reached(chosen) else "the goal of the loss gap; the one with the smallest gap ships"
    head = ("", *(report["model"]["weights"] for report in quantized))
    rows = [
        ["weights", *(megabytes(report["model"]["weight_bytes"]) for report in quantized)],
        ["whole folder", *(megabytes(report["model"]["folder_bytes"]) for report in quantized)],
    ]
    for part in quantized[0]["difference"]:
        for key in quantized[0]["difference"][part]:
            values = (report["difference"][part][key] for report in quantized)
            rows.append([f"{part}: {named(key)}", *(_difference_cell(value) for value in values)])
    for path in _share_paths(quantized[0]):
        cells = (_compared(_at(*path)(report), _at("reference", *path)(report)) for report in quantized)
        rows.append([" ".join(map(named, path)), *cells])
    return (
        "## Quantization\n\nRounded to nearest by `minicpm quantize`, each group's scale searched for the smallest "
        f"squared error. {reached}: **{chosen['model']['weights']}**. KL, loss gap and first choice compare with the "
        "unquantized weights on the same held-out tokens; shares are of a smaller sample, beside what the unquantized "
        "weights reach on the same prompts.\n\n" + table(head, rows)
    )


def _difference_cell(value: Any) -> str:
    return f"{percent(value['share'])} of {shown(value['n'])} tokens" if isinstance(value, dict) else shown(value)


def _share_paths(report: Json) -> Iterator[tuple[str, str]]:
    for section in ("answers", "capitals", "stories"):
        for key, row in report[section].items():
            if isinstance(row, dict):
                yield section, key


def _compared(row: Json | None, before: Json | None) -> str:
    if row is None or before is None:
        return shown(None)
    return f"{percent(row['share'])} of {shown(row['n'])} (unquantized {percent(before['share'])})"


# --- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A training run as its folder tells of it."""

    name: str
    options: Json  # run.json
    records: list[Json]  # metrics.jsonl

    @classmethod
    def read(cls, folder: Path) -> Run:
        options = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return cls(_relative(folder), options, read_metrics(folder / "metrics.jsonl"))

    @property
    def first_step(self) -> int:
        return min((record["step"] for record in self.records), default=1)

    def before(self, step: int) -> Run:
        """The run as it was when another branched off it."""
        return Run(self.name, self.options, [record for record in self.records if record["step"] < step])

    @property
    def steps(self) -> list[Json]:
        return [record for record in self.records if "loss" in record]

    @property
    def step_tokens(self) -> list[int]:
        """Tokens of each step; of a branch's first step, whose count goes on from another run, those of the next."""
        totals = [record["tokens"] for record in self.steps]
        later = [after - before for before, after in itertools.pairwise(totals)]
        return [*(later[:1] or totals[:1]), *later]

    @property
    def hours(self) -> float:
        """Of computing: pauses and evaluations are not in it."""
        return sum(n / r["tokens_per_s"] for n, r in zip(self.step_tokens, self.steps)) / 3600

    @property
    def final_loss(self) -> float:
        last = [record["loss"] for record in self.steps[-SMOOTHED_STEPS:]]
        return sum(last) / len(last)

    @property
    def eval_loss(self) -> float | None:
        return next((record["eval_loss"] for record in reversed(self.records) if "eval_loss" in record), None)

    @property
    def start(self) -> str:
        return {"scratch": "random weights"}.get(self.options["start"], _relative(Path(self.options["from"])))


def lineage(folders: Sequence[Path]) -> list[Run]:
    """Runs in the order of training, each up to where the next branched off it."""
    runs = [Run.read(folder) for folder in folders]
    for i, (run, after) in enumerate(itertools.pairwise(runs)):
        if after.options["start"] == "branch":
            runs[i] = run.before(after.first_step)
    return runs


def _relative(path: Path) -> str:
    """A path as seen from the repository; of one outside only the last name, so that no machine's paths are told."""
    path = path if path.is_absolute() else Path.cwd() / path
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def training(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    head = (
        "run",
        "starts from",
        "steps",
        "tokens",
        "rows x length",
        "rate",
        "learns",
        "training loss",
        "evaluation loss",
        "hours",
    )
    rows = [
        [
            run.name,
            run.start,
            shown(len(run.steps)),
            f"{sum(run.step_tokens) / 1e6:.1f} M",
            f"{run.options['rows']} x {run.options['length']}",
            _rate(run.options),
            f"{run.options['train_on']} tokens",
            f"{run.final_loss:.3f}",
            "not measured" if run.eval_loss is None else f"{run.eval_loss:.3f}",
            f"{run.hours:.1f}",
        ]
        for run in runs
    ]
    parts = [
        "## Training\n\nBy the package's own loop, in these runs, one behind the other. The training loss is the mean "
        f"of the last {SMOOTHED_STEPS} steps; runs learn different tokens, so compare within one. Each run draws its "
        "curve into `loss.svg` beside its `metrics.jsonl`. Hours are of computing.\n\n" + table(head, rows),
        "What each run learns from, as shares of its tokens, or as the times that a file is seen in an epoch:\n\n"
        + table(("run", "data"), [[run.name, ", ".join(map(_share, run.options["data"]))] for run in runs]),
    ]
    return "\n\n".join(parts)


def _rate(options: Json) -> str:
    optimizer = options["optimizer"]
    decay = f", {options['decay_steps']:,} of decay" if options["decay_steps"] else ""
    warm = f", {options['warmup_steps']:,} of warm-up" if options["warmup_steps"] else ""
    return f"{optimizer['name']} {optimizer['lr']:g}, {options['schedule']}{warm}{decay}"


def _share(text: str) -> str:
    """What is trained on as measure.py names it: "runs/nano/corpus/books.jsonl.gz:6%" is "corpus/books 6 %"."""
    path, _, share = text.partition(":")
    name = f"{Path(path).parent.name}/{Path(path).name.split('.')[0]}"
    if share.endswith("%"):
        return f"{name} {share[:-1]} %"
    return f"{name} x {share or 1}"


REBUILDING = """## Building it again

In a checkout of the repository, CORPUS being the folder with the collected sources (pretrain.jsonl.gz, sft.jsonl.gz):

```sh
PYTHON=.venv/bin/python nano/train.sh CORPUS runs/nano
```

makes the data, trains all phases, quantizes, measures and writes this card; it goes on where it was stopped. In this
version the phase stable2 learned from a draft of the generated data (grammar-1), which the recipe replaces by the final
ones, and phases were cut by the clock, so a rebuilt model will not be this one to the last bit."""


def sources(runs: Sequence[Run]) -> str:
    """The sources of the kinds that the runs learned from; all of them where no run is given."""
    kinds = {Path(data.partition(":")[0]).name.split(".")[0] for run in runs for data in run.options["data"]}
    tags = {tag for kind in kinds for tag in (*TEXTS.get(kind, ()), *CONVERSATIONS.get(kind, ()))}
    entries = json.loads(SOURCES.read_text(encoding="utf-8"))
    used = [entry for entry in entries if not runs or tags & set(entry["tags"])]
    rows = [[e["name"], e["from"], e["licence"], "yes" if e["is_share_alike"] else "no", e["gives"]] for e in used]
    alike = [entry["name"] for entry in used if entry["is_share_alike"]]
    text = "## Data\n\n" + table(("source", "from", "licence", "share-alike", "gives"), rows)
    if alike:
        text += (
            f"\n\nShare-alike terms of {' and '.join(alike)} hold for the data; the weights are released under "
            "Apache-2.0 with this attribution. Every record keeps its source, so a build without them is one filter "
            "away."
        )
    return text + (
        "\n\nRecords with sexual, slur, drug, self-harm or violence words were removed, as were e-mail addresses, URLs "
        "and telephone numbers. Two in a hundred documents and prompts, chosen by a hash of their text, were never "
        "trained on."
    )


LIMITS = """## Limits

- It knows what its small vocabulary of plots, facts and phrases taught it. Trivia, arithmetic with larger numbers, long
  reasoning, code, and anything open-ended come out wrong, in fluent sentences.
- It was trained on English. Other languages pass through the tokenizer as bytes; it cannot answer in them.
- It forgets: what was said a few turns ago, and at times a name in the middle of a story.
- The context holds 2,048 tokens, but most of training was on much shorter rows.

## Bias and safety

- Stories follow the customs of the children's books they were learned from, some more than a hundred years old: their
  families, roles and peoples are not today's. The countries of its facts have the names and capitals of one data set.
- It was not aligned by preferences and has no filter. Its data were filtered by a list of words, which is no guarantee.
- It says false things without a sign of doubt. It is not for children without an adult, nor for advice of any kind."""


def card(measured: Json, quantized: Sequence[Json] = (), runs: Sequence[Run] = ()) -> str:
    """The whole card."""
    sections = (
        HEADER + introduction(measured, quantized),
        goals(measured, quantized),
        samples(measured),
        shape(measured),
        training(runs),
        sources(runs),
        quantization(quantized),
        measurements(measured),
        LIMITS,
        REBUILDING,
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def read_report(path: Path) -> Json:
    """A report of measure.py that can stand in a card; ValueError for a quick look."""
    report: Json = json.loads(path.read_text(encoding="utf-8"))
    if report.get("is_quick_look"):
        raise ValueError(f"{path} is a quick look (--limit); measure again without --limit for the card")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measured", type=Path, help="JSON of measure.py for the unquantized model")
    parser.add_argument("--quantized", type=Path, nargs="+", default=[], metavar="JSON")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="RUN", help="in the order of training")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    quantized = [read_report(path) for path in args.quantized]
    text = card(read_report(args.measured), quantized, lineage(args.runs))
    partial = args.out.with_name(f".{args.out.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(args.out)


if __name__ == "__main__":
    main()
