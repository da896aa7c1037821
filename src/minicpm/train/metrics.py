"""What a run measured: metrics.jsonl, one JSON object a step, and loss.svg drawn from it.

A record is {"step", "loss", "lr", ...} for a step and {"step", "eval_loss"} for an evaluation. Steps count from 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minicpm.files import naming_full_disk

MAX_POINTS = 600  # of a curve in the picture
SMOOTHING = 0.05  # share of the newest loss in the smoothed curve


class Metrics:
    """The metrics file of a run, appended line by line."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()

    def append(self, record: Mapping[str, Any]) -> None:
        with naming_full_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def cut_after(self, step: int) -> None:
        """Forget what lies behind `step`, and a last line that a kill left half written."""
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        partial = self.path.with_name(f".{self.path.name}.partial")
        with naming_full_disk(self.path), partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def draw_losses(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the training loss (each step and smoothed) and the evaluation loss over the steps as an SVG."""
    trained = [(r["step"], float(r["loss"])) for r in records if "loss" in r]
    evaluated = [(r["step"], float(r["eval_loss"])) for r in records if "eval_loss" in r]
    if not trained:
        return
    smooth: list[tuple[int, float]] = []
    for step, loss in trained:
        smooth.append((step, loss if not smooth else smooth[-1][1] + SMOOTHING * (loss - smooth[-1][1])))
    with naming_full_disk(path):
        path.write_text(_svg(trained, smooth, evaluated), encoding="utf-8")


Curve = Sequence[tuple[int, float]]


def _svg(trained: Curve, smooth: Curve, evaluated: Curve) -> str:
    width, height, left, bottom, top = 800, 450, 60, 40, 20
    losses = [loss for _, loss in (*trained, *evaluated)]
    low, high = min(losses), max(losses)
    high = high if high > low else low + 1
    first, last = trained[0][0], max(trained[-1][0], trained[0][0] + 1)

    def x(step: float) -> float:
        return left + (step - first) / (last - first) * (width - left - 20)

    def y(loss: float) -> float:
        return top + (high - loss) / (high - low) * (height - top - bottom)

    def line(curve: Curve, colour: str, stroke: float) -> str:
        every = max(1, len(curve) // MAX_POINTS)
        thinned = [*curve[::every], curve[-1]]
        points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in thinned)
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for i in range(6):
        loss, step = low + i * (high - low) / 5, first + i * (last - first) / 5
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
        parts.append(f'<text x="{x(step):.1f}" y="{height - 18}" text-anchor="middle">{step:.0f}</text>')
    parts += [line(trained, "#bcd", 1), line(smooth, "#1f5fa8", 2)]
    parts.append(f'<text x="{width - 20}" y="{top + 14}" text-anchor="end" fill="#1f5fa8">training loss</text>')
    if evaluated:
        parts.append(line(evaluated, "#c43", 2))
        parts.append(f'<text x="{width - 20}" y="{top + 30}" text-anchor="end" fill="#c43">evaluation loss</text>')
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 2}" text-anchor="middle">step</text></svg>\n')
    return "\n".join(parts)
