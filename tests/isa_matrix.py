"""Records what passing tests prove of every set of kernels, and writes docs/numerics.md's tables of it.

A test says by `@pytest.mark.proves("attention")` what it proves of the set in its parameter `isa`, or of `isa=`;
`make isa-matrix` runs them with `--isa-record FILE` and writes the tables (`python tests/isa_matrix.py`). The record
has where it ran, the set, what was proved, and the tests that did; what was run nowhere has no entry.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from generated import with_section
from isas import ARM_ISAS, X86_ISAS

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "data" / "isa_matrix.json"
DOCUMENT = ROOT / "docs" / "numerics.md"
SECTION = "tests/isa_matrix.py"
# In the order of the tables.
PROPERTIES = (
    "int4 products",
    "int8 products",
    "float weights",
    "attention",
    "bfloat16 cache",
    "sliding window",
    "whole models",
    "any threads and chunks",
    "not finite",
    "draws",
)
ISAS = ("numpy", "generic", *reversed(X86_ISAS[:-1]), *reversed(ARM_ISAS[:-1]))

# Where it ran -> set of kernels -> what was proved -> the tests that did.
Matrix = dict[str, dict[str, dict[str, list[str]]]]
Proof = tuple[str, str, str, str]  # the same four, of one test


# --- Recording ---------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--isa-record", type=Path, help="write what passes and is marked `proves` into this file")
    parser.addoption("--isa-place", default=platform.machine(), help="what the record calls this machine and build")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proves(*properties, isa): what the test proves of a set of kernels")
    if config.getoption("--isa-record"):
        config.pluginmanager.register(_Recorder(config))


class _Recorder:
    def __init__(self, config: pytest.Config):
        self._path: Path = config.getoption("--isa-record")
        self._place: str = config.getoption("--isa-place")
        self._proofs: set[Proof] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A report comes from the process that ran the test, with what its marks say."""
        report = yield
        if report.when == "call":
            report.user_properties += [("proves", (self._place, *proof)) for proof in marked(item)]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._proofs |= {tuple(proof) for name, proof in report.user_properties if name == "proves"}

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == 0 and not hasattr(session.config, "workerinput"):
            matrix = merged(read(self._path) if self._path.exists() else {}, self._proofs)
            self._path.write_text(json.dumps(matrix, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def marked(item: pytest.Item) -> Iterator[tuple[str, str, str]]:
    """(isa, property, test) of what a test's marks say that it proves."""
    callspec = getattr(item, "callspec", None)
    parameters = callspec.params if callspec else {}
    for mark in item.iter_markers("proves"):
        isa = mark.kwargs.get("isa") or parameters["isa"]
        for proved in mark.args:
            if proved not in PROPERTIES:
                raise ValueError(f"{item.nodeid} proves {proved!r}; expected one of {', '.join(PROPERTIES)}")
            yield isa, proved, item.nodeid.partition("[")[0]


def merged(matrix: Matrix, proofs: set[Proof]) -> Matrix:
    """The record after a run: what it proved of a set replaces all that was known of the set in that place."""
    found: Matrix = {}
    for place, isa, proved, test in sorted(proofs):
        found.setdefault(place, {}).setdefault(isa, {}).setdefault(proved, []).append(test)
    return {place: {**matrix.get(place, {}), **found.get(place, {})} for place in {*matrix, *found}}


def read(path: Path) -> Matrix:
    matrix: Matrix = json.loads(path.read_text(encoding="utf-8"))
    return matrix


# --- Showing -----------------------------------------------------------------------------------------------------


def tables(matrix: Matrix) -> str:
    """A row for every set and place with what was proved there; and the tests, what they prove."""
    lines = ["| kernels | ran on | " + " | ".join(PROPERTIES) + " |", "|---" * (2 + len(PROPERTIES)) + "|"]
    places = sorted(matrix, key=lambda place: (place.startswith("qemu"), place))
    unknown = sorted({isa for isas in matrix.values() for isa in isas} - set(ISAS))
    for isa in (*ISAS, *unknown):
        for place in places:
            if isa in matrix[place]:
                cells = ["yes" if matrix[place][isa].get(proved) else "" for proved in PROPERTIES]
                lines.append(f"| `{isa}` | {place} | " + " | ".join(cells) + " |")
    lines += ["", "| proved | of the kernels, against numpy | of numpy |", "|---|---|---|"]
    for proved in PROPERTIES:
        numpys, kernels = (_tests(matrix, proved, is_numpy) for is_numpy in (True, False))
        lines.append(f"| {proved} | {kernels} | {numpys} |")
    return "\n".join(lines) + "\n"


def _tests(matrix: Matrix, proved: str, is_numpy: bool) -> str:
    found = {
        test.rpartition("::")[2]
        for isas in matrix.values()
        for isa, proofs in isas.items()
        if (isa == "numpy") == is_numpy
        for test in proofs.get(proved, [])
    }
    return "; ".join(test.removeprefix("test_").replace("_", " ") for test in sorted(found))


def with_tables(text: str, matrix: Matrix) -> str:
    return with_section(text, SECTION, tables(matrix))


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8"), read(RECORD)), encoding="utf-8")
