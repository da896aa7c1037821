"""Arguments that several verbs share: the model, the engine, the sampling."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from minicpm.cli.output import is_terminal, talk_dim

if TYPE_CHECKING:
    from minicpm.engine.llm import LLM
    from minicpm.engine.options import EngineOptions

BUILT_IN = "the built-in minicpm-nano"

# Engine options that are fields of EngineOptions, which has the defaults.
_ENGINE_FIELDS = (
    "backend",
    "dtype",
    "device",
    "context",
    "sliding_window",
    "attention_sinks",
    "kv_cache_dtype",
    "threads",
)
# Engine options that have no meaning for an engine in another process.
IN_PROCESS_OPTIONS = ("device", "threads", "no_lookup", "sliding_window", "attention_sinks", "kv_cache_dtype")

# Option -> type and help; defaults are SamplingParams' own.
_SAMPLING_OPTIONS: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "longest answer in tokens (default: the rest of the context)"),
    "temperature": (float, "0 always takes the likeliest token; higher values vary more"),
    "top_p": (float, "keep the likeliest tokens that add up to this probability"),
    "top_k": (int, "keep only this many likeliest tokens; 0 keeps all"),
    "min_p": (float, "drop tokens below this fraction of the likeliest one's probability"),
    "repetition_penalty": (float, "above 1 discourages tokens of the prompt and the answer"),
    "presence_penalty": (float, "subtracted from the logit of every token in the answer"),
    "frequency_penalty": (float, "the same, times the token's count in the answer"),
    "seed": (int, "the same seed gives the same answer (default: random)"),
}


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument's type: a whole number from `least` to `most`."""
    expected = f"{least} or more" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r:.40}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {value}")
        return value

    return read


count = whole(1)
port = whole(0, 65535)


def size(text: str) -> int:
    """An argument's type: bytes, written like 500MB, 2g or 1.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", text.strip().lower())
    number, unit, is_binary = match.groups() if match else ("0", None, None)
    nbytes = int(float(number) * (1024 if is_binary else 1000) ** " kmgt".index(unit or " "))
    if nbytes < 1:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a size; a size is a number such as 500MB or 2GiB")
    return nbytes


def add_model_argument(parser: argparse.ArgumentParser, *, default: str = "") -> None:
    """-m and --offline; `default` describes the model that is used without -m."""
    explanation = "a model's folder or .gguf file, or its name (see 'minicpm list' and 'minicpm pull')"
    parser.add_argument("-m", "--model", type=_model, help=explanation + (f"; default: {default}" if default else ""))
    add_offline_argument(parser)


def _model(text: str) -> str:
    """An argument's type: not the empty text of a variable that is not set, which would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the model is empty; give a folder, a .gguf file or a name, or leave -m out")
    return text


def add_offline_argument(parser: argparse.ArgumentParser) -> None:
    """--offline; None without it, so that HF_HUB_OFFLINE decides."""
    parser.add_argument("--offline", action="store_true", default=None, help="use only what is on this machine")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """-m, --offline and the engine options."""
    add_model_argument(parser, default=BUILT_IN)
    group = parser.add_argument_group("engine")
    group.add_argument("--backend", help="auto, native, torch, numpy or vllm (default: auto)")
    group.add_argument("--dtype", help="auto (the model's own), float32, bfloat16 or float16")
    group.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument(
        "--context", type=count, metavar="TOKENS", help="longest conversation (default: the model's own limit)"
    )
    group.add_argument(
        "--sliding-window",
        type=count,
        metavar="TOKENS",
        help="attend only to this many tokens back and to the first ones, in bounded memory, with a --context of any "
        "length; a multiple of 16 (native, numpy)",
    )
    group.add_argument(
        "--attention-sinks", type=count, metavar="TOKENS", help="first tokens to attend to as well (default: 16)"
    )
    group.add_argument("--kv-cache-dtype", help="dtype of keys and values: auto, int8 or bfloat16 (native, numpy)")
    group.add_argument("--threads", type=count, metavar="N", help="CPU threads (default: one per physical core)")
    group.add_argument(
        "--tensor-parallel-size", type=count, metavar="N", help="number of GPUs to divide the model among (vllm)"
    )
    group.add_argument("--no-lookup", action="store_true", default=None, help="draft no tokens from the text so far")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    from minicpm.sampling import SamplingParams

    defaults = SamplingParams()
    group = parser.add_argument_group("sampling", "The model's generation_config.json overrides these defaults.")
    for name, (kind, explanation) in _SAMPLING_OPTIONS.items():
        default = getattr(defaults, name)
        shown = "" if default is None else f" (default: {default:g})"
        metavar = "N" if kind is int else "X"
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=explanation + shown)
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text (repeatable)")


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The SamplingParams fields that flags give. Raises ValueError if a value is out of range."""
    from minicpm.sampling import SamplingParams

    given: dict[str, Any] = {name: getattr(args, name) for name in _SAMPLING_OPTIONS if getattr(args, name) is not None}
    if args.stop:
        given["stop"] = tuple(args.stop)
    SamplingParams(**given)
    return given


def first_wish(args: argparse.Namespace, names: Iterable[str]) -> str | None:
    """The first of these options that was given a value other than 'auto', as a flag; None if there is none."""
    wish = next((name for name in names if getattr(args, name) not in (None, "auto")), None)
    return None if wish is None else f"--{wish.replace('_', '-')}"


def engine_options(
    args: argparse.Namespace, *, max_batch: int | None = None, kv_cache_bytes: int | None = None
) -> EngineOptions:
    """The EngineOptions that the arguments describe; `max_batch` None is EngineOptions' own default."""
    from minicpm.engine.options import EngineOptions

    if args.tensor_parallel_size is not None and args.backend != "vllm":
        raise ValueError("--tensor-parallel-size needs --backend vllm")
    if args.attention_sinks is not None and args.sliding_window is None:
        raise ValueError("--attention-sinks needs --sliding-window")
    given: dict[str, Any] = {name: getattr(args, name) for name in _ENGINE_FIELDS}
    given |= {"max_batch": max_batch, "kv_cache_bytes": kv_cache_bytes}
    if args.no_lookup:
        given["lookup"] = "off"
    if args.tensor_parallel_size is not None:
        given["vllm_options"] = {"tensor_parallel_size": args.tensor_parallel_size}
    return EngineOptions(**{name: value for name, value in given.items() if value is not None})


def load_llm(args: argparse.Namespace, *, max_batch: int | None = 1, kv_cache_bytes: int | None = None) -> LLM:
    """Load the model that the arguments name; the progress of a download goes to stderr."""
    from minicpm.cli.progress import TerminalProgress
    from minicpm.engine.llm import LLM

    options = engine_options(args, max_batch=max_batch, kv_cache_bytes=kv_cache_bytes)
    if is_terminal(sys.stderr):
        talk_dim("Loading ...")
    return LLM(args.model, options=options, offline=args.offline, progress=TerminalProgress())
