"""What a wheel weighs, and whether it chats in an empty environment: `check.py WHEEL [--install native|numpy]`.

Installs that wheel alone, outside the tree, and asks the built-in model one question. `numpy` is the wheel of a machine
without a compiler: it answers, too, and says once what computes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

MAX_CORE_BYTES = 10_000_000
MODEL = "minicpm/assets/MiniCPM-nano/"
PAGE = {f"minicpm/server/page/{name}" for name in ("index.html", "page.js", "page.css")}
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
QUESTION, ANSWER = "What is the capital of Japan?", "Tokyo"
SAYS_NUMPY = "the numpy backend computes"
FACTS = (
    "import importlib.util, minicpm; llm = minicpm.LLM();"
    "print(llm.backend.name, importlib.util.find_spec('torch'), minicpm.__file__)"
)


def check_sizes(wheel: Path) -> None:
    """Print what is packed in; SystemExit where the core is too large."""
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    model = [entry for entry in entries if entry.filename.startswith(MODEL)]
    core = [entry for entry in entries if entry not in model]
    extension = [entry for entry in core if "/_native." in entry.filename and entry.filename.endswith(".so")]
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    for name, part in (("MiniCPM-nano", model), ("core", core), ("of it the extension", extension)):
        print(f"  {name:20s} {_size(part) / 1e6:5.1f} MB installed, {len(part)} files")
    if not model:
        sys.exit(f"{wheel.name} holds no {MODEL}: it could not answer without a download")
    if missing := PAGE - {entry.filename for entry in core}:
        sys.exit(f"{wheel.name} holds no {', '.join(sorted(missing))}: its server would have no page")
    if _size(core) >= MAX_CORE_BYTES:
        sys.exit(f"{wheel.name}: the core has {_size(core):,} bytes, expected less than {MAX_CORE_BYTES:,}")


def _size(entries: list[zipfile.ZipInfo]) -> int:
    return sum(entry.file_size for entry in entries)


def check_chat(wheel: Path, backend: str) -> None:
    """Install the wheel in an environment of its own and talk; SystemExit where anything is not as it should be."""
    with tempfile.TemporaryDirectory(prefix="minicpm-wheel-") as folder:
        root = Path(folder)
        venv.create(root / "venv", with_pip=True)
        scripts = root / "venv" / "bin"
        install = [scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*install, "--constraint", CONSTRAINTS, wheel.resolve()], root)
        facts = _run([scripts / "python", "-c", FACTS], root).stdout.split()
        talk = _run([scripts / "minicpm", "chat"], root, QUESTION + "\n")
    warnings = talk.stderr.count(SAYS_NUMPY)
    print(f"{wheel.name}: backend {facts[0]}, torch {facts[1]}; {QUESTION} {talk.stdout.strip()}")
    print(talk.stderr, end="", file=sys.stderr)
    expected = [
        (facts[:2] == [backend, "None"], f"expected the {backend} backend and no torch, got {facts}"),
        (facts[2].startswith(folder), f"imported {facts[2]}, which is not the installed wheel"),
        (ANSWER in talk.stdout, f"expected {ANSWER} in the answer, got {talk.stdout!r}"),
        (warnings == (backend == "numpy"), f"it says {warnings} times that {SAYS_NUMPY}: {talk.stderr!r}"),
    ]
    for holds, problem in expected:
        if not holds:
            sys.exit(f"{wheel.name}: {problem}")


def _run(command: list[str | Path], root: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A command that must succeed, with a home of its own and nothing of this tree."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MINICPM_", "VIRTUAL_ENV"))
    }
    environment = {**kept, "MINICPM_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=root, env=environment, input=stdin, text=True, capture_output=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--install", choices=("native", "numpy"), metavar="BACKEND", help="install it and chat")
    args = parser.parse_args()
    check_sizes(args.wheel)
    if args.install:
        check_chat(args.wheel, args.install)


if __name__ == "__main__":
    main()
