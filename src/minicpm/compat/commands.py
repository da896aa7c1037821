"""The commands of the release of February 2024: for each the verb that does the same today, or one sentence.

Knows command lines only. Nothing here loads torch, opens a model or reads a script.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Verb:
    """A command line of this package, without `minicpm` in front; `note` is what its user should know beforehand."""

    arguments: list[str]
    note: str = ""

    @property
    def command(self) -> str:
        return shlex.join(["minicpm", *self.arguments])


@dataclass(frozen=True)
class Answer:
    """One sentence: why nothing runs, and what to type instead."""

    text: str


class _WrongArguments(Exception):
    """The arguments are not those of the release's script; the message is argparse's."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _WrongArguments(message)


Translation = Callable[[Sequence[str]], Verb | Answer]

# Programs that start a script: the release's documents put one of them in front of every file.
_STARTERS = re.compile(r"(?:.*/)?(?:python(?:3(?:\.\d+)?)?|bash|sh|deepspeed|torchrun)")
# Options of `deepspeed` and `torchrun` that take the next word.
_STARTER_OPTIONS = ("--include", "--exclude", "--num_gpus", "--num_nodes", "--nproc_per_node", "--master_port", "-m")
_LORA = (
    "there is no verb for LoRA yet: train with PEFT, which takes these models as they are (docs/from-2024.md), or all "
    "parameters with: minicpm finetune -m MODEL --data train.json --eval dev.json --out RUN"
)
_EVALUATION = (
    "UltraEval is a program of its own, which this package neither contains nor installs; benchmarks are not part of "
    "minicpm yet, and 'minicpm serve -m MODEL' gives lm-eval what it needs (docs/serving.md)"
)
_FORK = (
    "the release's fork of vLLM is not needed: the models run without it (minicpm run, serve, demo), and today's vLLM "
    "knows them once this package is installed beside it ('make vllm', docs/vllm.md)"
)


def answer(words: Sequence[str]) -> Verb | Answer | None:
    """What a command of the release means today; None where it is none, or where its script is here and can run."""
    line = " ".join(words)
    for pattern, text in _SENTENCES:
        if pattern.match(line):
            return Answer(text)
    script, arguments = without_starter(words)
    name = script.replace("\\", "/").rpartition("/")[2]
    if name not in _SCRIPTS or _can_run(Path(script)):
        return None
    try:
        return _SCRIPTS[name](arguments)
    except _WrongArguments as wrong:
        # A plain name may be anybody's: where the arguments are not the release's, neither is the file.
        if name in _PLAIN_NAMES:
            return None
        return Answer(f"{script} is a script of the release, and it is not here; {wrong} (docs/from-2024.md)")


def without_starter(words: Sequence[str]) -> tuple[str, list[str]]:
    """The script of a command line and its arguments."""
    rest = list(words)
    if len(rest) > 1 and _STARTERS.fullmatch(rest[0]):
        rest = rest[1:]
        while len(rest) > 1 and rest[0].startswith("-"):
            rest = rest[2:] if rest[0] in _STARTER_OPTIONS else rest[1:]
    return rest[0], rest[1:]


def _can_run(script: Path) -> bool:
    """Whether this file is here and Python can run it: no shell script, nothing over the fork's vLLM of 2023."""
    if not script.is_file() or script.suffix != ".py":
        return False
    with script.open(encoding="utf-8", errors="replace") as file:
        text = file.read(1 << 16)
    return not ("from vllm import" in text and "use_beam_search" in text)  # an option that today's vLLM refuses


def _convert(to: str) -> Translation:
    def translate(words: Sequence[str]) -> Verb:
        parser = _Parser(add_help=False)
        parser.add_argument("--load", required=True)
        parser.add_argument("--save", required=True)
        parser.add_argument("--seed")
        given = parser.parse_args(words)
        return Verb(["convert", given.load, given.save, "--to", to])

    return translate


def _demo(over_vllm: bool) -> Translation:
    def translate(words: Sequence[str]) -> Verb:
        parser = _Parser(add_help=False)
        parser.add_argument("--model_path", required=True)
        parser.add_argument("--torch_dtype", choices=["float32", "bfloat16", "float16"])
        parser.add_argument("--server_name")
        parser.add_argument("--server_port")
        given = parser.parse_args(words)
        options = {"--dtype": given.torch_dtype, "--host": given.server_name, "--port": given.server_port}
        arguments = ["demo", "-m", given.model_path, *(word for pair in options.items() if pair[1] for word in pair)]
        if over_vllm and shutil.which("vllm"):
            return Verb([*arguments, "--backend", "vllm"])
        return Verb(arguments, _NO_VLLM if over_vllm else "")

    return translate


_NO_VLLM = "there is no vLLM in this environment, so this package's own engine computes (docs/vllm.md)"


def _inference(words: Sequence[str]) -> Verb:
    parser = _Parser(add_help=False)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--prompt_path", required=True)
    given = parser.parse_args(words)
    prompts, notes = ["-f", given.prompt_path], []
    if not Path(given.prompt_path).exists() and re.search(r"(^|/)prompts/prompt_?\w+\.txt$", given.prompt_path):
        prompts = ["--showcase"]
        notes.append(f"{given.prompt_path} is a file of the release and not here, so this package's show cases are run")
    spec = importlib.util.find_spec("vllm")
    has_vllm = spec is not None and spec.origin is not None  # a mere folder of that name has no origin
    backend = ["--backend", "vllm"] if has_vllm else []
    notes += [] if has_vllm else [_NO_VLLM]
    return Verb(["run", "-m", given.model_path, *prompts, *_SAMPLING_2024, *backend], "; ".join(notes))


# SamplingParams of the release's inference.py.
_SAMPLING_2024 = shlex.split(
    "--temperature 0.5 --top-p 0.8 --top-k 0 --presence-penalty 1 --frequency-penalty 0 --repetition-penalty 1 "
    "--max-tokens 1000"
)


def _finetune(words: Sequence[str]) -> Verb | Answer:
    parser = _Parser(add_help=False)
    for name in ("model_name_or_path", "output_dir", "train_data_path"):
        parser.add_argument(f"--{name}", required=True)
    for name in (*_TUNING, "eval_data_path", "max_steps", "num_train_epochs", "eval_steps"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--use_lora", nargs="?", const="true", default="false")
    for name in _TUNING_WITHOUT_MEANING:
        parser.add_argument(f"--{name}", nargs="?")
    given = parser.parse_args(words)
    if given.use_lora.lower() == "true":
        return Answer(_LORA)
    rows = given.per_device_train_batch_size * given.gradient_accumulation_steps
    arguments = ["finetune", "-m", given.model_name_or_path, "--data", given.train_data_path]
    if given.eval_data_path:
        arguments += ["--eval", given.eval_data_path]
        arguments += ["--eval-every", given.eval_steps] if given.eval_steps else []
    micro_rows = given.per_device_train_batch_size
    arguments += ["--out", given.output_dir, "--rows", str(rows), "--micro-rows", str(micro_rows)]
    if given.max_steps and given.max_steps != "-1":
        arguments += ["--steps", given.max_steps]
    else:
        arguments += ["--epochs", given.num_train_epochs or "3"]
    for name, (option, default) in _TUNING.items():
        arguments += [option, getattr(given, name) or default]
    return Verb([*arguments, "--no-mup", "--schedule", "cosine"], _TUNING_NOTE)


# Option of finetune.py -> option here, and the value where none was given: the script's or transformers' own.
_TUNING: dict[str, tuple[str, str]] = {
    "model_max_length": ("--length", "512"),
    "learning_rate": ("--lr", "5e-5"),
    "weight_decay": ("--weight-decay", "0"),
    "warmup_steps": ("--warmup-steps", "0"),
    "save_steps": ("--save-every", "500"),
    "seed": ("--seed", "42"),
}
# What deepspeed and the Trainer did around the training itself.
_TUNING_WITHOUT_MEANING = (
    *("deepspeed", "per_device_eval_batch_size", "evaluation_strategy", "eval_strategy", "save_strategy", "log_level"),
    *("logging_strategy", "logging_steps", "optim", "cache_dir", "local_rank", "report_to", "gradient_checkpointing"),
    *("lr_scheduler_type", "overwrite_output_dir", "remove_unused_columns", "save_total_limit", "bf16", "fp16"),
)
_TUNING_NOTE = (
    "one device, no DeepSpeed; the rate falls as a cosine; answers are learned with their end, and the labels of 2024, "
    "which were shifted by one, are not repeated (docs/from-2024.md)"
)


def _always(text: str) -> Translation:
    return lambda words: Answer(text)


# The release's scripts by their file names, wherever they are said to be.
_SCRIPTS: dict[str, Translation] = {
    "convert_hf_to_vllmcpm.py": _convert("vllmcpm"),
    "vllm_convert_checkpoint_to_hf.py": _convert("hf"),
    "hf_based_demo.py": _demo(over_vllm=False),
    "vllm_based_demo.py": _demo(over_vllm=True),
    "inference.py": _inference,
    "inference_renping.py": _always(
        "inference_renping.py read a JSON list: write its records to a .jsonl file, one object with 'prompt' a line, "
        "then type: minicpm run -m MODEL -f FILE.jsonl --raw --temperature 0.3 --top-p 0.8 --presence-penalty 1 "
        "--max-tokens 1000 --json"
    ),
    "run_infer.sh": _always("type: minicpm convert SRC DST --to hf, then: minicpm run -m DST -f PROMPTS.txt"),
    "finetune.py": _finetune,
    "sft_finetune.sh": _always(
        "sft_finetune.sh named its model and data in its own text; type: minicpm finetune -m MODEL --data train.json "
        "--eval dev.json --out RUN --rows 32 --micro-rows 1 --length 512 --steps 3000 --warmup-steps 100 "
        "--weight-decay 0.01 --eval-every 500 --save-every 500 --seed 42"
    ),
    "lora_finetune.sh": _always(_LORA),
    "lora_finetune.ipynb": _always(_LORA),
    "data_process.py": _always(_EVALUATION),  # of UltraEval, as the next
    "run_eval.sh": _always(_EVALUATION),
}
_PLAIN_NAMES = ("inference.py", "finetune.py")
# Commands that start no script.
_SENTENCES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(python3? -m )?pip3? install (-e |--editable )?(\S*/)?inference/vllm/?$"), _FORK),
    (
        re.compile(r"cd (\S*/)?inference(/vllm(/\S*)?)?/?$"),
        "this package has no folder inference; stay here and type: minicpm run -m MODEL -f PROMPTS.txt",
    ),
    (re.compile(r"cd (\S*/)?finetune/?$"), "this package has no folder finetune; stay here: minicpm finetune --help"),
    (re.compile(r"(git clone|cd) \S*UltraEval(\.git)?/?$|(wget|unzip) .*RawData\.zip"), _EVALUATION),
    (
        re.compile(r"(python3? -m )?pip3? install .*\bbmtrain\b", re.IGNORECASE),
        "BMTrain is not needed and not used: minicpm finetune trains all parameters with torch alone, on one device",
    ),
)
