"""This package before and after a change, in alternating pairs, beside an A/A control: the old tree against itself.

    python benchmarks/versus_self.py --before 4173609                    # this checkout against a commit
    python benchmarks/versus_self.py --before ../old --after HEAD~1      # folders or commits
    python benchmarks/versus_self.py --before HEAD --pairs 2 --preparation    # a trial: never shown in a table

A commit is checked out into a temporary worktree and gets a native extension of its own. Every run is a process that
imports one tree (self_probe.py). A ratio compares the two runs of a pair; above 1, the new tree is faster. The interval
contains the true median ratio with 95 % confidence for any distribution. A figure counts as unchanged if this
interval overlaps that of the control. Writes benchmarks/results/versus_self.json and RESULTS.md. About 25 minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from costs import ROOT, commit_of, require_idle_machine, write_results
from make_model import make_model
from report import write_report

LEAST_PAIRS = 15
CONFIDENCE = 0.95
Figures = dict[str, float]


def main() -> None:
    args = parsed()
    require_idle_machine()
    if not args.folder.exists():
        make_model(args.folder, preset="int4")
    with ExitStack() as stack:
        before = tree_of(args.before, stack)
        after = tree_of(args.after, stack) if args.after else ROOT
        require_extension(after)
        commits = {"before": commit_of(before), "after": commit_of(after)}
        for tree in (before, after):  # packs weights and loads files into the page cache
            run(tree, args)
        changes, controls = [], []
        for number in range(args.pairs):
            changes.append(pair(before, after, number, args))
            controls.append(pair(before, before, number, args))
            talk(f"{number + 1} of {args.pairs} pairs")
    rows = [row_of(what, changes, controls) for what in changes[0][0]]
    note = (
        f"{args.folder} and MiniCPM-nano; {args.pairs} alternating pairs of processes: {commits['before']} (before) "
        f"and {commits['after']} (after), and as a control {commits['before']} against itself. Above 1 the second of a "
        "pair is faster. Median ratios and their distribution-free intervals of 95 % at least."
    )
    pairs = {"changes": changes, "controls": controls}
    path = write_results("versus_self", rows, note, is_preparation=args.preparation, commits=commits, pairs=pairs)
    for row in rows:
        print(row)
    print("wrote", path)
    if not args.preparation:
        write_report()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="TREE", help="a commit, or the folder of a checkout")
    parser.add_argument("--after", metavar="TREE", help="this checkout if left out")
    parser.add_argument("--folder", type=Path, default=Path("runs/2b-int4"), help="the 2B shapes, made if missing")
    parser.add_argument("--tokens", type=int, default=48, help="of the answer that is timed")
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS, help="default: %(default)s")
    parser.add_argument("--preparation", action="store_true", help="only try it: the result enters no document")
    args = parser.parse_args()
    if args.pairs < (1 if args.preparation else LEAST_PAIRS):
        parser.error(f"--pairs {args.pairs}: a comparison takes {LEAST_PAIRS} at least (--preparation takes any)")
    return args


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- trees -------------------------------------------------------------------------------------------------------


def tree_of(name: str, stack: ExitStack) -> Path:
    """The folder of a tree; a commit is checked out and built, and removed when the stack closes."""
    if Path(name).is_dir():
        folder = Path(name).resolve()
        require_extension(folder)
        return folder
    runs = ROOT / "runs"
    runs.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="tree-", dir=runs))
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", "--quiet", str(folder), name], check=True)
    stack.callback(remove_worktree, folder)
    talk(f"building the extension of {name}")
    build_extension(folder)
    return folder


def remove_worktree(folder: Path) -> None:
    shutil.rmtree(folder)
    subprocess.run(["git", "-C", str(ROOT), "worktree", "prune"], check=True)


def build_extension(folder: Path) -> None:
    """Build the native extension as `make setup` does."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    build = folder / "build" / "native"
    configure = ["cmake", "-S", str(folder), "-B", str(build), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    configure.append(f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'src' / 'minicpm'}")
    for command in (configure, ["cmake", "--build", str(build)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": tools})


def require_extension(folder: Path) -> None:
    if not list((folder / "src" / "minicpm").glob("_native*")):
        raise SystemExit(f"{folder} has no native extension; run make setup there")


# --- runs --------------------------------------------------------------------------------------------------------


def pair(one: Path, other: Path, number: int, args: argparse.Namespace) -> tuple[Figures, Figures]:
    """One run of each, in sequence; the order alternates from pair to pair."""
    if number % 2:
        second = run(other, args)
        return run(one, args), second
    return run(one, args), run(other, args)


def run(tree: Path, args: argparse.Namespace) -> Figures:
    """The figures of a tree, measured in a separate process."""
    command = [sys.executable, str(ROOT / "benchmarks" / "self_probe.py"), str(args.folder.resolve()), str(args.tokens)]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a run of {tree} failed: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if not Path(answer["imported"]).is_relative_to(tree):
        raise RuntimeError(f"a run of {tree} imported {answer['imported']}")
    found: Figures = answer["found"]
    return found


# --- tables ------------------------------------------------------------------------------------------------------


def row_of(
    what: str, changes: Sequence[tuple[Figures, Figures]], controls: Sequence[tuple[Figures, Figures]]
) -> dict[str, object]:
    change, control = ratios(what, changes), ratios(what, controls)
    return {
        "what": what,
        "before": float(f"{statistics.median(one[what] for one, _ in changes):.4g}"),
        "after": float(f"{statistics.median(other[what] for _, other in changes):.4g}"),
        "ratio": shown(change),
        "ratio of the control": shown(control),
        "verdict": verdict(interval(change), interval(control)),
    }


def ratios(what: str, pairs: Sequence[tuple[Figures, Figures]]) -> list[float]:
    """The speed of the second run relative to the first, per pair."""
    if what.endswith("(s)"):
        return [one[what] / other[what] for one, other in pairs]
    return [other[what] / one[what] for one, other in pairs]


def shown(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{statistics.median(values):.3f} ({low:.3f} to {high:.3f})"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Two order statistics that enclose the median with CONFIDENCE; the extremes if there are few values."""
    ordered, count = sorted(values), len(values)
    cut, tail = 0, 0.5**count  # tail: the probability that at most `cut` values lie below the median
    while cut + 1 < count / 2:
        tail += math.comb(count, cut + 1) * 0.5**count
        if 2 * tail > 1 - CONFIDENCE:
            break
        cut += 1
    return ordered[cut], ordered[-1 - cut]


def verdict(change: tuple[float, float], control: tuple[float, float]) -> str:
    if change[0] > control[1]:
        return "faster"
    return "slower" if change[1] < control[0] else "unchanged"


if __name__ == "__main__":
    main()
