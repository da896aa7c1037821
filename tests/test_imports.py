"""The rules of the package: imports point down, torch stays in its rooms, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "minicpm"

# Rooms from the ground up; a room may import its own level's lower neighbours only through a smaller number.
LEVELS: dict[str, int] = {
    "errors": 0, "files": 0, "progress": 0, "sandbox": 0,
    "native": 1, "chat": 1, "tokenizer": 1, "sampling": 1, "hub": 1, "vision": 1,
    "formats": 2,
    "quant": 3,
    "models": 4,
    "export": 5,
    "engine": 6, "train": 6,
    "eval": 7, "bench": 7,
    "doctor": 8,
    "cli": 9, "server": 9, "demo": 9, "compat": 9,
}  # fmt: skip
# The root has __version__ and lazy names; every module may import it.
TORCH_ROOMS = ("models", "train", "compat.scripts", "engine.backends.torch")


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the room's name"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = sorted(
    path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem not in ("__init__", "__main__")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_name(path))
def test_imports_point_down(path: Path):
    room = module_name(path).split(".")[0]
    for module in imported_modules(path):
        if module.startswith("minicpm.") and (other := module.split(".")[1]) in LEVELS and other != room:
            assert LEVELS[other] <= LEVELS[room], f"{room} may not import {other}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_name(path))
def test_torch_stays_in_its_rooms(path: Path):
    name = module_name(path)
    if not name.startswith(TORCH_ROOMS):
        heavy = {m.split(".")[0] for m in imported_modules(path)} & {
            "torch",
            "transformers",
            "accelerate",
            "peft",
            "trl",
        }
        assert not heavy, f"{name} imports {heavy}"


# `quant` must not know the place of a model, how its files are opened, or the disk.
NOT_FOR_QUANT = (
    "minicpm.formats.checkpoint", "minicpm.formats.folder", "minicpm.formats.mapped", "minicpm.files", "minicpm.hub",
    "pathlib", "os", "io", "mmap", "shutil", "tempfile",
)  # fmt: skip


@pytest.mark.parametrize("path", sorted((SOURCE / "quant").glob("*.py")), ids=lambda path: path.stem)
def test_quant_is_arithmetic_and_opens_no_file(path: Path):
    imported = imported_modules(path)
    found = {module for module in imported if any(f"{module}.".startswith(f"{name}.") for name in NOT_FOR_QUANT)}
    assert not found, f"quant/{path.name} imports {found}"
    names = {node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    assert "open" not in names, f"quant/{path.name} opens a file"


# Functions that make a model's folder or file: the hidden destination, and the writers of weights.
MAKERS = frozenset({
    "minicpm.export.destination.new_folder", "minicpm.export.destination.new_file",
    "minicpm.formats.safetensors.SafetensorsWriter", "minicpm.formats.torch_bin.TorchWriter",
    "minicpm.formats.gguf.GgufWriter",
})  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_name(path))
def test_models_are_made_by_export_and_what_stands_above_it(path: Path):
    found = imported_modules(path) & MAKERS
    if found:
        name = module_name(path)
        assert name.split(".")[0] in ("export", "train", "doctor"), f"{name} imports {found}"
        if name.startswith("export.") and name != "export.gguf":
            assert name == "export.hf_folder", f"{name} makes a folder of its own; use export.hf_folder.write_folder"


def test_no_cycle_between_rooms_of_one_level():
    edges: dict[str, set[str]] = {}
    for path in SOURCES:
        room = module_name(path).split(".")[0]
        others = {m.split(".")[1] for m in imported_modules(path) if m.startswith("minicpm.")}
        edges.setdefault(room, set()).update(o for o in others if o in LEVELS and o != room)
    for room, others in edges.items():
        for other in others:
            assert room not in edges.get(other, ()), f"{room} and {other} import each other"


def test_llm_knows_no_backend():
    """What computes comes to LLM from loading.py as a Runtime; LLM never asks which one it is."""
    path = SOURCE / "engine" / "llm.py"
    assert not [module for module in imported_modules(path) if module.startswith("minicpm.engine.backends")]
    checks = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    asked = [
        ast.unparse(call.args[0]) for call in checks if ast.unparse(call.func) in ("isinstance", "type", "hasattr")
    ]
    assert asked and not [what for what in asked if "backend" in what or "runtime" in what]


def test_no_method_of_the_engine_only_raises():
    """An engine lacks the methods that it cannot provide, so that callers check for them."""
    stubs = []
    for path in (SOURCE / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef):
                    statements = [part for part in method.body if not isinstance(part, ast.Expr)]
                    if statements and all(isinstance(part, ast.Raise) for part in statements):
                        stubs.append(f"{module_name(path)}.{node.name}.{method.name}")
    assert not stubs


@pytest.mark.parametrize("arguments", [["-c", "import minicpm"], ["-m", "minicpm", "--help"]], ids=["import", "help"])
def test_starting_loads_nothing_heavy(arguments: list[str]):
    code = (
        "import runpy, sys\n"
        f"arguments = {arguments!r}\n"
        "if arguments[0] == '-c': exec(arguments[1])\n"
        "else:\n"
        "    sys.argv = ['minicpm', *arguments[2:]]\n"
        "    try: runpy.run_module(arguments[1], run_name='__main__')\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'tokenizers', 'jinja2', 'prompt_toolkit'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)), len(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    assert loaded.startswith("LOADED []"), loaded
