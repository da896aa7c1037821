"""A run: a folder with the inputs and results of one training.

    RUN/run.json  model/ (shape and tokenizer)  data/ (token stores)  checkpoints/  metrics.jsonl  loss.svg  final/

`pretrain` starts from random weights or branches off another run; `finetune` starts from a model folder. Both write
`final/`, an ordinary Hugging Face folder.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch

from minicpm.chat import template_for
from minicpm.errors import FormatError, MiniCPMError, TrainingError, counted
from minicpm.export.dequantized import open_dequantized
from minicpm.export.destination import new_folder
from minicpm.export.small_files import small_files
from minicpm.files import lock, naming_full_disk, open_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import CONFIG_FILE
from minicpm.formats.text_sources import TOKENIZER_FILES
from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM, load_model
from minicpm.tokenizer import Tokenizer
from minicpm.train import checkpoint
from minicpm.train.averaging import WeightAverage
from minicpm.train.batches import Mixture, Share
from minicpm.train.checkpoint import CheckpointFolder, Progress, copy_tokenizer, read_decoder_config, save_model
from minicpm.train.loop import Evaluation, Loop, LoopOptions, StepRecord
from minicpm.train.metrics import Metrics
from minicpm.train.optimizers import initialize, make_optimizers
from minicpm.train.options import Precision, RunOptions
from minicpm.train.rendering import Renderer
from minicpm.train.schedules import Schedule
from minicpm.train.store import TokenStore, token_store

# Options that may differ when a run is resumed, because they change neither the steps nor their results.
CHANGEABLE = frozenset({"save_every", "from_digest"})
DIGEST_BYTES = 1 << 20  # of every weight file, for recognising a moved model
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Watcher:
    """Callbacks of a run: `started` with its plan, `stepped` after every step, `tell` with messages.

    `should_stop` is asked after every step: if it is true, the run ends there with a checkpoint.
    """

    started: Callable[[int, int], None] = lambda first_step, last_step: None
    stepped: Callable[[StepRecord], None] = lambda record: None
    tell: Tell = lambda text: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Finished:
    """The result of a run. One that was stopped has a checkpoint and not yet a model."""

    model: Path
    steps: int
    tokens: int
    trained_tokens: int
    is_complete: bool = True


@dataclass(frozen=True)
class _Start:
    """The start of a run: the model's shape, its tokenizer, and the kind of its first weights."""

    kind: Literal["scratch", "branch", "model"]
    source: Path  # the shape's config.json, the checkpoint, or the model folder
    tokenizer: Path


def pretrain(
    out: str | Path,
    options: RunOptions,
    *,
    shape: str | Path | None = None,
    tokenizer: str | Path | None = None,
    branch_from: str | Path | None = None,
    resume: bool = False,
    watcher: Watcher = Watcher(),
) -> Finished:
    """Train from random weights (`shape`, a config.json, and `tokenizer`, a folder), or branch off another run.

    `resume` continues the run in `out` from its newest complete checkpoint. Raises DataError for bad data,
    TrainingError for a run that cannot start or continue, ModelError and FormatError for shape and tokenizer.
    """
    if (branch_from is None) == (shape is None) or (shape is None) != (tokenizer is None):
        raise ValueError("give the model's shape and a tokenizer, or a run to branch from")
    if branch_from is not None:
        source = checkpoint.checkpoint_of(branch_from)
        start = _Start("branch", source, source.parent.parent / "model")
    else:
        start = _Start("scratch", Path(str(shape)).expanduser(), Path(str(tokenizer)).expanduser())
    return _run(Path(out).expanduser(), options, start, resume, watcher)


def finetune(
    model: str | Path,
    out: str | Path,
    options: RunOptions,
    *,
    resume: bool = False,
    watcher: Watcher = Watcher(),
) -> Finished:
    """Train all parameters of a model, a folder or a GGUF file; errors and `resume` as for `pretrain`.

    Quantized weights are trained as the floats that they stand for.
    """
    folder = Path(model).expanduser()
    return _run(Path(out).expanduser(), options, _Start("model", folder, folder), resume, watcher)


def _run(out: Path, options: RunOptions, start: _Start, resume: bool, watcher: Watcher) -> Finished:
    if options.threads:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    with _locked(out):
        note = _agreed_note(out, options, start, resume, watcher.tell)
        model = _model(start, options, watcher.tell).to(device)
        _keep_model(out / "model", start)
        tokenizer, template = Tokenizer.from_folder(out / "model"), template_for(out / "model")
        renderer = Renderer(tokenizer, template, model.config.vocab_size, options.train_on)
        if options.length > model.config.max_position_embeddings:
            raise TrainingError(
                f"rows of {options.length} tokens are longer than the model's context of "
                f"{model.config.max_position_embeddings}; pass --length {model.config.max_position_embeddings} or less"
            )
        mixture = _mixture(out, options.data, options, renderer, watcher.tell)
        evaluation = _evaluation(out, options, renderer, watcher.tell)
        _keep_note(out, note)
        optimizers = make_optimizers(model, options.optimizer)
        average = WeightAverage(model, options.ema_decay) if options.ema_decay else None
        checkpoints = CheckpointFolder(out / "checkpoints", watcher.tell)
        begun = Progress(0, 0, 0, mixture.state())
        if start.kind == "branch":
            begun = checkpoint.load(start.source, model, optimizers, average=average)
            mixture.continue_from(begun.data)
        schedule = _schedule(options, begun.step, mixture.epoch_tokens)
        if (warning := _warm_up_warning(schedule, begun.step)) is not None:
            watcher.tell(warning)
        loop = Loop(
            model,
            optimizers,
            schedule,
            mixture,
            peak_lr=options.optimizer.lr,
            options=LoopOptions(
                micro_rows=options.micro_rows,
                clip_norm=options.clip_norm,
                is_bf16=_is_bf16(options.precision, device),
                save_every=options.save_every,
                eval_every=options.eval_every,
                device=device,
            ),
            checkpoints=checkpoints,
            metrics=Metrics(out / "metrics.jsonl"),
            evaluation=evaluation,
            average=average,
            should_stop=watcher.should_stop,
            watch=watcher.stepped,
            tell=watcher.tell,
        )
        resumed = _resumed(checkpoints, loop, mixture, watcher.tell)
        loop.start_at(resumed or begun)
        loop.metrics.cut_after(loop.step)
        if start.kind == "branch" and resumed is None:
            loop.save()  # from here on the branch does not need its parent run
        watcher.started(loop.step, schedule.last_step)
        loop.run()
        is_complete = loop.step == schedule.last_step
        if is_complete:
            dtype = _final_dtype(start) if options.dtype == "auto" else options.dtype
            with average.applied() if average else contextlib.nullcontext():
                save_model(model, out / "final", dtype, out / "model")
        return Finished(out / "final", loop.step, loop.tokens, loop.trained_tokens, is_complete)


def _resumed(checkpoints: CheckpointFolder, loop: Loop, mixture: Mixture, tell: Tell) -> Progress | None:
    progress = checkpoints.load_newest(
        loop.model, loop.optimizers, lambda found: mixture.restore(found.data), loop.average
    )
    if progress is not None:
        tell(f"resumed at step {progress.step}")
    return progress


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Create the run's folder and lock it; the lock ends with the process. An empty folder is removed at the end.

    After an error before the run has begun nothing is left in a new folder, unless training data were read.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: exists and is not a folder; choose another place for the run")
    out.mkdir(parents=True, exist_ok=True)
    is_new = not any(out.iterdir())
    descriptor = open_folder(out)
    try:
        try:
            if descriptor is not None:
                lock(descriptor)
        except BlockingIOError:
            raise TrainingError(f"{out}: another process is training here; wait for it, or stop it") from None
        yield
    except (MiniCPMError, ValueError):
        if is_new and not (out / "run.json").exists() and not any(out.glob("data/*/store.json")):
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _agreed_note(out: Path, options: RunOptions, start: _Start, resume: bool, tell: Tell) -> dict[str, Any]:
    """The content of run.json. Raises TrainingError if an existing one is of a run with other options.

    A run may have been moved together with its model and data: files of the same names may lie elsewhere.
    """
    path = out / "run.json"
    described = {"start": start.kind, "from": str(start.source.resolve()), "from_digest": _digest_of_start(start)}
    wanted = cast(dict[str, Any], json.loads(json.dumps({**described, **asdict(options)})))
    if path.is_file() and not resume:
        raise TrainingError(f"{out}: there is a run already; pass --resume to continue it, or choose another folder")
    if not path.is_file():
        if resume:
            _require_no_typo(out)
            tell(f"there is no run in {out} yet, so a new one begins")
        return wanted
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(f"{path}: not valid JSON ({error}); the run cannot be resumed") from error
    noted = {**_defaults(), **noted}  # a run of an earlier version has not noted newer options
    moved = {key for key in ("from", "data", "evaluation") if _is_moved(key, noted, wanted)}
    differing = [key for key in wanted if key not in {*CHANGEABLE, *moved} and noted.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        raise TrainingError(
            f"{out}: the run was started with {key} {noted.get(key)!r}, now it is {wanted[key]!r}; "
            "resume with the same options, or branch a new run off it"
        )
    return {**noted, **{key: wanted[key] for key in moved}}


def _require_no_typo(out: Path) -> None:
    """Raise TrainingError if a folder that holds no run lies in a run, or has almost the name of one beside it."""
    absolute = out.resolve()
    if (absolute.parent / "run.json").is_file():
        raise TrainingError(f"{out}: there is no run to resume; the run is its parent folder: --out {out.parent}")
    beside = [path.name for path in absolute.parent.iterdir() if (path / "run.json").is_file()]
    near = difflib.get_close_matches(absolute.name, beside)
    if near:
        names = " or ".join(str(out.with_name(name)) for name in near)
        raise TrainingError(
            f"{out}: there is no run to resume; beside it is {names}. Give that one, or start anew without --resume"
        )


def _is_moved(key: str, noted: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether an option may name another place than the run's start did: the same content, or names, elsewhere.

    The data's content need not be compared here: a checkpoint knows the digest of its token stores.
    """
    if key == "from":
        if wanted["start"] == "branch" or not noted.get("from_digest"):
            # The parent run of a branch may have continued; a run of an earlier version has no digest.
            return wanted["start"] == "branch" or not Path(str(noted.get("from"))).exists()
        return bool(noted["from_digest"] == wanted["from_digest"])
    files = [[Share.parse(text) for text in note.get(key) or ()] for note in (noted, wanted)]
    shares = [[(share.path.name, share.times, share.percent) for share in side] for side in files]
    return shares[0] == shares[1]


def _digest_of_start(start: _Start) -> str | None:
    """A hash by which a moved model or shape is known again; None for a branch."""
    if start.kind == "branch" or not start.source.exists():
        return None
    made = hashlib.sha256()
    if start.kind == "scratch":
        made.update(start.source.read_bytes())
    else:
        with open_checkpoint(start.source, allow_quantized=True) as opened:
            made.update(json.dumps(opened.config.to_dict()).encode())
            for path in opened.weight_files:
                with path.open("rb") as file:
                    made.update(file.read(DIGEST_BYTES))
                    made.update(str(file.seek(0, os.SEEK_END)).encode())
    return made.hexdigest()


def _defaults() -> dict[str, Any]:
    return {option.name: option.default for option in fields(RunOptions) if option.default is not MISSING}


def _keep_note(out: Path, note: dict[str, Any]) -> None:
    """Write run.json, which makes the folder a run. An earlier failure, e.g. of bad data, leaves no run."""
    partial = out / ".run.json.partial"
    with naming_full_disk(out / "run.json"):
        partial.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "run.json")


def _model(start: _Start, options: RunOptions, tell: Tell) -> MiniCPMForCausalLM:
    """The model in float32 whatever the stored dtype: its weights are the master weights."""
    if start.kind == "model":
        # Parameters may be mapped pages of the file, which training must not write to.
        with open_dequantized(start.source) as opened:
            if opened.dequantized:
                tell(
                    f"the model's {opened.dequantized} weights are trained in float32, without what quantization lost; "
                    "the result is not quantized"
                )
            model = load_model(opened, dtype="float32", attn_implementation="sdpa")
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model
    path = start.source / CONFIG_FILE if start.kind == "branch" else start.source
    config = MiniCPMConfig.from_decoder_config(read_decoder_config(path).with_dtype("float32"))
    config._attn_implementation = "sdpa"
    model = MiniCPMForCausalLM(config)
    if start.kind == "scratch":
        initialize(model, options.seed)
    return model


def _keep_model(folder: Path, start: _Start) -> None:
    """Copy tokenizer and template into the run, so that it can be resumed without the original."""
    if not folder.is_dir():
        with new_folder(folder) as partial:
            if start.kind == "model":
                with open_checkpoint(start.source, allow_quantized=True) as opened, small_files(opened) as beside:
                    copy_tokenizer(beside, partial)
            elif any((start.tokenizer / name).is_file() for name in TOKENIZER_FILES):
                copy_tokenizer(start.tokenizer, partial)
            else:
                raise FormatError(
                    start.tokenizer, "no tokenizer here; give a folder with tokenizer.json or tokenizer.model"
                )
            Tokenizer.from_folder(partial)


def _mixture(
    out: Path, files: tuple[str, ...], options: RunOptions, renderer: Renderer, tell: Tell, seed: int | None = None
) -> Mixture:
    shares = [Share.parse(text) for text in files]
    stores: list[TokenStore] = [token_store(share.path, out / "data", renderer, tell) for share in shares]
    mixture = Mixture(
        stores,
        shares,
        rows=options.rows,
        length=options.length,
        seed=options.seed if seed is None else seed,
    )
    if mixture.unusable_documents:
        number, first = mixture.unusable_documents, options.length
        have = "has no trained token among its" if number == 1 else "have no trained token among their"
        tell(f"{counted(number, 'conversation')} {have} first {first:,}")
    if mixture.cut_documents:
        number, most = mixture.cut_documents, counted(options.length, "token")
        longer = ("is longer than", "loses its end") if number == 1 else ("are longer than", "lose their end")
        tell(f"{counted(number, 'conversation')} {longer[0]} {most} and {longer[1]}")
    return mixture


def _evaluation(out: Path, options: RunOptions, renderer: Renderer, tell: Tell) -> Evaluation | None:
    """The first batches of a fixed order: the same tokens at every evaluation of every run."""
    if not options.evaluation:
        return None
    mixture = _mixture(out, options.evaluation, options, renderer, tell, seed=0)
    enough = max(1, math.ceil(mixture.epoch_tokens / (options.rows * options.length)))
    return Evaluation([mixture.next_batch() for _ in range(min(options.eval_batches, enough))])


def _schedule(options: RunOptions, first_step: int, epoch_tokens: int) -> Schedule:
    steps = options.steps or max(1, math.ceil(options.epochs * epoch_tokens / (options.rows * options.length)))
    if options.decay_steps > steps:
        raise ValueError(f"--decay-steps {options.decay_steps:,} is more than the {counted(steps, 'step')} to train")
    return Schedule(options.schedule, first_step + steps, options.warmup_steps, options.decay_steps)


def _warm_up_warning(schedule: Schedule, first_step: int) -> str | None:
    """What to say of a warm-up that the run does not have, or has not as a whole."""
    warmup, steps = schedule.warmup_steps, schedule.last_step - first_step
    if not warmup:
        return None
    if first_step >= warmup:
        return (
            f"the branch begins at step {first_step}, behind the warm-up of {warmup} steps: its rate starts at the peak"
        )
    left = warmup - first_step
    if left > steps:
        reached = 100 * schedule.factor(schedule.last_step - 1)
        return (
            f"the warm-up of {warmup} steps is longer than the run: its rate ends at {reached:.0f} % of the peak; pass "
            f"--warmup-steps {first_step + steps // 10} for a shorter one"
        )
    if left + schedule.decay_steps > steps:
        return (
            f"the warm-up of {warmup} steps and the decay of {schedule.decay_steps} overlap in a run of {steps} steps"
        )
    return None


def _device(wanted: str) -> str:
    """The device to train on. Raises ValueError for a wrong name, TrainingError for a device that is not here."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", wanted)
    if found is None:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {wanted!r:.40}")
    if wanted != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():
        raise TrainingError(f"there is no device {wanted} on this machine; pass --device cpu, or leave it out")
    return wanted


def _is_bf16(precision: Precision, device: str) -> bool:
    if precision != "auto":
        return precision == "bf16"
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _final_dtype(start: _Start) -> str:
    if start.kind != "model":
        return "bfloat16"
    with open_dequantized(start.source) as opened:
        return "bfloat16" if opened.dequantized else opened.config.dtype
