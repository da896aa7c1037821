"""Faults that show only when the model runs: rows of q and k in the wrong order, wrong constants, a wrong rotary base,
and weights that are not finite.

The model is run on a few of the packaged texts as it is, and in every other reading: the variants that known programs
write by mistake. A sound model has the highest log-likelihood as it is. If another reading is better by far more than
chance, the files have the fault that this reading corrects. If no reading predicts any text well, the model is not
judged.

The other readings are run on the first text alone at first. If a reading knows that text, those that are worse than the
best one by HOPELESS_NATS are not run on the others: with all texts they would hardly become the best.

Quantized weights run on the native engine if it is there. The numpy engine gives the same bits, and takes ten times as
long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicpm import native
from minicpm.doctor.faults import DIM_MODEL_BASE, ROPE_THETA, SCALE_DEPTH, SCALE_EMB, SCALES_SYMPTOM, Correction, Fault
from minicpm.engine.backend import StepBackend
from minicpm.engine.backends.numpy import NumpyBackend
from minicpm.errors import MiniCPMError
from minicpm.eval.likelihood import chosen, logits_of
from minicpm.eval.passages import passages
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.compressed_tensors import PACKED, SCALE
from minicpm.formats.config import DecoderConfig
from minicpm.formats.gguf_model import published_rows, rows_to_store
from minicpm.formats.tensor import TensorView
from minicpm.quant.format import IntWeight, read_weight

NAMES = ("owl", "boat", "river")  # the packaged texts that are used
MOST_TOKENS = 128  # of each
# A model knows a text if its loss is below this, in nats per token; random output costs log(vocabulary), 9 to 12.
KNOWN_NATS = 4.0
# Another reading is accepted if its mean loss is lower by LEAST_NATS and the sign test finds it better by at least
# LEAST_DEVIATIONS standard deviations: many slightly worse tokens are stronger evidence than a few very bad ones.
LEAST_NATS, LEAST_DEVIATIONS = 0.05, 5.0
HOPELESS_NATS = 0.5  # per token of the first text, ten times what makes a reading better

_Losses = list[npt.NDArray[np.float64]]  # of each text


@dataclass(frozen=True)
class Measured:
    """The result of running a model: faults, the correction of the repairable ones, and why there is no verdict.

    `unreadable` is the error if the model could not be opened or read.
    """

    faults: tuple[Fault, ...] = ()
    correction: Correction | None = None
    silence: str | None = None
    unreadable: str | None = None


def measure(path: Path, *, can_reorder_rows: bool) -> Measured:
    """Run a model in every reading, if its files can be opened."""
    try:
        with open_checkpoint(path, allow_quantized=True) as checkpoint:
            return _measured(checkpoint, can_reorder_rows)
    except MiniCPMError as error:
        return Measured(silence=f"the model was not run: {error}", unreadable=str(error))


def open_only(path: Path) -> Measured:
    """Open a model and its tokenizer, as `measure` does, but do not run it."""
    try:
        with open_checkpoint(path, allow_quantized=True) as checkpoint:
            checkpoint.tokenizer()
    except MiniCPMError as error:
        return Measured(unreadable=str(error))
    return Measured()


class _OtherOrder:
    """A checkpoint's tensors by published names, with the rows of q and k in the other order: a `TensorFile`."""

    def __init__(self, checkpoint: Checkpoint):
        self.path, self.tensors = checkpoint.path, checkpoint.tensors
        self._checkpoint = checkpoint

    def read(self, name: str) -> TensorView:
        view = self._checkpoint.read(name)
        order = _other_order(self._checkpoint, name.removesuffix(PACKED).removesuffix(SCALE))
        if order is None:
            return view
        rows = view.storage()[order]
        return TensorView(name, view.dtype, view.shape, rows.reshape(-1).view(np.uint8).data)

    def release(self, name: str) -> None:
        self._checkpoint.release(name)

    def close(self) -> None:
        pass  # the checkpoint owns the files


def _other_order(checkpoint: Checkpoint, name: str) -> npt.NDArray[np.int64] | None:
    """For a folder, the indices that undo llama.cpp's order; for a GGUF file, those that undo our undoing of it."""
    order = rows_to_store if checkpoint.format == "gguf" else published_rows
    return order(checkpoint.config, name)


def _measured(checkpoint: Checkpoint, can_reorder_rows: bool) -> Measured:
    config = checkpoint.config
    texts = [passage.text for passage in passages() if passage.name in NAMES]
    rows = [ids[:MOST_TOKENS] for ids in checkpoint.tokenizer().encode_batch(texts) if max(ids) < config.vocab_size]
    as_it_is = Correction(config, reorders_rows=False)
    found = _losses(checkpoint, as_it_is, rows)
    if not all(np.isfinite(losses).all() for losses in found):
        return Measured((_not_finite(checkpoint),))
    losses = {as_it_is: found, **_losses_of_others(checkpoint, found, rows)}
    known = [i for i in range(len(rows)) if min(_mean(one[i]) for one in losses.values()) < KNOWN_NATS]
    if not known:
        return Measured(
            silence="the model was run and not judged: it predicts none of the packaged texts well, in any reading"
        )
    total = {reading: np.concatenate([one[i] for i in known]) for reading, one in losses.items()}
    best = min(total, key=lambda reading: _mean(total[reading]))
    before, after = total[as_it_is], total[best]
    if not is_better(before, after):
        return Measured()
    told = f"packaged texts cost {before.mean():.2f} nats per token as it is, and {after.mean():.2f} when corrected"
    faults = tuple(_faults(checkpoint, best, told, can_reorder_rows))
    is_repairable = all(fault.is_repairable for fault in faults)
    return Measured(faults, best if is_repairable else replace(best, reorders_rows=False))


def _losses_of_others(
    checkpoint: Checkpoint, as_it_is: _Losses, rows: Sequence[Sequence[int]]
) -> dict[Correction, _Losses]:
    """The losses of every other reading, without those that the first text rules out."""
    others = [reading for reading in _readings(checkpoint.config) if reading != Correction(checkpoint.config, False)]
    first = {reading: _losses(checkpoint, reading, rows[:1]) for reading in others}
    best = min((_mean(one[0]) for one in (as_it_is, *first.values()) if one), default=math.inf)
    if best < KNOWN_NATS:
        first = {reading: one for reading, one in first.items() if _mean(one[0]) < best + HOPELESS_NATS}
    if len(rows) <= 1:
        return first
    return {reading: one + _losses(checkpoint, reading, rows[1:]) for reading, one in first.items()}


def _mean(losses: npt.NDArray[np.float64]) -> float:
    """The mean of losses (T,), infinite if one of them is no number."""
    return float(np.nan_to_num(losses, nan=math.inf).mean())


def is_better(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> bool:
    """Whether the losses `after` (T,) of the same tokens are lower than `before` by far more than chance.

    Both tests must agree: the mean, and the number of better tokens less that of worse ones.
    """
    deviations = float(np.sign(before - after).sum()) / math.sqrt(len(before))
    return bool((before - after).mean() >= LEAST_NATS and deviations >= LEAST_DEVIATIONS)


def _readings(config: DecoderConfig) -> list[Correction]:
    """Every reading: each plausible configuration with each order of rows."""
    constants = replace(config, scale_emb=SCALE_EMB, scale_depth=SCALE_DEPTH, dim_model_base=DIM_MODEL_BASE)
    configs = [
        replace(one, rope_theta=theta)
        for one in dict.fromkeys((config, constants))
        for theta in dict.fromkeys((config.rope_theta, ROPE_THETA))
    ]
    return [Correction(one, reorders) for one, reorders in product(configs, (False, True))]


def _losses(checkpoint: Checkpoint, reading: Correction, rows: Sequence[Sequence[int]]) -> _Losses:
    """Per row of T ids, the losses (T - 1,) in nats of every token but the first."""
    found = logits_of(_backend(checkpoint, reading), rows)
    with np.errstate(over="ignore", invalid="ignore"):
        return [-chosen(logits, ids[1:]) for ids, logits in zip(rows, found)]


def _backend(checkpoint: Checkpoint, reading: Correction) -> StepBackend:
    """An engine that runs the checkpoint with the constants and the order of q and k rows of a `Correction`."""
    if reading.reorders_rows:
        checkpoint = checkpoint.read_as(reading.config, _OtherOrder(checkpoint))
    elif reading.config != checkpoint.config:
        checkpoint = checkpoint.read_as(reading.config, checkpoint)
    if not checkpoint.packings or native.why_missing():
        return NumpyBackend(checkpoint)
    from minicpm.engine.backends.native import NativeBackend

    return NativeBackend(checkpoint, keeps_packed_file=False)


def _faults(checkpoint: Checkpoint, best: Correction, told: str, can_reorder_rows: bool) -> list[Fault]:
    config, found = checkpoint.config, []
    if best.reorders_rows:
        here, meant = ("halves of a head", "pairs") if checkpoint.format == "gguf" else ("pairs", "halves of a head")
        found.append(
            Fault(
                "row-order",
                f"rows of q and k are in the order for rotating {here}: {told}",
                "nonsense: words that look like a language and mean nothing, the worse the longer the text",
                f"the order for rotating {meant}"
                + ("" if can_reorder_rows else "; convert the folder --to hf first, then repair that one"),
                is_repairable=can_reorder_rows,
            )
        )
    if best.config.rope_theta != config.rope_theta:
        found.append(
            Fault(
                "wrong-rope-theta",
                f"the rotary base is {config.rope_theta:g}: {told}",
                "answers that get worse the longer the text, and lose the thread",
                f"{best.config.rope_theta:g}",
            )
        )
    if replace(best.config, rope_theta=config.rope_theta) != config:
        found.append(
            Fault(
                "lost-scales",
                f"scale_emb {config.scale_emb:g}, scale_depth {config.scale_depth:g} and dim_model_base "
                f"{config.dim_model_base} are not what the weights were trained with: {told}",
                f"{SCALES_SYMPTOM} (model_type llama does not make it one)",
                f"the constants of MiniCPM-1B and 2B of 2024 ({SCALE_EMB}, {SCALE_DEPTH}, {DIM_MODEL_BASE})",
            )
        )
    return found


def _not_finite(checkpoint: Checkpoint) -> Fault:
    names = [name for name in checkpoint.config.parameter_shapes() if not _is_finite(checkpoint, name)]
    where = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Fault(
        "not-finite",
        f"{where or 'its activations'}: infinite, or no numbers",
        "no answer, exclamation marks or <unk> only, or 'probability tensor contains inf or nan'",
        "weights that were saved before training went wrong (float16 overflows above 65504; train in bfloat16)",
        is_repairable=False,
    )


def _is_finite(checkpoint: Checkpoint, name: str) -> bool:
    weight = read_weight(checkpoint, name)
    if isinstance(weight, IntWeight):
        return True  # read_weight has checked the scales
    is_finite = bool(np.isfinite(weight.float32()).all())
    checkpoint.release(name)
    return is_finite
