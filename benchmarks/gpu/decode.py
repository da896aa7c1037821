"""The torch backend on an NVIDIA GPU, true MiniCPM-2B shapes, beside what the card can do and transformers' `generate`.

    python benchmarks/gpu/decode.py                        # everything: less than 8 minutes on an H100, 12 GB of disk
    python benchmarks/gpu/decode.py --only bf16 int4       # of these weights only

Makes the models where they are missing (random weights and codes: speed does not depend on them). The floor of a step
is the time of reading its weights, keys and values at the bandwidth measured in the same run; that of a prompt is the
time of its multiplications at the rate of a large product in bfloat16. Writes benchmarks/results/gpu_decode.json after
every model, so that a run that is cut short keeps what it has, and from all results benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from costs import write_results  # noqa: E402
from report import write_report  # noqa: E402

from minicpm import LLM, SamplingParams  # noqa: E402
from minicpm.bench.measure import Work, prompt_operations, step_weight_bytes  # noqa: E402
from minicpm.engine.backend import Row, StepBackend  # noqa: E402
from minicpm.formats.checkpoint import open_checkpoint  # noqa: E402
from minicpm.models import load_model  # noqa: E402

# Weights, the preset that makes them, and the part of the floor that decoding one sequence is to reach, in percent.
WEIGHTS = {"bf16": (None, 82), "int8": ("int8", 65), "int4": ("int4", 52), "int4-small": ("int4-small", 52)}
GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, ignore_eos=True)


@dataclass(frozen=True)
class Plan:
    """What is measured, and on how much memory the card's peaks are."""

    depths: tuple[int, ...] = (0, 3500)
    batches: tuple[int, ...] = (8, 64)
    prompts: tuple[int, ...] = (512, 2048)
    repeats: int = 3
    window_s: float = 1.0
    answer_tokens: int = 128
    peak_bytes: int = 4 << 30
    peak_side: int = 8192


@dataclass(frozen=True)
class Peaks:
    """What the device can do: bytes read a second, and operations of a product in bfloat16."""

    read_bytes_per_s: float
    operations_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), help="where the models are, or are made")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=tuple(WEIGHTS), default=list(WEIGHTS))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no NVIDIA GPU here; run this where there is one")
    make_models(args.folder, args.only)
    rows: list[dict[str, object]] = []
    note = f"MiniCPM-2B shapes, random weights. {torch.cuda.get_device_name(args.device)}; medians of windows."
    for row in measured({name: args.folder / name for name in args.only}, args.device, Plan()):
        rows.append(row)
        print(row, flush=True)
        write_results("gpu_decode", rows, note, torch_cuda=torch.version.cuda)
    write_report()


def make_models(folder: Path, names: Sequence[str]) -> None:
    """Make what is missing, all at the same time."""
    command = [sys.executable, str(HERE.parent / "make_model.py")]
    missing = [name for name in names if not (folder / name).exists()]
    options = {name: ["--preset", WEIGHTS[name][0]] if WEIGHTS[name][0] else [] for name in missing}
    started = [subprocess.Popen([*command, str(folder / name), *options[name]]) for name in missing]
    endings = [process.wait() for process in started]
    if any(endings):
        raise SystemExit(f"a model could not be made; remove what is unfinished in {folder}")


def measured(folders: dict[str, Path], device: str, plan: Plan) -> Iterator[dict[str, object]]:
    """A row for every point of every model; transformers has its turn on the first, which is not quantized."""
    peaks = measured_peaks(device, plan)
    yield {
        "what": "the device",
        "read GB/s": round(peaks.read_bytes_per_s / 1e9, 1),
        "bf16 TFLOP/s": round(peaks.operations_per_s / 1e12, 2),
    }
    for name, folder in folders.items():
        yield from rows_of(name, folder, device, plan, peaks)
    first, folder = next(iter(folders.items()))
    if WEIGHTS[first][0] is None:
        yield from transformers_rows(first, folder, device, plan, peaks)


def rows_of(name: str, folder: Path, device: str, plan: Plan, peaks: Peaks) -> Iterator[dict[str, object]]:
    """This package's rows."""
    before = allocated_bytes(device)
    llm = LLM(folder, backend="torch", device=device)
    held = allocated_bytes(device) - before
    backend, work = llm.backend, Work(llm.backend)
    with open_checkpoint(folder, allow_quantized=True) as checkpoint:
        weight_bytes = step_weight_bytes(checkpoint)
    goal = WEIGHTS[name][1]

    def floor_row(what: str, step_bytes: float, steps_per_s: float, tokens: int = 1, goal: object = "-"):
        part = steps_per_s * step_bytes / peaks.read_bytes_per_s
        return speed_row(what, name, "minicpm", steps_per_s * tokens, part, goal)

    for depth in plan.depths:
        speed = median(plan, lambda depth=depth: work.decode(depth, plan.window_s))
        step_bytes = weight_bytes + depth * backend.cache_bytes_per_token
        yield floor_row(f"decode behind {depth} tokens", step_bytes, speed, goal=goal if depth == 0 else "-")
    if (speed := replays_per_s(backend)) is not None:
        yield floor_row("the recorded step alone", weight_bytes, speed)
    answer = llm.generate([ids_of(llm, 8)], GREEDY, max_tokens=plan.answer_tokens)[0]
    yield floor_row("generate, greedy", weight_bytes, answer.timings.decode_tokens_per_s)
    for count in plan.batches:
        speed = median(plan, lambda count=count: work.batch(count, plan.window_s))
        yield floor_row(f"batch of {count}", weight_bytes, speed / count, tokens=count)
    for tokens in plan.prompts:
        speed = median(plan, lambda tokens=tokens: work.prefill(tokens))
        part = speed / tokens * prompt_operations(backend.config, tokens) / peaks.operations_per_s
        yield speed_row(f"prompt of {tokens}", name, "minicpm", speed, part, 60 if tokens == 2048 else "-")
    yield {"what": "weights on the device", "weights": name, "bytes": held, "a step reads bytes": weight_bytes}


def transformers_rows(name: str, folder: Path, device: str, plan: Plan, peaks: Peaks) -> Iterator[dict[str, object]]:
    """`generate` of the model class in transformers, as it comes and with a static cache, compiled on a GPU."""
    with open_checkpoint(folder) as checkpoint:
        model = load_model(checkpoint, device=device)
        weight_bytes = step_weight_bytes(checkpoint)
    for what, options in (("as it comes", {}), ("static cache", {"cache_implementation": "static"})):
        speed = median(plan, generating(model, plan.answer_tokens, options))
        part = speed * weight_bytes / peaks.read_bytes_per_s
        yield speed_row("generate, greedy", name, f"transformers, {what}", speed, part, "-")


def generating(model: torch.nn.Module, tokens: int, options: dict[str, str]) -> Callable[[], float]:
    """Tokens a second of `generate`, once it has been called."""
    device = next(model.parameters()).device
    ids = torch.arange(3, 11, device=device)[None]

    def run() -> float:
        synchronize(device.type)
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            **options,
        )
        synchronize(device.type)
        return tokens / (time.perf_counter() - start)

    run()
    return run


def measured_peaks(device: str, plan: Plan) -> Peaks:
    """The best of some seconds of reading memory, by a sum and by a copy, and of a large product."""
    numbers = torch.ones(plan.peak_bytes // 4, device=device)
    other = torch.empty_like(numbers)
    factor = torch.ones(plan.peak_side, plan.peak_side, dtype=torch.bfloat16, device=device)
    sum_s = shortest(device, lambda: numbers.sum())
    copy_s = shortest(device, lambda: other.copy_(numbers))
    product_s = shortest(device, lambda: factor @ factor)
    return Peaks(max(plan.peak_bytes / sum_s, 2 * plan.peak_bytes / copy_s), 2 * plan.peak_side**3 / product_s)


def shortest(device: str, work: Callable[[], object]) -> float:
    """Seconds of the quickest of ten."""
    seconds = []
    for _ in range(11):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def replays_per_s(backend: StepBackend, count: int = 100) -> float | None:
    """Steps of one row a second of the recording alone, without what the host does around it; None without one."""
    if not hasattr(backend._decode, "_steps"):
        return None
    sequence = backend.new_sequence(16)  # to live as long as the recording writes to it
    backend.forward([Row(sequence, [5])])
    step = backend._decode._steps[1, 1]
    synchronize("cuda")
    start = time.perf_counter()
    for _ in range(count):
        step.run()
    synchronize("cuda")
    return count / (time.perf_counter() - start)


def speed_row(
    what: str, weights: str, engine: str, tokens_per_s: float, part: float, goal: object
) -> dict[str, object]:
    return {
        "what": what,
        "weights": weights,
        "engine": engine,
        "tokens_per_s": round(tokens_per_s, 1),
        "% of what the device can do": float(f"{100 * part:.3g}"),
        "goal": goal,
    }


def median(plan: Plan, run: Callable[[], float]) -> float:
    return statistics.median(run() for _ in range(plan.repeats))


def ids_of(llm: LLM, count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(3, llm.backend.vocab_size, count).tolist()
    return ids


def allocated_bytes(device: str) -> int:
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
