"""`minicpm pretrain --shape FILE --tokenizer FOLDER --data FILE ... --out RUN`: a new model, or a branch of a run."""

from __future__ import annotations

import argparse

from minicpm.cli.training import LiveLine, add_run_arguments, report, require_torch, run_options
from minicpm.train.options import OptimizerOptions, RunOptions

DEFAULTS = RunOptions(data=("-",), train_on="all", optimizer=OptimizerOptions(lr=0.01))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a new model: its shape is a config.json, its tokenizer comes from a folder. --branch-from instead "
        "continues from a checkpoint of another run, with other data, lengths or a decay of the learning rate."
    )
    parser.add_argument("--shape", metavar="FILE", help="config.json of the new model")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="folder with tokenizer.json or tokenizer.model")
    parser.add_argument("--branch-from", metavar="RUN", help="a run, or one of its checkpoints, to continue from")
    add_run_arguments(parser, DEFAULTS)


def run(args: argparse.Namespace) -> int:
    require_torch()
    from minicpm.train.runs import pretrain

    with LiveLine().watching() as watcher:
        done = pretrain(
            args.out,
            run_options(args),
            shape=args.shape,
            tokenizer=args.tokenizer,
            branch_from=args.branch_from,
            resume=args.resume,
            watcher=watcher,
        )
    return report(done, args.json)
