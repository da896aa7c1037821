"""docs/numerics.md shows what tests proved of every set of kernels, and where; nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import isa_matrix
from isa_matrix import PROPERTIES, RECORD, ROOT, marked, merged, read, tables, with_tables
from minicpm import native

# What a kernel says that the processor has -> the kernels that run on it (isa.cc asks the processor itself).
FEATURES = {
    "avx2": {"avx2", "fma", "f16c"},
    "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "avx512bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"},
    "neondot": {"asimddp"},
    "neoni8mm": {"asimddp", "i8mm"},
}

needs_native = pytest.mark.skipif(native.why_missing() is not None, reason=f"no native engine: {native.why_missing()}")


def processor_features() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo to ask")
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    return next((set(value.split()) for name, _, value in lines if name.strip() in ("flags", "Features")), set())


def test_the_document_shows_the_record_and_nothing_else():
    text = isa_matrix.DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text, read(RECORD)) == text, "run: python tests/isa_matrix.py"


@needs_native
def test_every_set_that_the_processor_has_is_run_here():
    """The system's list of features, against what the extension finds by itself."""
    features = processor_features()
    expected = {isa for isa, needed in FEATURES.items() if needed <= features}
    assert expected == set(native.extension().runnable_isas()) - {"generic"}


@needs_native
def test_of_every_set_that_runs_here_everything_is_on_record():
    proved = {isa: proofs for isas in read(RECORD).values() for isa, proofs in isas.items()}
    for isa in native.extension().runnable_isas():
        assert proved.get(isa, {}).keys() == set(PROPERTIES), f"{isa}: run make isa-matrix"


def test_the_record_names_tests_that_are_there():
    for test in {
        test for isas in read(RECORD).values() for p in isas.values() for tests in p.values() for test in tests
    }:
        file, _, name = test.partition("::")
        assert f"def {name.rpartition('::')[2]}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_what_this_run_proves_is_on_record(request: pytest.FixtureRequest):
    """All marks of the collected tests must be recorded."""
    recorded = {
        (isa, proved, test)
        for isas in read(RECORD).values()
        for isa, proofs in isas.items()
        for proved, tests in proofs.items()
        for test in tests
    }
    # A set that this machine lacks proves nothing here.
    items = [item for item in request.session.items if item.get_closest_marker("skip") is None]
    now = {proof for item in items for proof in marked(item)}
    assert now <= recorded, f"run make isa-matrix: {sorted(now - recorded)[:3]}"


TESTS = """
import pytest

@pytest.mark.proves("attention", "draws")
@pytest.mark.parametrize("isa", ["one", "two"])
def test_passes_on_one(isa):
    if isa == "two":
        {two}

@pytest.mark.proves("draws", isa="numpy")
def test_of_numpy(): pass

def test_proves_nothing(): pass
"""


def recorded(tmp_path: Path, two: str, *options: str) -> isa_matrix.Matrix:
    (tmp_path / "test_it.py").write_text(TESTS.format(two=two))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "isa_matrix", *options]
    done = subprocess.run(
        [*command, "--isa-record", "record.json", "--isa-place", "here", "test_it.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "tests"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "proves nothing" not in done.stdout
    path = tmp_path / "record.json"
    return read(path) if path.exists() else {}


ONE = {"attention": ["test_it.py::test_passes_on_one"], "draws": ["test_it.py::test_passes_on_one"]}
NUMPY = {"draws": ["test_it.py::test_of_numpy"]}


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["in one process", "in others"])
def test_what_passed_is_recorded_and_what_was_skipped_is_not(tmp_path: Path, options: tuple[str, ...]):
    found = recorded(tmp_path, 'pytest.skip("not here")', *options)
    assert found == {"here": {"one": ONE, "numpy": NUMPY}}


def test_a_run_that_failed_records_nothing(tmp_path: Path):
    assert recorded(tmp_path, "assert False") == {}


def test_a_run_replaces_what_was_known_of_its_sets_and_keeps_the_others():
    old = {
        "here": {"one": {"draws": ["a"], "attention": ["a"]}, "two": {"draws": ["a"]}},
        "there": {"one": {"draws": ["a"]}},
    }
    found = merged(old, {("here", "one", "draws", "b"), ("here", "one", "draws", "a")})
    assert found == {**old, "here": {"one": {"draws": ["a", "b"]}, "two": {"draws": ["a"]}}}


def test_a_cell_without_a_run_is_empty():
    shown = tables(
        {"here": {"avx2": {"attention": ["file::test_a"]}}, "qemu max": {"neondot": {"draws": ["file::test_b"]}}}
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    titles = rows[0]
    (avx2,) = (dict(zip(titles, row)) for row in rows if row[0] == "`avx2`")
    assert {title for title, cell in avx2.items() if cell == "yes"} == {"attention"}
    (neon,) = (dict(zip(titles, row)) for row in rows if row[0] == "`neondot`")
    assert neon["ran on"] == "qemu max" and neon["attention"] == "" and neon["draws"] == "yes"
    assert ["draws", "b", ""] in rows


def test_a_document_without_borders_is_refused():
    with pytest.raises(ValueError, match="for the tables to stand between"):
        with_tables("# Numerics", {})
