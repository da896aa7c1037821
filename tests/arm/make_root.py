"""Debian's Python for 64-bit ARM in a folder, unpacked and not installed: `make_root.py FOLDER`.

`make wheel-arm` compiles against its headers, tests/arm/test_wheel.py starts it under qemu. apt finds the packages
where this system has its own from, but keeps all that it notes and fetches in a folder of its own: the system stays as
it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"  # that of the wheel, which this Python builds
PACKAGES = (PYTHON, f"lib{PYTHON}-dev", "libstdc++6")


def apt_options(state: Path) -> list[str]:
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "archives" / "partial").mkdir(parents=True)
    (state / "status").touch()  # nothing is installed there, so all that the packages need is fetched, too
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",  # another user could not write here
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
    }
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


def run(command: Iterable[str | Path]) -> None:
    """A command that must succeed; what it says is shown only where it does not."""
    words = list(map(str, command))
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(
            f"{done.stdout}{words[0]} ended with {done.returncode}. This needs Debian, its packages of {PYTHON} for "
            "arm64 among those that apt finds; for another Python make the .venv with it: PYTHON=python3.11"
        )


def make_root(root: Path) -> None:
    """Fetch and unpack; `root` is whole or absent."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not there; Debian has it, and so have the systems that are made of Debian")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
        state, unpacked = Path(folder) / "apt", Path(folder) / "root"
        apt = ["apt-get", *apt_options(state), "--yes", "--quiet"]
        run([*apt, "update"])
        run([*apt, "install", "--download-only", "--no-install-recommends", *PACKAGES])
        for package in sorted((state / "archives").glob("*.deb")):
            run(["dpkg-deb", "--extract", package, unpacked])
        shutil.rmtree(root, ignore_errors=True)
        unpacked.rename(root)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_root(Path(sys.argv[1]).resolve())
