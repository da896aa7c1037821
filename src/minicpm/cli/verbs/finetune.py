"""`minicpm finetune -m MODEL --data FILE ... --out RUN`: train all parameters of a model on conversations or texts."""

from __future__ import annotations

import argparse

from minicpm.cli.arguments import add_model_argument
from minicpm.cli.models import resolve_model
from minicpm.cli.training import LiveLine, add_run_arguments, report, require_torch, run_options
from minicpm.train.options import OptimizerOptions, RunOptions

METHODS = ("full",)
# The base rate of muP. At MiniCPM-2B's width, matrices train at a ninth of it, 2e-5.
DEFAULTS = RunOptions(data=("-",), optimizer=OptimizerOptions(lr=2e-4, weight_decay=0.0), warmup_steps=20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Continue training a model on your data. In conversations only the assistant's answers are trained, each with "
        "its end token."
    )
    add_model_argument(parser)
    parser.add_argument("--method", choices=METHODS, default="full", help="full trains all parameters (default: full)")
    add_run_arguments(parser, DEFAULTS)


def run(args: argparse.Namespace) -> int:
    require_torch()
    options = run_options(args)
    folder = resolve_model(args, args.model)
    from minicpm.train.runs import finetune

    with LiveLine().watching() as watcher:
        done = finetune(folder, args.out, options, resume=args.resume, watcher=watcher)
    return report(done, args.json)
