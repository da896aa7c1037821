"""Download the true MiniCPM-2B from a hub on loopback: ours and huggingface_hub's in turn, whole and killed half-way.

    python benchmarks/downloads.py [--folder runs/2b] [--repeats 3]

The hub is the tests' own (tests/fake_hub.py) serving the folder's files from memory maps in this process, so that the
network costs nothing and what is left is the client. Writes benchmarks/results/downloads.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from costs import Cost, measure, require_idle_machine, row, write_results
from report import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_hub import FakeHub, Repo, git_sha1, sha256

NAME = "openbmb/MiniCPM-2B-dpo-bf16"
OURS = [sys.executable, "-m", "minicpm", "pull", NAME]
PEER = [sys.executable, "-c", f"from huggingface_hub import snapshot_download; snapshot_download({NAME!r})"]


class StillRepo(Repo):
    """A repository whose files do not change, so that each is hashed once."""

    def __init__(self, files: dict[str, bytes], lfs: set[str]):
        super().__init__(files, lfs)
        self._digests = {path: sha256(data) if path in lfs else git_sha1(data[:]) for path, data in files.items()}

    @property
    def commit(self) -> str:
        return "0123456789abcdef0123456789abcdef01234567"

    def digest(self, path: str) -> str:
        return self._digests[path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    require_idle_machine()
    cache = args.folder.with_name("downloads").resolve()
    with FakeHub() as server:
        server.repos[NAME] = StillRepo(*mapped(args.folder))
        os.environ.update(environment(server.url, cache))
        rows = [told(one) for one in all_rows(server, cache, args.repeats)]
    note = "MiniCPM-2B bf16 (5.4 GB) from a server on loopback; sha256 verified by ours, by the peer only its length."
    print("wrote", write_results("downloads", rows, note))
    write_report()


def all_rows(server: FakeHub, cache: Path, repeats: int) -> Iterator[dict[str, object]]:
    costs: dict[str, list[Cost]] = {"minicpm pull": [], "huggingface_hub snapshot_download": []}
    for _ in range(repeats):
        for what, command in (("minicpm pull", OURS), ("huggingface_hub snapshot_download", PEER)):
            shutil.rmtree(cache, ignore_errors=True)
            costs[what].append(measure(command))
    for what, measured in costs.items():
        middle = sorted(measured, key=lambda cost: cost.wall_s)[len(measured) // 2]
        yield row(f"{what}, whole, median of {repeats}", middle, mb_per_s=round(size(server) / 1e6 / middle.wall_s))
    for what, command in (("minicpm pull", OURS), ("huggingface_hub snapshot_download", PEER)):
        yield killed_row(what, command, server, cache)
    shutil.rmtree(cache)
    measure(OURS)
    yield row("minicpm list", measure([sys.executable, "-m", "minicpm", "list"]))
    yield row("minicpm rm", measure([sys.executable, "-m", "minicpm", "rm", NAME, "--yes"]))
    shutil.rmtree(cache)


def killed_row(what: str, command: list[str], server: FakeHub, cache: Path) -> dict[str, object]:
    """kill -9 at half of the bytes, then the same command again: how many bytes went over the wire in all."""
    shutil.rmtree(cache, ignore_errors=True)
    before = server.fetched()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.fetched() - before < size(server) / 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cost = measure(command)
    again = server.fetched() - before - size(server)
    return row(f"{what}, the rest after kill -9 at half", cost, bytes_fetched_twice=again)


def size(server: FakeHub) -> int:
    return sum(len(data) for data in server.repos[NAME].files.values())


def mapped(folder: Path) -> tuple[dict[str, bytes], set[str]]:
    files: dict[str, bytes] = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            files[path.name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # type: ignore[assignment]
    return files, {name for name in files if name.endswith((".safetensors", ".model"))}


def environment(url: str, cache: Path) -> dict[str, str]:
    places = {"HF_HOME": "hf", "MODELSCOPE_CACHE": "ms", "MINICPM_HOME": "home"}
    return {
        "HF_ENDPOINT": url,
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **{name: f"{cache}/{place}" for name, place in places.items()},
    }


def told(one: dict[str, object]) -> dict[str, object]:
    print(one, flush=True)
    return one


if __name__ == "__main__":
    main()
