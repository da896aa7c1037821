"""results/versus_peers*.svg from results/versus_peers*.json: a panel a point, a bar a program, drawn in plain SVG."""

from __future__ import annotations

from html import escape
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
OURS, PEER = "#b5482a", "#8a94a0"
PANEL_WIDTH, BAR, GAP, LABEL_WIDTH, TOP = 420, 18, 6, 170, 34
COLUMNS = 2


def write_plots(results: list[dict]) -> None:
    """Draw the results beside peers; each file whole or not at all."""
    for result in results:
        if result["benchmark"].startswith("versus_peers"):
            target = RESULTS / f"{result['benchmark']}.svg"
            temporary = target.with_suffix(".tmp")
            temporary.write_text(drawing(result["rows"]), encoding="utf-8")
            temporary.replace(target)


def drawing(rows: list[dict[str, object]]) -> str:
    """The whole picture: a grid of panels, medians as bars."""
    programs = [str(row["program"]) for row in rows if "program" in row]
    panels = [panel(row, programs) for row in points(rows)]
    height = max((size for _, size in panels), default=0) + 2 * GAP
    lines = -(-len(panels) // COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{COLUMNS * PANEL_WIDTH}" height="{lines * height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, (body, _) in enumerate(panels):
        x, y = index % COLUMNS * PANEL_WIDTH, index // COLUMNS * height
        parts.append(f'<g transform="translate({x} {y})">{body}</g>')
    return "\n".join([*parts, "</svg>", ""])


def points(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """A row for each point with the programs of all tables; what stands in several of them as in the first."""
    found: dict[object, dict[str, object]] = {}
    for row in rows:
        if "point" in row:
            merged = found.setdefault(row["point"], {})
            merged |= {name: value for name, value in row.items() if merged.get(name, "-") == "-"}
    return list(found.values())


def panel(row: dict[str, object], programs: list[str]) -> tuple[str, int]:
    """One point's bars and how high they are; a bar ends at the median, a thin line at the best window."""
    bars = {name: figures(str(row[name])) for name in programs if row.get(name, "-") != "-"}
    largest = max((max(pair) for pair in bars.values()), default=1)
    parts = [f'<text x="8" y="20" font-weight="bold">{escape(str(row["point"]))}</text>']
    y = TOP
    for name, (median, best) in bars.items():
        scale = (PANEL_WIDTH - LABEL_WIDTH - 60) / largest
        color = OURS if is_ours(name) else PEER
        parts.append(f'<text x="{LABEL_WIDTH - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{LABEL_WIDTH}" y="{y}" width="{median * scale:.1f}" height="{BAR}" fill="{color}"/>')
        x = LABEL_WIDTH + best * scale
        parts.append(f'<path d="M{x:.1f} {y}v{BAR}" stroke="{color}"/>')
        parts.append(f'<text x="{max(x, LABEL_WIDTH + median * scale) + 4:.1f}" y="{y + 13}">{median:g}</text>')
        y += BAR + GAP
    return "".join(parts), y


def figures(cell: str) -> tuple[float, float]:
    """'31.2 / 33.0' -> median and best."""
    median, _, best = cell.partition(" / ")
    return float(median), float(best or median)


def is_ours(name: str) -> bool:
    return name.startswith("minicpm")
