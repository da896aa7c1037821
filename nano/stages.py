"""The long stages of MiniCPM-nano v2: data, two pilots, their comparison, and the stable phase.

    python nano/stages.py data            # a corpus for the pilots, and the tokenizer
    python nano/stages.py pilot 8m        # half an hour each; a repeated command continues
    python nano/stages.py pilot 12m
    python nano/stages.py compare         # held-out loss in both languages: runs/nano-v2/pilots.json
    python nano/stages.py stable 8m --background
    python nano/stages.py status | stop | pause | continue

All is kept under runs/nano-v2. Every stage computes at the lowest priority (the idle scheduling class where the system
has it). The stable phase is a run of `minicpm pretrain` at a constant rate with averaged weights: one epoch of a corpus
of its own, some 65 million tokens. It ends with a checkpoint when it is told to stop, and the same command
continues it to the same weights. `--round 2` goes on from the end of the first round with new data. While it runs
unpaused, benchmarks refuse to start: runs/training.pid names it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Threads that wait must not spin: the stages share the machine. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from minicpm.train.options import RunOptions

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
WORK = RUNS / "nano-v2"
PID_FILE = RUNS / "training.pid"  # benchmarks/costs.py reads it
STOP_FILE = WORK / "STOP"
SHAPE_FILES = HERE / "shapes"
SHAPES = ("8m", "12m", "28m")
PILOT_SHAPES = ("8m", "12m")
PILOT_PLANS, PILOT_SEED = 150_000, 1
STABLE_PLANS, STABLE_SEED = 600_000, 100  # the seed of round 1 is 101
# CPU time of a pilot for each of its threads: half an hour in which they compute three fifths of the time, so that
# both pilots take an hour on a machine that has other work.
PILOT_CPU_S = 0.6 * 1800
LENGTH, ROWS = 512, 8
EVAL_RECORDS = 150  # of each kind and language


def lowest_priority() -> None:
    """The idle scheduling class where there is one, and the highest nice value."""
    with contextlib.suppress(OSError):
        os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def make_data(out: Path, seed: int, plans: int) -> None:
    """Generate a corpus into `out`, once."""
    import generate

    if not (out / "report.json").is_file():
        generate.write(out, seed, plans)


def make_tokenizer() -> Path:
    """The bilingual tokenizer of 8,192 pieces, trained on the pilots' corpus, once."""
    folder = WORK / "tokenizer"
    if not folder.is_dir():
        script = [sys.executable, str(HERE / "make_tokenizer.py"), str(WORK / "pilot-data"), str(folder)]
        subprocess.run([*script, "--vocab-size", "8192"], check=True)
    return folder


def evaluation_file(language: str) -> Path:
    """Held-out records of every kind in one language, the first of each kind's file."""
    path = WORK / "evaluation" / f"{language}.jsonl.gz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        for source in sorted((WORK / "pilot-data" / "held-out").glob(f"*.{language}.jsonl.gz")):
            with gzip.open(source, "rt", encoding="utf-8") as file:
                lines += [line for line, _ in zip(file, range(EVAL_RECORDS))]
        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            packed.write("".join(lines).encode())
        partial.replace(path)
    return path


def options_for(data: Path, **changes: Any) -> RunOptions:
    """The options of pilots and stable phase: they differ in data and length only."""
    from bilingual.language import LANGUAGES
    from bilingual.records import KINDS

    from minicpm.train.options import OptimizerOptions, RunOptions

    total = sum(kind.percent for kind in KINDS.values()) * len(LANGUAGES)
    shares = [
        f"{data / f'{name}.{language}.jsonl.gz'}:{100 * kind.percent / total:g}%"
        for name, kind in KINDS.items()
        if kind.percent
        for language in LANGUAGES
    ]
    fields: dict[str, Any] = {
        "data": tuple(shares),
        "evaluation": tuple(str(evaluation_file(language)) for language in LANGUAGES),
        "train_on": "all",
        "length": LENGTH,
        "rows": ROWS,
        "micro_rows": max(1, ROWS // 2),  # less memory at the same steps
        "schedule": "wsd",
        "warmup_steps": 200,
        "optimizer": OptimizerOptions(name="muon", lr=0.01, weight_decay=0.1),
        "ema_decay": 0.999,
        "dtype": "float32",
        "save_every": 250,
        "eval_every": 500,
        "eval_batches": 16,
        "threads": min(2, os.cpu_count() or 1),
    }
    return RunOptions(**fields | changes)


def train(out: Path, options: RunOptions, should_stop: Callable[[], bool], **start: Any) -> bool:
    """Start the run in `out` or continue it; whether it is complete."""
    from minicpm.train.runs import Watcher, pretrain

    said_s = 0.0

    def stepped(record: Any) -> None:
        nonlocal said_s
        if time.monotonic() - said_s > 30:
            said_s = time.monotonic()
            speed = f"{record.tokens:,} tokens, {record.tokens_per_s:,.0f} tokens/s"
            print(f"step {record.step}  loss {record.loss:.4f}  {speed}", flush=True)

    watcher = Watcher(stepped=stepped, should_stop=should_stop, tell=lambda text: print(text, flush=True))
    return pretrain(out, options, resume=(out / "run.json").is_file(), watcher=watcher, **start).is_complete


def pilot(name: str) -> None:
    """Train a shape for half an hour by its CPU time, over all starts together, so that other work does not count."""
    run = WORK / f"pilot-{name}"
    clock = WORK / f"pilot-{name}.json"
    used = json.loads(clock.read_text()) if clock.is_file() else {"wall_s": 0.0, "cpu_s": 0.0}
    options = options_for(WORK / "pilot-data", steps=1_000_000, eval_every=200)
    allowed_s = PILOT_CPU_S * options.threads
    started, started_cpu = time.monotonic(), time.process_time()

    def spent() -> dict[str, float]:
        return {
            "wall_s": used["wall_s"] + time.monotonic() - started,
            "cpu_s": used["cpu_s"] + time.process_time() - started_cpu,
        }

    def should_stop() -> bool:
        return spent()["cpu_s"] > allowed_s or stop()

    if used["cpu_s"] > allowed_s:
        print(f"{run}: this pilot has had its time")
        return
    tokenizer = make_tokenizer()
    prepare_stores(run, options, name, tokenizer)
    started, started_cpu = time.monotonic(), time.process_time()  # encoding the corpus is not training
    stop = Stop()
    try:
        with announced(f"the pilot {name}"):
            train(run, options, should_stop, shape=SHAPE_FILES / f"{name}.json", tokenizer=tokenizer)
    finally:
        clock.write_text(json.dumps(spent()) + "\n")
    print(f"{run}: {spent()['wall_s']:.0f} s of wall-clock time, {spent()['cpu_s']:.0f} s of CPU time")


def prepare_stores(run: Path, options: RunOptions, name: str, tokenizer: Path) -> None:
    """Write the run's token stores before its clock starts; the run finds them."""
    from minicpm.chat import template_for
    from minicpm.tokenizer import Tokenizer
    from minicpm.train.batches import Share
    from minicpm.train.rendering import Renderer
    from minicpm.train.store import token_store

    vocab_size = json.loads((SHAPE_FILES / f"{name}.json").read_text())["vocab_size"]
    renderer = Renderer(Tokenizer.from_folder(tokenizer), template_for(tokenizer), vocab_size, options.train_on)
    for share in [*options.data, *options.evaluation]:
        token_store(Share.parse(share).path, run / "data", renderer, print)


def stable(name: str, number: int) -> None:
    """One round of the stable phase; the round after another continues from its end."""
    run = stable_run(number)
    data = WORK / f"stable-data-{number}"
    make_data(data, STABLE_SEED + number, STABLE_PLANS)
    start: dict[str, Any] = {"shape": SHAPE_FILES / f"{name}.json", "tokenizer": make_tokenizer()}
    if number > 1:
        if not (stable_run(number - 1) / "final").is_dir():
            raise SystemExit(f"round {number - 1} has not ended: continue it before round {number}")
        start = {"branch_from": stable_run(number - 1)}
    stop = Stop()
    if train(run, options_for(data), stop, **start):
        print(f"{run}/final holds the averaged weights in float32; the next round: --round {number + 1}")
    else:
        print(f"stopped with a checkpoint in {run}; the same command continues")


class Stop:
    """Whether the run was asked to stop: by SIGTERM, or by the stop file."""

    def __init__(self) -> None:
        self._is_asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._is_asked = True

    def __call__(self) -> bool:
        return self._is_asked or STOP_FILE.exists()


def stable_run(number: int) -> Path:
    return WORK / f"stable-{number}"


def start_ticks(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: with the id it names one process. None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """runs/training.pid names this process while it trains: "pid start-ticks what"."""
    running = announced_pid()
    if running is not None:
        raise SystemExit(f"process {running} is training already; stop it first: python nano/stages.py stop")
    RUNS.mkdir(exist_ok=True)
    STOP_FILE.unlink(missing_ok=True)  # of an earlier run
    partial = PID_FILE.with_name(f".{PID_FILE.name}.{os.getpid()}")
    partial.write_text(f"{os.getpid()} {start_ticks(os.getpid())} {what}\n")
    partial.replace(PID_FILE)
    try:
        yield
    finally:
        PID_FILE.unlink(missing_ok=True)


def announced_pid() -> int | None:
    """The process that runs/training.pid names, if it is there."""
    try:
        pid, ticks, *_ = PID_FILE.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if start_ticks(int(pid)) == ticks else None


def in_background(arguments: list[str]) -> None:
    """Start this script again, detached, with its output in runs/nano-v2/stable.log."""
    WORK.mkdir(parents=True, exist_ok=True)
    log = WORK / "stable.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"process {process.pid} computes in the background; {log}")


def ask(action: str) -> None:
    """Stop, pause or continue the announced process, or say how it is."""
    pid = announced_pid()
    if pid is None:
        print("nothing is training")
        return
    if action == "stop":
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # a paused process cannot take its leave
        print(f"process {pid} writes a checkpoint and ends; this takes up to a minute")
    elif action in ("pause", "continue"):
        os.kill(pid, signal.SIGSTOP if action == "pause" else signal.SIGCONT)
        print(f"process {pid}: {action}d")
    else:
        print(PID_FILE.read_text().strip())
        print(
            "".join((WORK / "stable.log").read_text().splitlines(keepends=True)[-3:])
            if (WORK / "stable.log").is_file()
            else ""
        )


def compare() -> None:
    """Held-out loss of the pilots' averaged and plain weights in both languages, by kind, at equal CPU time."""
    results = {name: measured(name) for name in PILOT_SHAPES if (WORK / f"pilot-{name}.json").is_file()}
    if not results:
        raise SystemExit("no pilot has ended yet: python nano/stages.py pilot 8m")
    for name, found in results.items():
        print(
            f"{name}: {found['parameters']:,} parameters, {found['steps']:,} steps, {found['tokens']:,} tokens, "
            f"{found['cpu_s'] / 3600:.2f} CPU hours, {found['wall_s'] / 3600:.2f} hours"
        )
    kinds = sorted({kind for found in results.values() for kind in found["averaged"]})
    print(
        "\nheld-out loss, nats per token, averaged weights\n" + f"{'':28}" + "".join(f"{name:>10}" for name in results)
    )
    for kind in kinds:
        print(f"{kind:28}" + "".join(f"{found['averaged'][kind]:10.4f}" for found in results.values()))
    for language in ("en", "zh"):
        means = {name: mean_of(found["averaged"], language) for name, found in results.items()}
        print(f"{'mean of kinds, ' + language:28}" + "".join(f"{mean:10.4f}" for mean in means.values()))
    best = min(results, key=lambda name: sum(mean_of(results[name]["averaged"], language) for language in ("en", "zh")))
    path = WORK / "pilots.json"
    path.write_text(json.dumps({"better": best, "date": time.strftime("%Y-%m-%d"), "pilots": results}, indent=1) + "\n")
    print(f"\nlower in the mean of both languages: {best}; {path}")


def mean_of(losses: dict[str, float], language: str) -> float:
    found = [loss for kind, loss in losses.items() if kind.endswith(f".{language}")]
    return sum(found) / len(found)


def measured(name: str) -> dict[str, Any]:
    """The losses of one pilot's newest checkpoint by kind and language, with what it had cost."""
    import torch

    from minicpm.chat import template_for
    from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM
    from minicpm.tokenizer import Tokenizer
    from minicpm.train import checkpoint
    from minicpm.train.averaging import WeightAverage
    from minicpm.train.rendering import Renderer

    torch.set_num_threads(min(2, os.cpu_count() or 1))
    run = WORK / f"pilot-{name}"
    folder = checkpoint.checkpoint_of(run)
    config = MiniCPMConfig.from_decoder_config(
        checkpoint.read_decoder_config(folder / "config.json").with_dtype("float32")
    )
    config._attn_implementation = "sdpa"
    model = MiniCPMForCausalLM(config).eval()
    average = WeightAverage(model, 0.999)
    state = checkpoint.read_state(folder)
    checkpoint.load_weights(folder, model, average)
    renderer = Renderer(
        Tokenizer.from_folder(run / "model"), template_for(run / "model"), config.vocab_size, "assistant"
    )
    report = json.loads((WORK / "pilot-data" / "report.json").read_text())
    held_out = WORK / "pilot-data" / "held-out"
    files = [held_out / f"{kind}.{language}.jsonl.gz" for kind in kinds_with(report) for language in ("en", "zh")]
    stores = WORK / "evaluation" / "stores"
    plain = {file.name.removesuffix(".jsonl.gz"): loss_of(model, file, renderer, stores) for file in files}
    with average.applied():
        averaged = {file.name.removesuffix(".jsonl.gz"): loss_of(model, file, renderer, stores) for file in files}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": state["step"],
        "tokens": state["tokens"],
        **json.loads((WORK / f"pilot-{name}.json").read_text()),
        "averaged": averaged,
        "plain": plain,
    }


def kinds_with(report: dict[str, Any]) -> list[str]:
    """The kinds of which something is held out."""
    return [kind for kind, found in report["kinds"].items() if found["held_out"]]


def loss_of(model: Any, file: Path, renderer: Any, stores: Path, batches: int = 4) -> float:
    """Nats per learned token over the first batches of a file: of conversations the answers, of texts all."""
    import torch

    from minicpm.train.batches import Mixture, Share
    from minicpm.train.losses import CROSS_ENTROPY
    from minicpm.train.store import token_store

    mixture = Mixture([token_store(file, stores, renderer)], [Share.parse(str(file))], rows=ROWS, length=LENGTH, seed=0)
    loss, weight = 0.0, 0.0
    with torch.no_grad():
        for _ in range(batches):
            batch = mixture.next_batch()
            loss += CROSS_ENTROPY(model, batch, torch.device("cpu")).loss.item()
            weight += CROSS_ENTROPY.weight(batch)
    return loss / weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("data", help="corpus of the pilots, and tokenizer")
    stages.add_parser("pilot", help="train a shape for half an hour").add_argument("shape", choices=SHAPES)
    stages.add_parser("compare", help="held-out loss of the pilots")
    long = stages.add_parser("stable", help="a round of the stable phase")
    long.add_argument("shape", choices=SHAPES)
    long.add_argument("--round", type=int, default=1, metavar="N", help="1, or the next after one that has ended")
    long.add_argument("--background", action="store_true", help="detached, with its output in a file")
    for action in ("status", "stop", "pause", "continue"):
        stages.add_parser(action, help=f"{action} what is training")
    options = parser.parse_args()
    if options.stage in ("status", "stop", "pause", "continue"):
        ask(options.stage)
        return
    if options.stage == "stable" and options.background:
        in_background(["stable", options.shape, "--round", str(options.round)])
        return
    lowest_priority()
    if options.stage == "data":
        make_data(WORK / "pilot-data", PILOT_SEED, PILOT_PLANS)
        make_tokenizer()
    elif options.stage == "pilot":
        pilot(options.shape)
    elif options.stage == "compare":
        compare()
    else:
        with announced("the stable phase of MiniCPM-nano v2"):
            stable(options.shape, options.round)


if __name__ == "__main__":
    main()
