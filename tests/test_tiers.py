"""Every tier is a target, its record is what happened, and docs/testing.md shows the records."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import tiers
from generated import with_section
from tiers import DOCUMENT, RECORDS, ROOT, TIERS, Command, Environment, Tier

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


# --- The table and the documents ---------------------------------------------------------------------------------


def test_the_document_shows_the_records_and_nothing_else():
    text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    expected = with_section(text, tiers.SECTION, tiers.tables(TIERS, tiers.read_records(ROOT)))
    assert text == expected, "run: python tests/tiers.py document"


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_a_tier_is_a_target_and_covers_paths_that_are_there(tier: Tier):
    assert re.search(rf"^{tier.name}:", MAKEFILE, re.MULTILINE)
    assert [path for path in tier.covers if not (ROOT / path).exists()] == []


def imported(file: Path) -> Iterator[str]:
    """The files and rooms of this tree that a test file imports by name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "minicpm" and rest:
                room = f"src/minicpm/{rest[0]}"
                yield from (path for path in (room, f"{room}.py") if (ROOT / path).exists())
            for length in range(1, len(rest) + 2):
                path = f"tests/{'/'.join([first, *rest][:length])}.py"
                if (ROOT / path).exists():
                    yield path


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_a_tier_covers_what_its_tests_import(tier: Tier):
    paths = [ROOT / path for path in tier.covers if path.startswith("tests")]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    needed = {path for file in files if file.suffix == ".py" for path in imported(file)}
    assert {path for path in needed if not path.startswith(tuple(tier.covers))} == set()


def test_imports_of_rooms_and_of_helpers_are_found():
    assert {"src/minicpm/native", "tests/isas.py"} <= set(imported(ROOT / "tests" / "sampling" / "test_native.py"))
    assert "tests/server/running.py" in set(imported(ROOT / "tests" / "browser" / "test_page_with_server.py"))


def test_packages_are_those_that_the_makefile_names():
    named = dict(re.findall(r"^needs-(\S+): PACKAGE := (.+)$", MAKEFILE, re.MULTILINE))
    needs = [need for tier in TIERS for need in tier.needs if isinstance(need, Command)]
    assert named.items() <= {name: need.packages for need in needs for name in need.names}.items()
    assert len(named) == 3


def test_the_records_are_of_tiers_a_line_each_and_hold_no_path():
    text = (ROOT / RECORDS).read_text(encoding="utf-8")
    records = tiers.read_records(ROOT)
    assert text == tiers.written(records)
    assert records.keys() <= {tier.name for tier in TIERS}
    for record in records.values():
        for said in (record["machine"], record.get("problem", ""), *record["skipped"]):
            assert said == tiers.without_paths(said, ROOT)


# --- Running -----------------------------------------------------------------------------------------------------

TESTS = {
    "test_good.py": "import pytest\ndef test_one(): pass\ndef test_two(): pytest.skip('no moon, /some/where/file')\n",
    "test_bad.py": (
        "import pytest\ndef test_one(): pass\ndef test_two(broken): assert False\n"
        "@pytest.fixture\ndef broken():\n    yield\n    assert False\n"
    ),
    "test_skipped.py": "import pytest\ndef test_one(): pytest.skip('not here')\n",
    "test_killed.py": "import os\ndef test_one(): os.kill(os.getpid(), 9)\n",
    "test_slow.py": (
        "import os, time\ndef test_one(): pass\n"
        "def test_two():\n    print('waiting', os.getpid(), flush=True)\n    time.sleep(60)\n"
    ),
}
PROGRAMS = {
    "unbuilt": "false",
    "program": "true",
    "counting": "@echo '7 cases in 1 s'; echo '1 different refusals, 2 findings'; false",
    "silent": "true",
}
CLOSING = next(tier.closing for tier in TIERS if tier.name == "fuzz")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with a Makefile of small tiers."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    root = tmp_path / "tree"
    (root / "docs").mkdir(parents=True)
    (root / DOCUMENT).write_text(f"# Tests\n<!-- made by {tiers.SECTION} -->\n<!-- end -->\n")
    targets = [f"{name}:\n\t{command}\n" for name, command in PROGRAMS.items()]
    for file, text in TESTS.items():
        (root / "tests").mkdir(exist_ok=True)
        (root / "tests" / file).write_text(text)
        name = file.removeprefix("test_").removesuffix(".py")
        targets.append(f"{name}:\n\t{sys.executable} -m pytest -q -s -p no:cacheprovider tests/{file}\n")
    (root / "Makefile").write_text("\n".join(targets))
    (root / ".gitignore").write_text("*.pyc\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def tier(name: str, **fields: object) -> Tier:
    covers = (f"tests/test_{name}.py",) if f"test_{name}.py" in TESTS else ("Makefile",)
    return replace(Tier(name, "what it proves", covers), **fields)


def recorded(root: Path, tier: Tier) -> tuple[int, tiers.Record]:
    """The exit code and the new record; the document shows it."""
    code = tiers.record([tier], tier.name, root)
    records = tiers.read_records(root)
    text = (root / DOCUMENT).read_text()
    assert text == with_section(text, tiers.SECTION, tiers.tables([tier], records))
    return code, records[tier.name]


def counts(record: tiers.Record) -> tuple[int, int, str]:
    return record["passed"], record["failed"], record.get("problem", "")


def test_a_tier_that_passed_is_fresh_until_what_it_covers_changes(root: Path):
    good = tier("good", covers=("tests/test_good.py", "docs"))
    assert tiers.status(good, {}, root)[0] == "absent"
    code, record = recorded(root, good)
    assert (code, counts(record)) == (0, (1, 0, ""))
    assert record["skipped"] == {"no moon, a path": 1}
    assert tiers.status(good, tiers.read_records(root), root)[0] == "fresh"
    (root / "tests" / "test_good.pyc").touch()
    (root / "tests" / "test_bad.py").unlink()
    assert tiers.status(good, tiers.read_records(root), root)[0] == "fresh"
    (root / "docs" / "new.md").touch()  # not known to git, but there
    word, about = tiers.status(good, tiers.read_records(root), root)
    assert (word, about.partition("changed since: ")[2]) == ("stale", "docs")


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("bad", {}, (1, 1, "")),
        ("skipped", {}, (0, 1, "no test passed")),
        ("killed", {}, (0, 1, "make ended with exit status 2")),
        ("unbuilt", {}, (0, 1, "make ended with exit status 2")),
        ("unbuilt", {"is_pytest": False}, (0, 1, "")),
        ("silent", {}, (0, 1, "no result was written")),
        ("silent", {"is_pytest": False, "closing": CLOSING}, (0, 1, "no result was written")),
        ("counting", {"is_pytest": False, "closing": CLOSING}, (5, 2, "")),
    ],
    ids=str,
)
def test_a_tier_that_failed_says_so(root: Path, name: str, fields: dict, expected: tuple[int, int, str]):
    code, record = recorded(root, tier(name, **fields))
    assert (code, counts(record)) == (1, expected)
    assert tiers.status(tier(name), tiers.read_records(root), root)[0] == "failed"


def test_a_program_that_ends_well_is_one_test(root: Path):
    code, record = recorded(root, tier("program", is_pytest=False))
    assert (code, counts(record)) == (0, (1, 0, ""))


START = """
import sys
from pathlib import Path
import tiers
print("started", flush=True)
sys.exit(tiers.record([tiers.Tier("slow", "", ("Makefile",))], "slow", Path(sys.argv[1])))
"""


@contextmanager
def started(root: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that records a tier, and the number of the one whose second test is running."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])}
    command = [sys.executable, "-c", START, str(root)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        tested = next(int(match[1]) for line in process.stdout if (match := re.search(r"waiting (\d+)", line)))
        yield process, tested


def is_running(number: int) -> bool:
    """A process that nobody waited for is not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_tier_says_so_and_leaves_nothing_running(root: Path, number: signal.Signals):
    with started(root) as (process, tested):
        process.send_signal(number)
        assert process.wait(60) == 128 + signal.SIGINT
    # pytest reports what had passed when it is interrupted, not when it is terminated.
    assert counts(tiers.read_records(root)["slow"]) == (int(number == signal.SIGINT), 1, "interrupted")
    assert not is_running(tested)


def test_a_tier_whose_recorder_was_killed_did_not_finish(root: Path):
    with started(root) as (process, tested):
        process.kill()
    os.kill(tested, signal.SIGKILL)
    assert counts(tiers.read_records(root)["slow"]) == (0, 1, "did not finish")


def test_what_cannot_run_here_is_not_run_and_keeps_its_record(root: Path, capsys: pytest.CaptureFixture[str]):
    known = [
        tier("bad", needs=(Command(("no-such-program",), "a-package"),)),
        tier("good", needs=(Environment("x", "y"),)),
    ]
    before = {"bad": {"passed": 7, "failed": 0, "skipped": {}, "seconds": 1, "contents": {}, "date": "", "machine": ""}}
    (root / RECORDS).write_text(tiers.written(before))
    assert tiers.main(["record-all"], known, root) == 0
    assert tiers.main(["record", "bad"], known, root) == 1
    assert tiers.read_records(root) == before
    assert "bad cannot run here: no no-such-program (apt-get install a-package)" in capsys.readouterr().err
    assert tiers.main([], known, root) == 0
    stale, absent = capsys.readouterr().out.splitlines()
    assert stale.split()[:2] == ["bad", "stale"]
    assert absent.split()[:2] == ["good", "absent"] and absent.endswith("cannot run here: no .venv-x (make y)")


def test_all_that_can_are_run_though_one_fails_and_fresh_ones_are_not_run_again(root: Path):
    known = [tier("bad"), tier("good")]
    assert tiers.main(["record-all"], known, root) == 1
    first = tiers.read_records(root)
    assert {name: record["passed"] for name, record in first.items()} == {"bad": 1, "good": 1}
    (root / "Makefile").write_text("good:\n\tfalse\n")
    (root / "tests" / "test_bad.py").write_text(TESTS["test_good.py"])
    assert tiers.main(["record-all"], known, root) == 1
    assert tiers.read_records(root)["good"] == first["good"]


def test_nothing_of_the_callers_environment_changes_a_tier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("PYTEST_ADDOPTS", "MAKEFLAGS", "FUZZ_SECONDS", "MINICPM_ISA", "ARM_RECORD"):
        monkeypatch.setenv(name, "-k one")
    found = tiers._environment(tmp_path / "report.xml")
    assert "-k one" not in found.values()
    assert found["PYTEST_ADDOPTS"] == f"--junitxml={tmp_path}/report.xml"


def test_paths_of_this_machine_stay_out_of_reasons(tmp_path: Path):
    text = f"no file {tmp_path}/tests/data\n (see /var/lib/x.so: broken), 3/4 of https://a.b/c"
    assert tiers.without_paths(text, tmp_path) == "no file tests/data (see a path: broken), 3/4 of https://a.b/c"


def test_a_record_is_one_line_with_sorted_keys():
    lines = tiers.written({"b": {"z": 1, "a": {"d": 1, "c": 2}}, "a": {}}).splitlines()
    assert lines == ["{", '"a": {},', '"b": {"a": {"c": 2, "d": 1}, "z": 1}', "}"]
    assert json.loads("".join(lines)) == {"a": {}, "b": {"z": 1, "a": {"c": 2, "d": 1}}}
