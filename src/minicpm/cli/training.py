"""What `pretrain` and `finetune` share: the options of a run, and its live line."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from minicpm.cli.output import is_terminal, talk
from minicpm.cli.progress import format_duration
from minicpm.errors import MissingExtra, counted
from minicpm.train.options import OPTIMIZERS, PRECISIONS, SCHEDULES, TRAIN_ON, OptimizerOptions, RunOptions

if TYPE_CHECKING:
    from minicpm.train.loop import StepRecord
    from minicpm.train.runs import Finished, Watcher

LIVE_INTERVAL_S, PLAIN_INTERVAL_S = 0.2, 10.0
RATE_WEIGHT = 0.1  # of the newest step in the shown rate


def require_torch() -> None:
    """MissingExtra where there is no torch."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise MissingExtra("training", "torch")


def add_run_arguments(parser: argparse.ArgumentParser, defaults: RunOptions) -> None:
    """Options of a run, with the defaults of the verb."""
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE[:N|:P%]", help=DATA_HELP)
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run; the model comes to RUN/final")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    parser.add_argument("--eval", nargs="+", default=[], metavar="FILE", help="data that are measured, never trained")
    parser.add_argument("--json", action="store_true", help="print what came of it as one JSON object")
    _add_batch_arguments(parser.add_argument_group("batches"), defaults)
    _add_rate_arguments(parser.add_argument_group("learning rate"), defaults)
    _add_machine_arguments(parser.add_argument_group("machine and files"), defaults)


DATA_HELP = (
    "training files: .jsonl, .jsonl.gz or .json with messages, text and the like; FILE:15 is seen 15 times an epoch, "
    "FILE:40%% makes 40 per cent of the tokens"
)


def _add_batch_arguments(group: argparse._ArgumentGroup, defaults: RunOptions) -> None:
    group.add_argument(
        "--train-on",
        choices=TRAIN_ON,
        default=defaults.train_on,
        help=f"which tokens of conversations are learned (default: {defaults.train_on}); of texts it is always all",
    )
    _add_number(group, "length", int, defaults.length, "tokens a row")
    _add_number(group, "rows", int, defaults.rows, "rows a batch")
    _add_number(group, "micro-rows", int, defaults.micro_rows, "rows computed at once; lower it for less memory")
    group.add_argument("--steps", type=int, default=0, metavar="N", help="steps to train (default: --epochs)")
    _add_number(group, "epochs", float, defaults.epochs, "times the data, counted in tokens")
    _add_number(group, "seed", int, defaults.seed, "of the data order and of new weights")


def _add_rate_arguments(group: argparse._ArgumentGroup, defaults: RunOptions) -> None:
    _add_number(group, "lr", float, defaults.optimizer.lr, "base rate; matrices get lr * dim_model_base / hidden_size")
    group.add_argument("--no-mup", action="store_true", help="the same rate for all parameters")
    group.add_argument(
        "--schedule", choices=SCHEDULES, default=defaults.schedule, help=f"(default: {defaults.schedule})"
    )
    _add_number(group, "warmup-steps", int, defaults.warmup_steps, "steps of rising rate")
    _add_number(group, "decay-steps", int, defaults.decay_steps, "last steps, in which wsd halves the rate five times")
    group.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=defaults.optimizer.name, help=f"(default: {defaults.optimizer.name})"
    )
    _add_number(group, "weight-decay", float, defaults.optimizer.weight_decay, "of matrices and embedding")
    _add_number(group, "clip", float, defaults.clip_norm, "largest norm of the gradient")
    _add_number(
        group,
        "ema-decay",
        float,
        defaults.ema_decay,
        "decay of an exponential moving average of the weights, which the final model then holds; 0: none",
    )


def _add_machine_arguments(group: argparse._ArgumentGroup, defaults: RunOptions) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    _add_number(group, "threads", int, defaults.threads, "CPU threads; 0 leaves it to torch")
    group.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="bf16 computes in bfloat16 where the machine can (auto)"
    )
    group.add_argument("--dtype", default="auto", help="of the final weights: float32, bfloat16 or float16")
    _add_number(group, "save-every", int, defaults.save_every, "steps between checkpoints; 0: only the last")
    _add_number(group, "eval-every", int, defaults.eval_every, "steps between evaluations; 0: never")
    _add_number(group, "eval-batches", int, defaults.eval_batches, "batches of an evaluation")


def _add_number(group: argparse._ArgumentGroup, name: str, kind: type, default: float, explanation: str) -> None:
    metavar = "N" if kind is int else "X"
    shown = f"{explanation} (default: {default:g})"
    group.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=shown)


def run_options(args: argparse.Namespace) -> RunOptions:
    """The run that the arguments describe; ValueError when a value is out of range."""
    return RunOptions(
        data=tuple(args.data),
        evaluation=tuple(args.eval),
        train_on=args.train_on,
        length=args.length,
        rows=args.rows,
        micro_rows=args.micro_rows,
        steps=args.steps,
        epochs=args.epochs,
        schedule=args.schedule,
        warmup_steps=args.warmup_steps,
        decay_steps=args.decay_steps,
        optimizer=OptimizerOptions(
            name=args.optimizer, lr=args.lr, weight_decay=args.weight_decay, is_mup=not args.no_mup
        ),
        clip_norm=args.clip,
        ema_decay=args.ema_decay,
        precision=args.precision,
        dtype=args.dtype,
        save_every=args.save_every,
        eval_every=args.eval_every,
        eval_batches=args.eval_batches,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
    )


def report(done: Finished, as_json: bool) -> int:
    """Report the result of a run, as one line or one JSON object on stdout; the exit status."""
    if not done.is_complete:
        talk(f"stopped at step {done.steps} with a checkpoint; the same command with --resume continues")
        return 128 + signal.SIGTERM
    if as_json:
        record = {"model": str(done.model), "steps": done.steps, "tokens": done.tokens}
        print(json.dumps({**record, "trained_tokens": done.trained_tokens}, indent=2))
    else:
        steps, tokens = counted(done.steps, "step"), counted(done.tokens, "token")
        talk(f"{done.model}: {steps}, {tokens}, {done.trained_tokens:,} of them trained")
    return 0


class LiveLine:
    """Step, loss, rate and time left on stderr: one line that is redrawn, or a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._is_live = is_terminal(sys.stderr)
        self._last_step = 0
        self._drawn_s = time.monotonic()
        self._tokens_per_s = self._step_s = 0.0
        self._stepped_s = time.monotonic()
        self._has_open_line = False
        self._is_asked_to_stop = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watcher]:
        """Callbacks of a run that ends with a checkpoint at the first SIGTERM, and at once at the second."""
        from minicpm.train.runs import Watcher

        def stop(*_: object) -> None:
            self._is_asked_to_stop = True
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield Watcher(
                started=self.started, stepped=self.stepped, tell=self.tell, should_stop=lambda: self._is_asked_to_stop
            )
        finally:
            signal.signal(signal.SIGTERM, before)

    def started(self, first_step: int, last_step: int) -> None:
        self._last_step = last_step
        self._stepped_s = time.monotonic()
        self.tell(f"training from step {first_step} to {last_step}")

    def stepped(self, record: StepRecord) -> None:
        now_s = time.monotonic()
        self._step_s = _smoothed(self._step_s, now_s - self._stepped_s)
        self._tokens_per_s = _smoothed(self._tokens_per_s, record.tokens_per_s)
        self._stepped_s = now_s
        is_last = record.step == self._last_step
        if is_last or now_s - self._drawn_s >= (LIVE_INTERVAL_S if self._is_live else PLAIN_INTERVAL_S):
            self._drawn_s = now_s
            self._draw(self._text(record), is_last)

    def tell(self, text: str) -> None:
        if self._has_open_line:
            print(file=sys.stderr)
            self._has_open_line = False
        talk(text)

    def _text(self, record: StepRecord) -> str:
        left = format_duration((self._last_step - record.step) * self._step_s)
        return (
            f"step {record.step}/{self._last_step}  loss {record.loss:.4f}  lr {record.lr:.2e}  "
            f"norm {record.grad_norm:.2f}  {self._tokens_per_s:,.0f} tokens/s  {left} left"
        )

    def _draw(self, text: str, is_last: bool) -> None:
        if not self._is_live:
            talk(text)
            return
        self._has_open_line = not is_last
        print(f"\r\x1b[K{text}", end="\n" if is_last else "", file=sys.stderr, flush=True)


def _smoothed(mean: float, newest: float) -> float:
    return newest if not mean else mean + RATE_WEIGHT * (newest - mean)
