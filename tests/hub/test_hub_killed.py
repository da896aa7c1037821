"""kill -9 at any moment: what arrived stays, what is published is whole, and the next pull goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fake_hub import FakeHub, Request, isolate
from hub.victim import pull_quietly
from minicpm import hub

NAME = "openbmb/MiniCPM-2B-dpo-bf16"
KILLS = 20
MAX_LOST_BYTES = 8 << 20
SHARDS = {
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(36_000_007),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(28_000_003),
}
INDEX = {"weight_map": {f"tensor.{number}": name for number, name in enumerate(SHARDS)}}
FILES = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(INDEX).encode(), **SHARDS}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with FakeHub() as fake:
        isolate(monkeypatch, tmp_path, fake)
        fake.add(NAME, FILES)
        fake.add("OpenBMB/MiniCPM-2B-dpo-bf16", FILES)
        yield fake


class Killer:
    """Kills a process when the server has handed out a number of bytes more."""

    def __init__(self, server: FakeHub):
        self.pid: int | None = None
        self._left = 0
        self._guard = threading.Lock()
        server.on_block = self._count

    def aim(self, nbytes: int) -> None:
        with self._guard:
            self.pid, self._left = None, nbytes

    def _count(self, request: Request) -> None:
        with self._guard:
            self._left -= 1 << 16
            if self._left <= 0 and self.pid is not None:
                os.kill(self.pid, signal.SIGKILL)
                self.pid = None


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_twenty_kills_cost_at_most_eight_mebibytes_each(server: FakeHub, tmp_path: Path, source: hub.Source):
    # A server process that has the libraries loaded forks each victim: twenty starts would cost a minute otherwise.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["minicpm.hub", "huggingface_hub", "huggingface_hub.hf_api", "huggingface_hub.utils"]
    )
    environment = {name: os.environ[name] for name in os.environ if name.startswith(("HF_", "MINICPM_", "MODELSCOPE_"))}
    killer = Killer(server)
    shots = random.Random(f"{source} 7")
    killed = lost = 0
    while killed < KILLS:
        had = partial_bytes(tmp_path)
        before = server.settled()
        # On average a kill every 1/20 of the download, so that the last still finds something to interrupt.
        killer.aim(shots.randrange(2 * sum(map(len, SHARDS.values())) // KILLS))
        victim = context.Process(target=pull_quietly, args=(NAME, source, environment))
        victim.start()
        killer.pid = victim.pid
        victim.join(60)
        if victim.exitcode == 0:
            break
        assert victim.exitcode == -signal.SIGKILL
        killed += 1
        lost_now = server.settled() - before - (partial_bytes(tmp_path) - had)
        assert lost_now <= MAX_LOST_BYTES
        lost += lost_now
        assert hub.locate(NAME, source=source) is None, "a model that is not complete was published"
    assert killed >= KILLS // 2
    server.on_block = lambda request: None
    folder = hub.pull(NAME, source=source, tell=lambda text: None)
    assert all((folder / name).read_bytes() == data for name, data in FILES.items())
    fetched_twice = server.settled() - sum(map(len, FILES.values()))
    assert fetched_twice <= lost <= killed * MAX_LOST_BYTES
    assert list(tmp_path.rglob("*.incomplete")) == []


def partial_bytes(tmp_path: Path) -> int:
    """Bytes of files, finished or not, that lie in the caches."""
    found = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in found if path.parent.name == "blobs" or "minicpm" in path.parts)


def test_the_command_line_killed_halfway_goes_on_and_says_so(server: FakeHub, tmp_path: Path):
    command = [sys.executable, "-m", "minicpm", "pull", "minicpm-2b-dpo"]
    killer = Killer(server)
    killer.aim(20_000_000)
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killer.pid = victim.pid
    out, _ = victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL and out == ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "going on after " in done.stderr and "\x1b" not in done.stderr
    folder = Path(done.stdout.strip())
    assert all((folder / name).read_bytes() == data for name, data in FILES.items())
    assert server.fetched() - sum(map(len, FILES.values())) <= MAX_LOST_BYTES
