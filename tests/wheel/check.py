"""What a wheel weighs, and whether it chats in an empty environment: `check.py WHEEL [--install native|numpy]`.

Installs that wheel alone, outside the tree, and asks the built-in model one question; `check.py --installed native`
asks the environment that runs this. `numpy` is the wheel of a machine without a compiler: it answers, too, and says
once what computes.
"""

from __future__ import annotations

import argparse
import json
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
    "import importlib.util, json, minicpm; has_torch = importlib.util.find_spec('torch') is not None;"
    "print(json.dumps([minicpm.LLM().backend.name, has_torch, minicpm.__file__]))"
)


def check_sizes(wheel: Path) -> None:
    """Print what is packed in; SystemExit where the core is too large."""
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    model = [entry for entry in entries if entry.filename.startswith(MODEL)]
    core = [entry for entry in entries if entry not in model]
    extension = [entry for entry in core if "/_native." in entry.filename and entry.filename.endswith((".so", ".pyd"))]
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


def check_wheel(wheel: Path, backend: str) -> None:
    """Install the wheel in an environment of its own and talk; SystemExit where anything is not as it should be."""
    with tempfile.TemporaryDirectory(prefix="minicpm-wheel-") as folder:
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=True)
        scripts = environment / ("Scripts" if os.name == "nt" else "bin")
        install = [scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*install, "--constraint", CONSTRAINTS, wheel.resolve()], Path(folder))
        check_chat(environment, scripts, backend, Path(folder))


def check_chat(environment: Path, scripts: Path, backend: str, root: Path) -> None:
    """Talk with the package installed in an environment, with `root` to write to."""
    name, has_torch, origin = json.loads(_run([scripts / "python", "-c", FACTS], root).stdout)
    talk = _run([scripts / "minicpm", "chat"], root, QUESTION + "\n")
    warnings = talk.stderr.count(SAYS_NUMPY)
    print(f"{origin}: backend {name}, torch {has_torch}; {QUESTION} {talk.stdout.strip()}")
    print(talk.stderr, end="", file=sys.stderr)
    expected = [
        (name == backend and not has_torch, f"expected the {backend} backend and no torch, got {name}, {has_torch}"),
        (Path(origin).resolve().is_relative_to(environment.resolve()), "is not what was installed"),
        (ANSWER in talk.stdout, f"expected {ANSWER} in the answer, got {talk.stdout!r}"),
        (warnings == (backend == "numpy"), f"it says {warnings} times that {SAYS_NUMPY}: {talk.stderr!r}"),
    ]
    for holds, problem in expected:
        if not holds:
            sys.exit(f"{origin}: {problem}")


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
    parser.add_argument("wheel", type=Path, nargs="?")
    for option, explanation in (("--install", "install it and chat"), ("--installed", "chat with what is installed")):
        parser.add_argument(option, choices=("native", "numpy"), metavar="BACKEND", help=explanation)
    args = parser.parse_args()
    if (args.wheel is None) == (args.installed is None):
        parser.error("give a wheel, or --installed")
    if args.wheel:
        check_sizes(args.wheel)
    if args.install:
        check_wheel(args.wheel, args.install)
    if args.installed:
        with tempfile.TemporaryDirectory(prefix="minicpm-wheel-") as folder:
            check_chat(Path(sys.prefix), Path(sys.executable).parent, args.installed, Path(folder))


if __name__ == "__main__":
    main()
