"""The runner of `make mutate`, on a room of two lines: one change is noticed, the other is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from environments import ROOT, python_of
from mutation import run
from mutation.run import Mutation, Report, judge, mutation

SOURCE = "def double(x):\n    return 2 * x\n\n\ndef unused(x):\n    return x + 1\n"
TESTED = mutation("room.py", SOURCE, SOURCE.replace("2 * x", "3 * x"))
UNTESTED = mutation("room.py", SOURCE, SOURCE.replace("x + 1", "x + 2"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "toy"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "room.py").write_text(SOURCE)
    return package


def judged(package: Path, *mutations: Mutation, test: str = "assert toy.room.double(2) == 4") -> Report:
    return judge(package, mutations, [sys.executable, "-c", f"import toy.room; {test}"], package.parent.parent)


def test_a_mutation_that_a_test_notices_is_killed_and_another_survives(toy: Path):
    report = judged(toy, TESTED, UNTESTED)
    assert (report.killed, report.total, report.survivors) == (1, 2, (UNTESTED,))


def test_a_survivor_is_shown_with_its_place_and_both_lines():
    assert str(UNTESTED) == "room.py:6\n  - return x + 1\n  + return x + 2"


def test_each_mutation_is_judged_alone(toy: Path):
    """The previous mutation is undone, even if Python compiled it in the same second."""
    assert judged(toy, TESTED, UNTESTED, TESTED, UNTESTED).survivors == (UNTESTED, UNTESTED)


def test_the_package_itself_is_never_written(toy: Path):
    judged(toy, TESTED)
    assert (toy / "room.py").read_text() == SOURCE and sorted(p.name for p in toy.iterdir()) == [
        "__init__.py",
        "room.py",
    ]


def test_a_mutation_that_hangs_is_killed(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "LEAST_TIMEOUT_S", 1.0)
    hanging = mutation("room.py", SOURCE, SOURCE.replace("return 2 * x", "while True: x += 1"))
    assert judged(toy, hanging).killed == 1


def test_a_mutation_that_takes_too_much_memory_is_killed(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "MEMORY_BYTES", 1 << 30)
    greedy = mutation("room.py", SOURCE, SOURCE.replace("return 2 * x", "return bytes(2 << 30) and 2 * x"))
    assert judged(toy, greedy).killed == 1


def test_tests_that_fail_without_a_mutation_judge_nothing(toy: Path):
    with pytest.raises(SystemExit, match="the tests fail without a mutation"):
        judged(toy, TESTED, test="assert False")


@pytest.mark.parametrize(
    ("room", "first"),
    [
        ("server/guard.py", "tests/server/test_guard.py"),
        ("sampling", "tests/sampling"),
        ("engine/cache/blocks.py", "tests/engine/cache/test_blocks.py"),
        ("files.py", "tests/test_files.py"),
    ],
)
def test_a_room_is_judged_by_its_own_tests_the_file_of_its_name_first(room: str, first: str):
    assert run.tests_of(room)[0] == first


def test_a_figure_names_seed_day_and_commit_and_keeps_what_was_recorded_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = tmp_path / "mutations.json"
    record.write_text(json.dumps({"figures": {"other": {"killed": 1}}, "equivalent": {"a: b -> c": "why"}}))
    monkeypatch.setattr(run, "RECORD", record)
    run.write_record("toy", Report((UNTESTED,), 2), 7)
    found = json.loads(record.read_text())
    assert found["equivalent"] == {"a: b -> c": "why"} and found["figures"]["other"] == {"killed": 1}
    assert found["figures"]["toy"].keys() == {"killed", "total", "seed", "date", "commit"}
    assert (found["figures"]["toy"]["killed"], found["figures"]["toy"]["total"]) == (1, 2)


@pytest.mark.skipif(not python_of("mutmut").exists(), reason="mutmut is not there (make mutate sets .venv-mutmut up)")
def test_mutmuts_operators_change_numbers_and_operators_and_leave_messages_alone(tmp_path: Path):
    source = 'def f(x):\n    if x < 3:\n        raise ValueError("too few of them")\n    return x\n'
    (tmp_path / "room.py").write_text(source)
    code = (
        "import sys; sys.path.insert(0, 'tests/mutation')\n"
        "from pathlib import Path; import run\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "for seed in (1, 1, *range(9)): print([m.new for m in run.mutations_of(folder, [folder / 'room.py'], seed)])\n"
    )
    done = subprocess.run([python_of("mutmut"), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, again, *others = done.stdout.splitlines()
    assert first == again and len({*others}) > 1
    assert "if x <= 3:" in first and "if x < 4:" in first and "XX" not in first
