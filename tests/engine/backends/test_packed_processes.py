"""The packed file among real processes: they pack at once, are killed, or find a full or foreign disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicpm import native
from minicpm.export.quantize import quantize_folder
from minicpm.hub import packed_files
from small_models import ODD, write_model

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}")

SCRIPT = Path(__file__).with_name("packing.py")
# A file system of 64 KB in a namespace of its own, which ends with the process.
SMALL_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount -t tmpfs -o size=64k,mode=777 tmpfs "$MINICPM_HOME" && exec "$0" "$@"'


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    """A quantized model where any user can read it."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    quantize_folder(write_model(root / "source", ODD), root / "int4")
    yield root / "int4"
    shutil.rmtree(root)


@pytest.fixture
def home(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(dir=model.parent))
    home.chmod(0o755)
    monkeypatch.setenv("MINICPM_HOME", str(home))
    yield home
    shutil.rmtree(home)


def start(model: Path, how: str, prefix: list[str] | None = None) -> subprocess.Popen[str]:
    command = [*(prefix or []), sys.executable, str(SCRIPT), str(model), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], line: str = "") -> dict[str, Any]:
    out, _ = process.communicate(line)
    assert process.returncode == 0
    said: dict[str, Any] = json.loads(out)
    return said


def run(model: Path, how: str = "plain", prefix: list[str] | None = None) -> dict[str, Any]:
    return end(start(model, how, prefix))


@pytest.fixture(scope="module")
def bits(model: Path) -> str:
    """Of the answer without any file."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MINICPM_HOME", os.devnull)
        said = run(model)
    assert not said["is_mapped"]
    return str(said["bits"])


def test_several_that_pack_at_once_answer_alike_and_leave_one_file(model: Path, home: Path, bits: str):
    processes = [start(model, "meeting") for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [end(process) for process in processes]
    assert [one["bits"] for one in said] == [bits] * 3
    assert [one["warnings"] for one in said] == [[]] * 3
    assert [path.suffix for path in (home / "packed").iterdir()] == [".bin"]
    again = run(model)
    assert (again["bits"], again["fills"], again["is_mapped"]) == (bits, 0, True)


def test_killed_at_any_moment_the_next_start_answers_and_leaves_one_file(model: Path, home: Path, bits: str):
    said = run(model, "killed")
    assert said["expected"]["bits"] == bits and said["expected"]["is_mapped"]
    assert [name[-4:] for name in said["expected"]["files"]] == [".bin"]
    assert said["bad"] == []
    assert said["kills"] > 15


def test_where_a_file_cannot_grow_the_weights_lie_in_memory(model: Path, home: Path, bits: str):
    said = run(model, "small-files")
    assert (said["bits"], said["fills"], said["is_mapped"], said["files"]) == (bits, 1, False, [])
    assert len(said["warnings"]) == 1 and "cannot be kept (File too large)" in said["warnings"][0]


def test_on_a_full_disk_the_weights_lie_in_memory(model: Path, home: Path, bits: str):
    try:
        probe = subprocess.run([*SMALL_DISK, MOUNT, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.strip()}")
    said = run(model, "plain", [*SMALL_DISK, MOUNT])
    assert (said["bits"], said["fills"], said["is_mapped"], said["files"]) == (bits, 1, False, [])
    assert len(said["warnings"]) == 1 and "cannot be kept (No space left on device)" in said["warnings"][0]


@pytest.fixture
def sealed(home: Path) -> Iterator[Path]:
    """A cache that its reader cannot write."""
    (home / "packed").mkdir(exist_ok=True)
    (home / "packed").chmod(0o555)
    yield home
    (home / "packed").chmod(0o755)


def test_in_a_home_that_cannot_be_written_the_weights_lie_in_memory(model: Path, sealed: Path, bits: str):
    said = run(model, "nobody")
    assert (said["bits"], said["fills"], said["is_mapped"], said["files"]) == (bits, 1, False, [])
    assert len(said["warnings"]) == 1 and "cannot be kept (Permission denied)" in said["warnings"][0]


def test_what_the_system_has_packed_is_mapped_from_a_home_that_cannot_be_written(model: Path, home: Path, bits: str):
    made = run(model)
    (home / "packed").chmod(0o555)
    said = run(model, "nobody")
    (home / "packed").chmod(0o755)
    assert (said["bits"], said["fills"], said["is_mapped"], said["warnings"]) == (bits, 0, True, [])
    assert said["files"] == made["files"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_not_trusted(model: Path, home: Path, bits: str):
    run(model)
    (path,) = (home / "packed").iterdir()
    os.chown(path, 12345, 12345)
    said = run(model)
    assert (said["bits"], said["fills"], said["is_mapped"]) == (bits, 1, True)
    assert path.stat().st_uid == 0
    partial = path.with_suffix(".partial")
    path.unlink()
    partial.write_bytes(b"another user's")
    os.chown(partial, 12345, 12345)
    said = run(model)
    assert (said["bits"], said["fills"], said["is_mapped"]) == (bits, 1, False)
    assert "belongs to another user; delete it" in said["warnings"][0]
    assert partial.read_bytes() == b"another user's"


def test_a_file_that_a_running_program_has_mapped_is_never_removed(model: Path, home: Path, monkeypatch):
    process = start(model, "holding")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (path,) = (home / "packed").iterdir()
    monkeypatch.setattr(packed_files, "MAX_TOTAL_BYTES", 0)
    packed_files.make_room(1, layout=-1)
    assert path.exists()
    end(process, "\n")
    packed_files.make_room(1, layout=-1)
    assert not path.exists()
